"""Putting one set of files in place of another: all or none, failed or killed at every move."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.launcher import swap

NAMES = ["api", "ledger.db", "ledger.db-wal", "node.key", "images/one.json", "images/two.json"]
KILLED = """
import os, sys
from pathlib import Path
from infra.launcher import swap
base, last = Path(sys.argv[1]), sys.argv[2]
swap.put(base, base / "fresh", base / "aside", sys.argv[3:], lambda name: os._exit(9) if name == last else None)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for directory in ("api", "images", "fresh/api", "fresh/images"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("api/db", "api/old", "ledger.db", "ledger.db-wal", "images/one.json"):
        (tmp_path / name).write_text("old")
    for name in ("api/db", "ledger.db", "node.key", "images/one.json", "images/two.json"):
        (tmp_path / "fresh" / name).write_text("new")
    return tmp_path


def tree(base: Path) -> dict[str, str]:
    return {str(path.relative_to(base)): path.read_text() for path in base.rglob("*") if path.is_file()}


def test_the_new_is_there_and_the_old_is_kept(base: Path) -> None:
    swap.put(base, base / "fresh", base / "aside", NAMES)
    assert tree(base) == {
        "api/db": "new",
        "ledger.db": "new",
        "node.key": "new",
        "images/one.json": "new",
        "images/two.json": "new",
        "aside/api/db": "old",
        "aside/api/old": "old",
        "aside/ledger.db": "old",
        "aside/ledger.db-wal": "old",
        "aside/images/one.json": "old",
    }
    assert swap.undo(base) is False


@pytest.mark.parametrize("name", NAMES)
def test_failing_half_way_leaves_the_old(base: Path, name: str) -> None:
    before = {path: text for path, text in tree(base).items() if not path.startswith("fresh/")}

    def fail(done: str) -> None:
        if done == name:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        swap.put(base, base / "fresh", base / "aside", NAMES, fail)
    assert tree(base) == before


@pytest.mark.parametrize("name", NAMES)
def test_killed_half_way_the_next_start_brings_the_old_back(base: Path, name: str) -> None:
    before = {path: text for path, text in tree(base).items() if not path.startswith("fresh/")}
    done = subprocess.run([sys.executable, "-c", KILLED, str(base), name, *NAMES], check=False)
    assert done.returncode == 9
    assert (base / swap.JOURNAL).exists()
    assert swap.undo(base) is True
    assert tree(base) == before
    assert swap.undo(base) is False
