"""Logs on disk: bounds, crashes, damage, positions; and that all of a node's logs together stay within theirs."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.frames import FrameKind
from sandboxd.history.log import Log, read, segment_path, segments
from sandboxd.history.rows import MARK, NOBODY, LogRow, encode_all, lost_bytes, scan
from sandboxd.history.shelf import Bounds, Shelf

ONE, TWO = "prc" + "a" * 20, "prc" + "b" * 20
SANDBOX = "sbx" + "a" * 20
DAY = 86_400.0


def out(text: str, seq: int = 0, process_id: str = ONE) -> LogRow:
    return LogRow(FrameKind.STDOUT, 1_000_000, process_id, seq, text.encode())


def whole(directory: Path, after: int = 0, most_bytes: int = 65_536) -> list[LogRow]:
    found: list[LogRow] = []
    while True:
        chunk = read(directory, after, most_bytes)
        found += [placed.row for placed in chunk.rows if placed.row.kind != MARK]
        after = chunk.next
        if not chunk.more:
            return found


def fill(log: Log, count: int, size: int = 1000) -> None:
    for number in range(count):
        log.append([out(f"{number:0{size}d}", number * size)], 1)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2**40), st.binary(max_size=300)), max_size=20), st.binary())
def test_rows_are_read_as_they_were_written(rows: list[tuple[int, int, bytes]], rest: bytes) -> None:
    written = [LogRow(kind, at, ONE, seq, payload) for kind, (seq, at, payload) in enumerate_kinds(rows)]
    data = encode_all(written)
    placed = list(scan(data, 700))
    assert [each.row for each in placed] == written
    assert [each.begin for each in placed[1:]] == [each.end for each in placed[:-1]]
    assert [each.row for each in scan(data + rest[:20])][: len(written)] == written
    if data:
        assert len(list(scan(data[:-1]))) == len(written) - 1


def enumerate_kinds(rows: list[tuple[int, int, bytes]]) -> list[tuple[int, tuple[int, int, bytes]]]:
    return [(kind, (at, at, payload)) for kind, at, payload in rows]


def test_nothing_is_made_before_the_first_row(tmp_path: Path) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    log.open()
    assert not log.directory.exists()
    assert whole(log.directory) == []
    log.append([out("hello")], 1)
    assert [row.payload for row in whole(log.directory)] == [b"hello"]
    assert log.directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in log.directory.iterdir())


@pytest.mark.parametrize("most_bytes", [1, 100, 1500, 65_536])
def test_reading_in_parts_reads_the_same(tmp_path: Path, most_bytes: int) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 24)
    fill(log, 300)
    assert [row.payload for row in whole(log.directory, 0, most_bytes)] == [b"%01000d" % n for n in range(300)]


def test_the_oldest_is_dropped_and_the_gap_told(tmp_path: Path) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    fill(log, 3000)
    assert log.size_bytes <= 1 << 20
    assert sum(segments(log.directory).values()) == log.size_bytes
    rows = whole(log.directory)
    assert (rows[0].kind, rows[0].process_id) == (FrameKind.LOST, NOBODY)
    assert lost_bytes(rows[0]) == min(segments(log.directory))
    numbers = [int(row.payload) for row in rows[1:]]
    assert numbers == list(range(numbers[0], 3000))


def test_what_is_known_outlives_the_agent(tmp_path: Path) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    fill(log, 500)
    log.append([LogRow(FrameKind.EXIT, 1, TWO, 5, b"{}")], 1)
    log.append([LogRow(FrameKind.LOST, 1, ONE, 500_000, b'{"lost_bytes":7}')], 1)
    again = Log(tmp_path / SANDBOX, 1 << 20)
    again.open()
    assert again.known.positions == {ONE: 500_007}
    assert list(again.known.ended) == [TWO]
    assert again.size_bytes == log.size_bytes


@pytest.mark.parametrize("cut", [1, 20, 60, 400])
def test_half_a_row_is_cut_off_and_written_anew(tmp_path: Path, cut: int) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    log.append([out("first")], 1)
    log.append([out("x" * 300, 5)], 1)
    [begin] = segments(log.directory)
    path = segment_path(log.directory, begin)
    os.truncate(path, path.stat().st_size - cut)
    again = Log(tmp_path / SANDBOX, 1 << 20)
    again.open()
    again.append([out("second", 5)], 1)
    assert [row.payload for row in whole(log.directory)][-1] == b"second"
    assert all(row.payload != b"x" * 300 for row in whole(log.directory))


def test_damage_is_told_and_stepped_over(tmp_path: Path) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    fill(log, 200)
    first = min(segments(log.directory))
    path = segment_path(log.directory, first)
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(data)
    rows = whole(log.directory)
    kinds = [row.kind for row in rows]
    assert kinds.count(FrameKind.LOST) == 1
    assert int(rows[-1].payload) == 199


def test_a_log_that_somebody_removed_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    fill(log, 100)
    shutil.rmtree(log.directory)
    log.append([out("after")], 1)
    rows = whole(log.directory)
    assert [row.kind for row in rows] == [FrameKind.LOST, FrameKind.STDOUT]
    assert rows[1].payload == b"after"


def test_a_full_disk_is_told_when_it_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / SANDBOX, 1 << 20)
    log.append([out("before")], 1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="space"):
            log.append([out("missed", 6)], 1)
        with pytest.raises(OSError, match="space"):
            log.append([out("too", 12)], 1)
    log.append([out("after", 15)], 1)
    rows = whole(log.directory)
    assert [(row.kind, row.seq) for row in rows] == [(1, 0), (FrameKind.LOST, 6), (1, 15)]
    assert lost_bytes(rows[1]) == 9


# --- the shelf


def a_shelf(tmp_path: Path, *, log_bytes: int = 1 << 20, all_bytes: int = 1 << 30, days: float = 7) -> Shelf:
    return Shelf(tmp_path, Bounds(log_bytes=log_bytes, all_bytes=all_bytes, days=days))


def named(number: int) -> str:
    return "sbx" + chr(ord("a") + number) * 20


def write_and_end(shelf: Shelf, number: int, ended_at: float, size: int = 1000) -> None:
    log = shelf.open(named(number))
    log.append([out("x" * size)], 1)
    shelf.close(named(number), ended_at)


def test_logs_are_kept_for_their_days(tmp_path: Path) -> None:
    shelf = a_shelf(tmp_path)
    write_and_end(shelf, 0, 0)
    write_and_end(shelf, 1, DAY)
    shelf.trim(7 * DAY - 1, disk_full=False)
    assert {each.name for each in tmp_path.iterdir()} == {named(0), named(1)}
    shelf.trim(7 * DAY + 1, disk_full=False)
    assert {each.name for each in tmp_path.iterdir()} == {named(1)}


def test_all_together_stay_within_their_bound(tmp_path: Path) -> None:
    shelf = a_shelf(tmp_path, all_bytes=100_000)
    for number in range(5):
        write_and_end(shelf, number, float(number), size=30_000)
    live = shelf.open(named(9))
    fill(live, 10)
    shelf.trim(10, disk_full=False)
    assert {each.name for each in tmp_path.iterdir()} == {named(3), named(4), named(9)}


def test_live_logs_give_up_their_oldest_when_nothing_else_is_left(tmp_path: Path) -> None:
    shelf = a_shelf(tmp_path, log_bytes=1 << 21, all_bytes=1 << 20)
    live = shelf.open(named(0))
    fill(live, 2000)
    shelf.trim(0, disk_full=False)
    assert live.size_bytes <= 1 << 20
    assert int(whole(live.directory)[-1].payload) == 1999


def test_a_full_disk_takes_the_logs_of_ended_sandboxes(tmp_path: Path) -> None:
    shelf = a_shelf(tmp_path)
    write_and_end(shelf, 0, 5)
    shelf.open(named(1)).append([out("live")], 1)
    shelf.trim(6, disk_full=True)
    assert {each.name for each in tmp_path.iterdir()} == {named(1)}


def test_what_an_earlier_agent_left_is_found(tmp_path: Path) -> None:
    earlier = a_shelf(tmp_path)
    write_and_end(earlier, 0, 5)
    earlier.open(named(1)).append([out("never closed")], 1)
    earlier.open(named(2)).append([out("lives")], 1)
    (tmp_path / "stranger").mkdir()
    shelf = a_shelf(tmp_path)
    shelf.look(frozenset({named(2)}), now=2 * DAY)
    shelf.trim(7 * DAY + 6, disk_full=False)
    assert {each.name for each in tmp_path.iterdir()} == {named(1), named(2), "stranger"}
    shelf.trim(9 * DAY + 1, disk_full=False)
    assert {each.name for each in tmp_path.iterdir()} == {named(2), "stranger"}


def test_a_clock_that_was_set_back_keeps_no_log_for_ever(tmp_path: Path) -> None:
    write_and_end(a_shelf(tmp_path), 0, ended_at=1000 * DAY)
    shelf = a_shelf(tmp_path)
    shelf.look(frozenset(), now=DAY)
    shelf.trim(9 * DAY, disk_full=False)
    assert list(tmp_path.iterdir()) == []
