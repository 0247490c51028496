"""Inspect's own check of a sandbox, over the public client. What does not hold is listed with its reason."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Platform
from infra.setup.places import cache_dir

_ROOT = Path(__file__).resolve().parents[2]
_LOCK = _ROOT / "infra" / "locks" / "inspect.txt"

EXCEPTIONS: dict[str, str] = {
    "test_write_text_file_without_permissions": "a write replaces the file in one step: the directory's rights decide",
    "test_write_binary_file_without_permissions": "the same",
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of an environment with Inspect in it, made once from its lock and kept in the cache."""
    digest = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    place = cache_dir() / "conformance" / f"inspect-{digest}"
    interpreter = place / "bin" / "python"
    if not (place / "complete").is_file():
        uv = str(cache_dir() / "uv" / "bin" / "uv")
        environment = os.environ | {"UV_SYSTEM_CERTS": "1"}
        for arguments in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
            ["pip", "sync", "--quiet", "--python", str(interpreter), "--require-hashes", str(_LOCK)],
        ):
            subprocess.run([uv, *arguments], env=environment, check=True)
        (place / "complete").touch()
    return interpreter


def test_inspect_finds_nothing_but_the_exceptions(platform: Platform, python: Path) -> None:
    environment = os.environ | {
        "SANDLOT_URL": platform.url,
        "SANDLOT_API_KEY": platform.key,
        "PYTHONPATH": str(_ROOT / "clients" / "python"),
    }
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("inspect_adapter.py"))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 40
    failed = {name: what for name, what in found.items() if what}
    assert failed.keys() == EXCEPTIONS.keys(), failed
