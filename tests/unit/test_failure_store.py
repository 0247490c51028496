import json
import os
import stat
from pathlib import Path

import pytest

from sandboxd.app import failures
from sandboxd.app.failures import FailureStore
from sandboxd.contract.reasons import SandboxReason
from sandboxd.runner.failure import Failure
from sandboxd.runtime.base import RuntimeEnd


def a_failure(number: int = 0, panic: str = "") -> Failure:
    return Failure(
        sandbox_id=f"sbx{number:020}",
        reason=SandboxReason.RUNTIME_FAILED,
        message="The program that ran it died.",
        error="",
        runtime_log="",
        panic_log=panic,
        end=RuntimeEnd(signal=11),
        oom_kills=0,
    )


def kept(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.json"))


def test_one_is_kept_for_root_alone(tmp_path: Path) -> None:
    store = FailureStore(tmp_path / "failures", now=lambda: 5.0)
    store(a_failure(panic="panic: \x1b[2J runtime error"))
    (path,) = (tmp_path / "failures").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    document = json.loads(path.read_text())
    assert (document["reason"], document["end"]["signal"], document["at"]) == ("runtime_failed", 11, 5.0)
    assert "\x1b" not in path.read_text()


def test_each_text_is_bounded(tmp_path: Path) -> None:
    FailureStore(tmp_path)(a_failure(panic="x" * 1_000_000))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 100_000
    assert "934464 more" in path.read_text()


def test_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_FILES", 3)
    _fill(tmp_path, 5)
    assert kept(tmp_path) == [f"sbx{number:020}" for number in (2, 3, 4)]


def test_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_BYTES", 25_000)
    _fill(tmp_path, 5, panic="x" * 10_000)
    assert kept(tmp_path) == [f"sbx{number:020}" for number in (3, 4)]


def test_for_so_long(tmp_path: Path) -> None:
    store = FailureStore(tmp_path)
    store(a_failure(1))
    os.utime(tmp_path / f"{a_failure(1).sandbox_id}.json", (1, 1))
    store(a_failure(2))
    assert kept(tmp_path) == [a_failure(2).sandbox_id]


def _fill(directory: Path, count: int, panic: str = "") -> None:
    store = FailureStore(directory, now=lambda: float(count))
    for number in range(count):
        path = directory / f"{a_failure(number).sandbox_id}.json"
        store(a_failure(number, panic))
        os.utime(path, (number, number))  # in the order they were made, however coarse the clock
