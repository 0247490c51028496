"""The API guide, pasted block after block into one shell, as its reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import Platform

_ROOT = Path(__file__).resolve().parents[2]
_MARK = "=== block"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (_ROOT / "docs" / "api-guide.md").read_text(), re.DOTALL)


def _run(platform: Platform, command: list[str]) -> str:
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `sandlot` is
    environment = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key, "PATH": commands}
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_of_the_guide_does_what_it_says(platform: Platform, tmp_path: Path) -> None:
    copy = tmp_path / "copy.md"
    blocks = [block.replace("-o copy.md", f"-o {copy}") for block in _blocks("bash")]
    said = _run(platform, ["bash", "-euo", "pipefail", "-c", f"\necho '{_MARK}'\n".join(blocks)])
    refused = [part for part in said.split(_MARK) if '"type":"/errors/' in part]
    assert not refused
    assert copy.read_text() == (_ROOT / "README.md").read_text()
    for words in (
        '"stdout":"42\\n"',
        '"stdout":"done\\n"',
        '"text":"again\\n"',
        '"kind":"exit"',
        "PRETTY_NAME=",
        '"port":8000',
    ):
        assert words in said


def test_the_terminal_of_the_guide_is_one(platform: Platform) -> None:
    terminal = next(block for block in _blocks("python") if "STDIN" in block)
    said = _run(platform, [sys.executable, "-c", terminal])
    assert "50 132" in said
    assert said.endswith("exited\n")
