import os
import threading
from pathlib import Path

import pytest

from infra.config import LauncherConfig
from infra.launcher import logs, rotation
from infra.launcher.rotation import Bounds

BOUNDS = Bounds(file_bytes=100, files=3)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "api.log"


def fill(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_a_small_log_is_left_alone(log: Path) -> None:
    fill(log, "x" * 100)
    rotation.turn_over(log, BOUNDS)
    rotation.cut_off(log, BOUNDS)
    assert rotation.all_of(log) == [log]


def test_so_many_are_kept_and_the_oldest_goes(log: Path) -> None:
    for number in range(6):
        fill(log, str(number) * 101)
        rotation.cut_off(log, BOUNDS)
    fill(log, "now")
    found = rotation.all_of(log)
    assert [path.name for path in found] == ["api.log.3", "api.log.2", "api.log.1", "api.log"]
    assert [path.read_text()[0] for path in found] == ["3", "4", "5", "n"]
    assert all(path.stat().st_size <= BOUNDS.file_bytes for path in found)


def test_a_writer_goes_on_in_the_new_one(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 250)
        rotation.cut_off(log, BOUNDS)
        writer.write(b"b")
    assert log.read_text() == "b"
    assert rotation.older(log, 1).read_text() == "a" * 100


def test_fewer_than_before_removes_the_rest(log: Path) -> None:
    for number in range(1, 6):
        rotation.older(log, number).write_text("old")
    fill(log, "x" * 101)
    rotation.turn_over(log, Bounds(file_bytes=100, files=1))
    assert [path.name for path in rotation.all_of(log)] == ["api.log.1"]


def test_none_may_be_kept(log: Path) -> None:
    fill(log, "x" * 101)
    rotation.cut_off(log, Bounds(file_bytes=100, files=0))
    assert log.stat().st_size == 0
    assert rotation.all_of(log) == [log]


def test_an_old_log_is_not_for_others(log: Path) -> None:
    fill(log, "x" * 101)
    rotation.cut_off(log, BOUNDS)
    assert rotation.older(log, 1).stat().st_mode & 0o007 == 0


def config(tmp_path: Path) -> LauncherConfig:
    (tmp_path / "logs").mkdir()
    return LauncherConfig(data_dir=tmp_path)


def test_both_are_shown_in_the_order_of_time_and_harmless(tmp_path: Path) -> None:
    there = config(tmp_path)
    (there.logs_dir / "api.log").write_text('{"event": "b", "timestamp": "2026-01-01T00:00:02Z"}\nplain \x1b[2J\n')
    (there.logs_dir / "node.log").write_text('{"event": "a", "timestamp": "2026-01-01T00:00:01Z"}\n[1]\n')
    said: list[str] = []
    logs.show(there, ["api", "node"], lines=10, follow=False, say=said.append)
    assert said[0] == "api   plain ?[2J"
    assert [line[:4] for line in said[2:]] == ["node", "api "]


def test_the_last_lines_reach_into_the_log_before(tmp_path: Path) -> None:
    there = config(tmp_path)
    rotation.older(there.logs_dir / "api.log", 1).write_text("1\n2\n3\n")
    (there.logs_dir / "api.log").write_text("4\n")
    said: list[str] = []
    logs.show(there, ["api"], lines=2, follow=False, say=said.append)
    assert said == ["3", "4"]


def test_following_goes_on_across_a_turn(tmp_path: Path) -> None:
    there = config(tmp_path)
    log = there.logs_dir / "api.log"
    log.write_text("before\n")
    said: list[str] = []
    seen = {word: threading.Event() for word in ("begun", "one", "two")}

    def say(line: str) -> None:
        said.append(line)
        if line in seen:
            seen[line].set()
        if line == "two":
            raise KeyboardInterrupt

    def watch() -> None:
        with pytest.raises(KeyboardInterrupt):
            logs.show(there, ["api"], lines=0, follow=True, say=say)

    follower = threading.Thread(target=watch)
    follower.start()
    while not seen["begun"].is_set():  # it follows from where the log ends when it begins to look
        fill(log, "begun\n")
        seen["begun"].wait(0.05)
    fill(log, "one\n")
    assert seen["one"].wait(30)
    os.truncate(log, 0)
    fill(log, "two\n")
    follower.join(30)
    assert seen["two"].is_set()
    assert "before" not in said
