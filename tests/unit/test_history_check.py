"""A guest's feed is checked: what cannot be is refused, times are believed within what can be, rows are joined."""

import json

import pytest

from sandboxd.contract.frames import Batch, Frame, FrameKind, batch_of
from sandboxd.guest_client.base import GuestError
from sandboxd.history.check import MOST_RUNNING, FeedCheck, unfinished
from sandboxd.history.rows import Known, LogRow, nothing_known

ONE, TWO = "prc" + "a" * 20, "prc" + "b" * 20
BEGAN, NOW = 1_000_000_000, 2_000_000_000
EXIT = b'{"exit_code": 0, "reason": "exited", "secret_field": "x"}'


def named(process_id: object, **more: object) -> Frame:
    return Frame(FrameKind.ATTACHED, 0, json.dumps({"process_id": process_id, **more}).encode())


def said(seq: int, text: bytes, kind: int = FrameKind.STDOUT, at: int = NOW - 5) -> Frame:
    return Frame(kind, seq, text, at)


def check(known: Known | None = None) -> FeedCheck:
    return FeedCheck(known or nothing_known(), BEGAN)


def admit(batch: Batch, known: Known | None = None) -> list[LogRow]:
    return check(known).admit(batch, NOW)


def test_processes_are_told_apart_and_neighbours_joined() -> None:
    one = check()
    rows = one.admit(
        batch_of(
            named(ONE, processes=3),
            said(0, b"a"),
            said(1, b"b"),
            said(2, b"c", FrameKind.STDERR),
            named(TWO),
            said(0, b"d"),
            Frame(FrameKind.EXIT, 1, EXIT, NOW),
            named(ONE),
            said(3, b"e"),
            Frame(FrameKind.KEEPALIVE, 0),
        ),
        NOW,
    )
    assert [(row.kind, row.process_id, row.seq, row.payload) for row in rows if row.kind != FrameKind.EXIT] == [
        (1, ONE, 0, b"ab"), (2, ONE, 2, b"c"), (1, TWO, 0, b"d"), (1, ONE, 3, b"e")
    ]  # fmt: skip
    assert one.processes == 3
    assert one.known.positions == {ONE: 4}
    assert list(one.known.ended) == [TWO]
    exits = [json.loads(row.payload) for row in rows if row.kind == FrameKind.EXIT]
    assert exits[0]["exit_code"] == 0
    assert "secret_field" not in exits[0]


@pytest.mark.parametrize(
    "frames",
    [
        [said(0, b"nobody's")],
        [named("prc"), said(0, b"a")],
        [named(None)],
        [named(ONE), said(1, b"a gap")],
        [named(ONE), said(0, b"a"), said(0, b"again")],
        [named(ONE), said(0, b"")],
        [named(ONE), Frame(FrameKind.EXIT, 0, EXIT), said(0, b"behind its exit")],
        [named(ONE), Frame(FrameKind.EXIT, 0, EXIT), named(ONE)],
        [named(ONE), Frame(FrameKind.EXIT, 0, b'{"exit_code": 0, "reason": "killed"}')],
        [named(ONE), Frame(FrameKind.EXIT, 0, b"[]")],
        [named(ONE), Frame(FrameKind.LOST, 0, b'{"lost_bytes": -1}')],
        [named(ONE), Frame(FrameKind.LOST, 0, b'{"lost_bytes": true}')],
        [named(ONE), Frame(FrameKind.LOST, 0, b'{"lost_bytes": 4611686018427387904}'), said(2**62, b"a")],
        [Frame(FrameKind.ATTACHED, 0, b'{"a":"' + b"x" * 2000 + b'"}')],
        [named(ONE), Frame(FrameKind.STDIN, 0, b"a")],
        [named(ONE), Frame(0x77, 0, b"a")],
    ],
)
def test_what_cannot_be_is_refused(frames: list[Frame]) -> None:
    with pytest.raises(GuestError):
        admit(batch_of(*frames))


def test_flags_are_refused() -> None:
    batch = batch_of(named(ONE), said(0, b"a"))
    batch = batch._replace(heads=[head._replace(skip=True) for head in batch.heads])
    with pytest.raises(GuestError):
        admit(batch)


def test_the_number_of_processes_is_bounded() -> None:
    known = Known({f"prc{number:020d}": 0 for number in range(MOST_RUNNING)}, {})
    with pytest.raises(GuestError, match="more processes"):
        admit(batch_of(named(ONE)), known)


@pytest.mark.parametrize(
    ("at", "told"), [(NOW - 1, NOW - 1), (BEGAN, BEGAN), (0, NOW), (-5, NOW), (NOW + 10_000_000, NOW), (2**62, NOW)]
)
def test_times_are_believed_within_what_can_be(at: int, told: int) -> None:
    [row] = admit(batch_of(named(ONE), said(0, b"a", at=at)))
    assert row.time_us == told


@pytest.mark.parametrize("count", [None, "many", -1, True, 10**12])
def test_a_number_of_processes_that_is_none_is_not_taken(count: object) -> None:
    one = check()
    one.admit(batch_of(named(ONE, processes=count)), NOW)
    assert one.processes is None


def test_it_goes_on_from_what_is_known() -> None:
    known = Known({ONE: 7}, {TWO: None})
    [row] = admit(batch_of(named(ONE), said(7, b"h")), known)
    assert row.seq == 7
    for refused in (batch_of(named(ONE), said(0, b"a")), batch_of(named(TWO))):
        with pytest.raises(GuestError):
            admit(refused, known)


def test_what_is_unfinished_ends_once() -> None:
    rows = list(unfinished(Known({ONE: 7}, {TWO: None}), NOW, "The sandbox has ended: out_of_memory."))
    assert [(row.kind, row.process_id, row.seq) for row in rows] == [
        (FrameKind.LOST, ONE, 7), (FrameKind.EXIT, ONE, 7)
    ]  # fmt: skip
    assert json.loads(rows[1].payload)["reason"] == "sandbox_stopped"
