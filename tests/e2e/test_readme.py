"""The examples of the README, run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import Platform

_ROOT = Path(__file__).resolve().parents[2]


def _block(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def _run(platform: Platform, command: list[str]) -> str:
    environment = os.environ | {
        "SANDLOT_URL": platform.url,
        "SANDLOT_API_KEY": platform.key,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_curl_as_printed(platform: Platform) -> None:
    said = _run(platform, ["bash", "-euo", "pipefail", "-c", _block("curl")])
    assert "hello from Linux, user user" in said
    assert '"stdout":"42\\n"' in said
    assert '"text":"line 3\\n"' in said
    assert '"kind":"exit"' in said
    assert '"state":"stopped"' in said


def test_command_line_as_printed(platform: Platform) -> None:
    said = _run(platform, ["bash", "-euo", "pipefail", "-c", _block("cli")])
    assert "hello from a sandbox" in said
    assert "42\n" in said
    assert "exit code 3" in said
    assert "running" in said


def test_python_as_printed(platform: Platform) -> None:
    said = _run(platform, [sys.executable, "-c", _block("python")])
    assert "0 42" in said
    assert "stdout line 3" in said
    assert "exit" in said
