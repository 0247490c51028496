"""Codec of `application/vnd.sandlot.frames`: big-endian, back to back, no preamble.

| byte | 0 | 1 | 2-3 | 4-7 | 8-15 | 16-23 | 24... |
|---|---|---|---|---|---|---|---|
| field | kind | flags = 0 | reserved = 0 | payload length | seq | time, us since 1970 UTC (0: none) | payload |

`seq` is a byte position: the number of output bytes of the process, all channels, before this frame.
"""

import json
import struct
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

MEDIA_TYPE: Final = "application/vnd.sandlot.frames"
MAX_PAYLOAD: Final = 65_536
MAX_STDIN_PAYLOAD: Final = 262_144
HEADER_BYTES: Final = 24
_HEADER: Final = struct.Struct(">BBHIQq")


class FrameKind(IntEnum):
    """What a frame carries. 0x07 and above are spoken on attach only; 0x07 also opens a stream the guest starts."""

    STDOUT = 0x01
    STDERR = 0x02
    TERMINAL = 0x03
    EXIT = 0x04
    LOST = 0x05
    KEEPALIVE = 0x06
    ATTACHED = 0x07
    STDIN_ACK = 0x08
    ERROR = 0x09
    STDIN = 0x41
    STDIN_CLOSE = 0x42
    RESIZE = 0x43
    SIGNAL = 0x44


OUTPUT_KINDS: Final = frozenset({FrameKind.STDOUT, FrameKind.STDERR, FrameKind.TERMINAL})
NAMES: Final = {kind: kind.name.lower() for kind in FrameKind}


class FrameError(Exception):
    """The bytes are not frames: a length beyond the limit, or a stream cut inside a frame."""


class Frame(NamedTuple):
    """One frame. `kind` may be a number outside FrameKind: readers skip those."""

    kind: int
    seq: int
    payload: bytes = b""
    time_us: int = 0
    skip: bool = False
    """Flags or reserved bits were set: treat as an unknown kind."""

    @property
    def next_seq(self) -> int:
        """Where a reader resumes that holds everything up to and including this frame."""
        if self.kind in OUTPUT_KINDS:
            return self.seq + len(self.payload)
        if self.kind == FrameKind.LOST:
            return self.seq + int(self.json().get("lost_bytes", 0))
        return self.seq

    def json(self) -> dict[str, Any]:
        """Return the payload as a JSON object; FrameError if it is none."""
        try:
            value = json.loads(self.payload)
        except ValueError as error:
            msg = "frame payload is not JSON"
            raise FrameError(msg) from error
        if not isinstance(value, dict):
            msg = "frame payload is not a JSON object"
            raise FrameError(msg)
        return value  # pyright: ignore[reportUnknownVariableType] - json.loads gives str keys


def encode(frame: Frame) -> bytes:
    """Render one frame."""
    return _HEADER.pack(frame.kind, 0, 0, len(frame.payload), frame.seq, frame.time_us) + frame.payload


def encode_json(kind: FrameKind, seq: int, value: dict[str, Any], time_us: int = 0) -> bytes:
    """Render a frame whose payload is a JSON object."""
    payload = json.dumps(value, separators=(",", ":")).encode()
    return encode(Frame(kind, seq, payload, time_us))


class Head(NamedTuple):
    """Where one frame lies inside a batch."""

    kind: int
    seq: int
    time_us: int
    skip: bool
    start: int
    """Offset of the payload; the header lies before it."""
    end: int

    @property
    def length(self) -> int:
        """Bytes of payload."""
        return self.end - self.start


class Batch(NamedTuple):
    """Whole frames, back to back, as one read brought them: passed on without being taken apart."""

    data: memoryview
    heads: list[Head]

    def payload(self, head: Head) -> memoryview:
        """Return the payload of one frame of this batch, not copied."""
        return self.data[head.start : head.end]

    def frame(self, head: Head) -> Frame:
        """Return one frame of this batch by itself."""
        return Frame(head.kind, head.seq, bytes(self.data[head.start : head.end]), head.time_us, head.skip)

    def frames(self) -> Iterator[Frame]:
        """Yield every frame by itself."""
        return map(self.frame, self.heads)


def batch_of(*frames: Frame) -> Batch:
    """Make a batch of frames."""
    return Decoder().cut(b"".join(map(encode, frames)))


class Decoder:
    """Cuts a byte stream into frames, however it was chunked. Holds at most one incomplete frame."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self._rest = b""
        self._max_payload = max_payload

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame held back."""
        return len(self._rest)

    def cut(self, data: bytes, most: int = sys.maxsize) -> Batch:
        """Return every frame completed by `data`. Raises FrameError on a length beyond the limit.

        `most`: no more than so many now; `cut(b"")` returns the next ones.
        Payloads are not copied one by one: at most one copy of `data` is made, to join it with what was held back.
        """
        whole = self._rest + data if self._rest else data
        heads: list[Head] = []
        position, end = 0, len(whole)
        while end - position >= HEADER_BYTES and len(heads) < most:
            kind, flags, reserved, length, seq, time_us = _HEADER.unpack_from(whole, position)
            if length > self._max_payload:
                msg = f"frame payload of {length} bytes is beyond {self._max_payload}"
                raise FrameError(msg)
            start = position + HEADER_BYTES
            if end - start < length:
                break
            position = start + length
            heads.append(Head(kind, seq, time_us, bool(flags or reserved), start, position))
        self._rest = whole[position:]
        return Batch(memoryview(whole)[:position], heads)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame completed by `data`. Raises FrameError on a length beyond the limit."""
        return self.cut(data).frames()

    def finish(self) -> None:
        """Say that the stream ended; FrameError if it was cut inside a frame."""
        if self._rest:
            msg = f"stream cut inside a frame, {len(self._rest)} bytes of it seen"
            raise FrameError(msg)
