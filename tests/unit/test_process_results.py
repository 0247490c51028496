"""Results within a budget: what is shown, what is counted, where it is cut."""

import base64
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.frames import Frame, FrameKind, batch_of
from sandboxd.contract.processes import Process, ResultOptions, RunResult
from sandboxd.contract.reasons import ProcessReason
from sandboxd.processes.rendering import as_ndjson, as_server_events, split_text
from sandboxd.processes.results import Channel, Collector, Keep, render_bytes
from sandboxd.processes.trust import Exit, ExitDetails, Keepalive, Lost, check_process

NOW = datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC)
SANDBOX = "sbx" + "a" * 20
PROCESS = "prc" + "b" * 20
MARK = re.compile(r"\[… (\d+) bytes omitted …\]\n")
keeps = st.sampled_from(["both", "head", "tail"])


def process_of(**changes: Any) -> Process:
    record: dict[str, Any] = {
        "id": PROCESS, "argv": ["true"], "cwd": "/", "user": "user", "uid": 1000, "gid": 1000, "pid": 7,
        "state": "running", "started_at": "2026-11-22T10:59:00.000Z", "duration_seconds": 0.5, "cpu_used_seconds": 0,
        "peak_memory_bytes": 0, "first_seq": 0, "next_seq": 0, "stdout_bytes": 0, "stderr_bytes": 0,
        "stdin_offset": 0, "stdin_closed": True,
    }  # fmt: skip
    return check_process(record | changes, SANDBOX)


def exit_at(seq: int, **changes: Any) -> Exit:
    fields: dict[str, Any] = {"exit_code": 0, "reason": "exited", "duration_seconds": 1.5}
    return Exit(seq, 0, ExitDetails.model_validate(fields | changes))


def collected(options: ResultOptions, *pieces: tuple[FrameKind, bytes]) -> RunResult:
    collector = Collector(options)
    seq = 0
    for kind, data in pieces:
        for start in range(0, len(data), 65_536):
            part = data[start : start + 65_536]
            collector.add(batch_of(Frame(kind, seq, part)))
            seq += len(part)
    collector.add(exit_at(seq))
    return collector.result(process_of(), NOW)


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=30), keeps, st.integers(0, 600))
def test_a_channel_shows_true_bytes_and_counts_the_rest(parts: list[bytes], keep: Keep, budget: int) -> None:
    data = b"".join(parts)
    channel = Channel(keep, budget)
    for part in parts:
        channel.add(memoryview(part))
    shown = channel.show(len(data))
    if len(data) <= budget:
        assert shown.data == data
        assert shown.omitted_bytes == 0
        return
    assert shown.omitted_bytes >= len(data) - budget
    mark = f"[… {shown.omitted_bytes} bytes omitted …]\n".encode()
    head, found, tail = shown.data.partition(mark)
    if not found:
        assert keep != "both" or not shown.data
        assert len(shown.data) == len(data) - shown.omitted_bytes
        assert data.startswith(shown.data) if keep == "head" else data.endswith(shown.data)
        return
    if not data.startswith(head) or len(head) + len(tail) + shown.omitted_bytes != len(data):
        head = head.removesuffix(b"\n")
    assert data.startswith(head)
    assert data.endswith(tail)
    assert len(head) + len(tail) + shown.omitted_bytes == len(data)


@given(st.text(max_size=400), keeps, st.integers(0, 300))
def test_cutting_text_never_breaks_a_character(text: str, keep: Keep, budget: int) -> None:
    channel = Channel(keep, budget)
    data = text.encode()
    channel.add(data)
    shown, lossy = render_bytes(channel.show(len(data)).data, "text")
    assert not lossy
    assert "\ufffd" not in shown or "\ufffd" in text


@given(st.integers(1, 5), st.integers(0, 4096))
def test_memory_stays_near_the_budget(million: int, budget: int) -> None:
    channel = Channel("both", budget)
    for _ in range(million):
        channel.add(bytes(1_000_000))
    assert len(channel._head) + len(channel._tail) <= budget + 1_300_000
    assert channel.seen == million * 1_000_000


@given(st.binary(max_size=300))
def test_the_parts_of_split_text_are_the_bytes(data: bytes) -> None:
    parts = list(split_text(data))
    assert b"".join(part for part, _ in parts) == data
    assert all(text is None or text.encode() == part for part, text in parts)
    assert len(parts) <= 3


def test_a_cut_moves_to_line_ends_that_are_near() -> None:
    lines = b"".join(b"line %03d\n" % number for number in range(200))
    result = collected(ResultOptions(max_output_bytes=205), (FrameKind.STDOUT, lines))
    mark = MARK.search(result.stdout)
    assert mark is not None
    assert result.stdout[: mark.start()].endswith("\n")
    assert result.stdout[mark.end() :].startswith("line ")
    assert int(mark[1]) == result.stdout_omitted_bytes
    assert result.truncated
    assert result.stdout_bytes == len(lines)
    assert len(result.stdout) - len(mark[0]) + result.stdout_omitted_bytes == len(lines)


def test_output_without_newlines_is_cut_all_the_same() -> None:
    result = collected(ResultOptions(max_output_bytes=1000), (FrameKind.STDOUT, b"x" * 1_000_000))
    assert result.stdout == "x" * 500 + "\n[… 999000 bytes omitted …]\n" + "x" * 500


def test_channels_have_budgets_of_their_own() -> None:
    options = ResultOptions(max_output_bytes=10, keep="tail")
    result = collected(options, (FrameKind.STDOUT, b"out"), (FrameKind.STDERR, b"e" * 30), (FrameKind.STDOUT, b"end"))
    assert (result.stdout, result.stderr) == ("outend", "e" * 10)
    assert (result.stdout_omitted_bytes, result.stderr_omitted_bytes) == (0, 20)
    assert result.next_seq == 36


def test_no_output_at_all_may_be_asked_for() -> None:
    result = collected(ResultOptions(max_output_bytes=0), (FrameKind.STDOUT, b"hello"))
    assert (result.stdout, result.stdout_omitted_bytes, result.truncated) == ("", 5, True)


def test_bytes_that_are_no_text_are_marked_lossy_or_given_whole() -> None:
    assert collected(ResultOptions(), (FrameKind.STDOUT, b"a\xffb")).lossy
    result = collected(ResultOptions(output_encoding="base64"), (FrameKind.STDOUT, b"a\xffb"))
    assert base64.b64decode(result.stdout) == b"a\xffb"
    assert not result.lossy


def test_what_fell_out_of_the_ring_is_omitted_where_it_was() -> None:
    collector = Collector(ResultOptions())
    collector.add(batch_of(Frame(FrameKind.STDERR, 0, b"warn\n"), Frame(FrameKind.STDOUT, 5, b"first\n")))
    collector.add(Lost(11, 1000))
    collector.add(batch_of(Frame(FrameKind.STDOUT, 1011, b"last\n")))
    collector.add(exit_at(1016))
    ended = process_of(
        state="ended", exit_code=0, reason="exited", ended_at="2026-11-22T10:59:01.000Z", next_seq=1016,
        stdout_bytes=1011, stderr_bytes=5,
    )  # fmt: skip
    result = collector.result(ended, NOW)
    assert result.stderr == "warn\n"
    assert result.stdout == "first\n[… 1000 bytes omitted …]\nlast\n"
    assert (result.stdout_omitted_bytes, result.stderr_omitted_bytes) == (1000, 0)


def test_a_running_process_has_a_result_too() -> None:
    collector = Collector(ResultOptions())
    collector.add(batch_of(Frame(FrameKind.STDOUT, 0, b"so far")))
    collector.add(Keepalive(6))
    result = collector.result(process_of(), NOW)
    assert result.running
    assert result.exit_code is None
    assert result.hint == f"GET /v1/sandboxes/{SANDBOX}/processes/{PROCESS}/result?wait_seconds=60"
    assert result.duration_seconds == 60


def test_how_it_ended_comes_from_the_exit() -> None:
    collector = Collector(ResultOptions())
    collector.add(exit_at(0, exit_code=124, reason="timed_out", signal="SIGKILL"))
    result = collector.result(process_of(), NOW)
    assert (result.exit_code, result.reason, result.signal) == (124, ProcessReason.TIMED_OUT, "SIGKILL")
    assert not result.running
    assert result.model_dump(mode="json")["ended_at"] == "2026-11-22T10:59:01.500Z"


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        ("grün".encode(), ["text"]),
        ("grün".encode()[:3], ["text", "base64"]),
        ("grün".encode()[3:], ["base64", "text"]),
        (b"a\xff\xfe\xfdb", ["base64"]),
        (b"\xbc", ["base64"]),
    ],
)
def test_ndjson_says_text_where_it_is_text(data: bytes, kinds: list[str]) -> None:
    lines = as_ndjson(batch_of(Frame(FrameKind.STDOUT, 10, data, 1_790_000_000_123_000))).splitlines()
    assert [("text" if b'"text"' in line else "base64") for line in lines] == kinds


def test_ndjson_joins_small_neighbours() -> None:
    batch = batch_of(*(Frame(FrameKind.STDOUT, seq, b"x") for seq in range(5)), Frame(FrameKind.STDERR, 5, b"e"))
    first, second = as_ndjson(batch).splitlines()
    assert b'"seq":0,"next":5' in first
    assert b'"text":"xxxxx"' in first
    assert b'"kind":"stderr","seq":5,"next":6' in second


def test_server_events_have_resumable_ids() -> None:
    text = as_server_events(batch_of(Frame(FrameKind.STDOUT, 3, b"hi\n")))
    assert text.startswith(b"event: stdout\nid: 6\ndata: {")
    assert text.endswith(b"}\n\n")
    assert b"id: 6:end\n" in as_server_events(exit_at(6))
    assert as_server_events(Keepalive(6)) == b": keepalive\n\n"
