"""Output as clients read it: NDJSON, server-sent events, frames. Pure."""

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json

from sandboxd.contract.frames import MAX_PAYLOAD, NAMES, Batch, Frame, FrameKind, Head, encode
from sandboxd.contract.processes import render_time
from sandboxd.processes.trust import Event, Exit, Keepalive, Lost

NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"

Render = Callable[[Event], bytes | memoryview]


def moment(time_us: int) -> str | None:
    """Write a frame's time; None for none."""
    return None if time_us == 0 else render_time(datetime.fromtimestamp(time_us / 1_000_000, UTC))


def as_ndjson(event: Event) -> bytes:
    """Render one event as lines."""
    return b"".join(to_json(row) + b"\n" for row in rows(event))


def as_frames(event: Event) -> bytes | memoryview:
    """Render one event as frames. Output is handed on as it came."""
    match event:
        case Batch():
            return event.data
        case Lost():
            return encode(Frame(FrameKind.LOST, event.seq, b'{"lost_bytes":%d}' % event.lost_bytes))
        case Keepalive():
            return encode(Frame(FrameKind.KEEPALIVE, event.seq))
        case Exit():
            payload = event.details.__pydantic_serializer__.to_json(event.details)
            return encode(Frame(FrameKind.EXIT, event.seq, payload, event.time_us))


def as_server_events(event: Event) -> bytes:
    """Render one event as server-sent events."""
    if isinstance(event, Keepalive):
        return b": keepalive\n\n"
    return b"".join(_server_event(row) for row in rows(event))


def begin_server_events(after: int | None) -> bytes:
    """Return what an event stream begins with."""
    known = b"" if after is None else b"id: %d\n" % after
    return b"retry: 1000\n" + known + b"data:\n\n"


def _server_event(row: dict[str, Any]) -> bytes:
    suffix = b":end" if row["kind"] == "exit" else b""
    return b"event: %s\nid: %d%s\ndata: %s\n\n" % (row["kind"].encode(), row["next"], suffix, to_json(row))


def rows(event: Event) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of one event."""
    match event:
        case Batch():
            for run in runs(event):
                yield from _output_rows(event, run)
        case Lost():
            yield {
                "kind": "lost", "seq": event.seq, "next": event.seq + event.lost_bytes, "lost_bytes": event.lost_bytes
            }  # fmt: skip
        case Keepalive():
            yield {"kind": "keepalive", "seq": event.seq}
        case Exit():
            begin: dict[str, Any] = {"kind": "exit", "seq": event.seq, "next": event.seq, "at": moment(event.time_us)}
            yield begin | event.details.model_dump(mode="json")


def runs(batch: Batch) -> Iterator[list[Head]]:
    """Yield neighbours of one channel together, up to a frame's greatest payload."""
    run: list[Head] = []
    size = 0
    for head in batch.heads:
        if run and (head.kind != run[0].kind or size + head.length > MAX_PAYLOAD):
            yield run
            run, size = [], 0
        run.append(head)
        size += head.length
    if run:
        yield run


def _output_rows(batch: Batch, run: list[Head]) -> Iterator[dict[str, Any]]:
    first = run[0]
    data = bytes(batch.payload(first)) if len(run) == 1 else b"".join(map(batch.payload, run))
    seq = first.seq
    at = moment(first.time_us)
    name = NAMES[FrameKind(first.kind)]
    for part, text in split_text(data):
        following = seq + len(part)
        row: dict[str, Any] = {"kind": name, "seq": seq, "next": following, "at": at}
        if text is None:
            row["base64"] = base64.b64encode(part).decode()
        else:
            row["text"] = text
        yield row
        seq = following


def split_text(data: bytes) -> Iterator[tuple[bytes, str | None]]:
    """Yield the parts of `data` with their text; None where a part is not UTF-8.

    Parts joined are `data`. A character cut at either edge is a part of its own; whatever else is wrong makes the
    whole middle bytes, because a program that writes those writes no text.
    """
    try:
        yield data, data.decode()
    except UnicodeDecodeError:
        begin, end = text_begin(data), text_end(data)
        if begin:
            yield data[:begin], None
        middle = data[begin:end] if end > begin else b""
        if middle:
            try:
                yield middle, middle.decode()
            except UnicodeDecodeError:
                yield middle, None
        if data[max(begin, end) :]:
            yield data[max(begin, end) :], None


def text_begin(data: bytes | bytearray) -> int:
    """Return where the first character may begin: behind at most three continuation bytes."""
    begin = 0
    while begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
        begin += 1
    return begin


def text_end(data: bytes | bytearray) -> int:
    """Return where the last whole character ends: before an unfinished one of at most three bytes."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return len(data) - back if needed > back else len(data)
    return len(data)
