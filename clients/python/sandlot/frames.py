"""Reads the two wire forms of a process's output, however they were cut on the way.

Pure. A position is a number of output bytes of the process, all channels, so it holds across both forms and any break.
"""

import base64
import json
import struct
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final, Protocol, cast

from sandlot.errors import ProtocolError
from sandlot.models import Frame, ProcessExit, parse_time

FRAMES: Final = "application/vnd.sandlot.frames"
NDJSON: Final = "application/x-ndjson"

_HEADER: Final = struct.Struct(">BBHIQq")
_MAX_PAYLOAD: Final = 65_536
_MAX_LINE: Final = 1024 * 1024
_KINDS: Final = {1: "stdout", 2: "stderr", 3: "terminal", 4: "exit", 5: "lost", 6: "keepalive"}
_OUTPUT: Final = frozenset({"stdout", "stderr", "terminal"})


class Decoder(Protocol):
    """Turns bytes into frames. What is incomplete when a stream breaks is dropped with the decoder."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that `data` completes. ProtocolError if it cannot be one."""
        ...


def decoder_for(media_type: str) -> Decoder:
    """Return a fresh decoder. ProtocolError for a form this client does not read."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == FRAMES:
        return BinaryDecoder()
    if kind == NDJSON:
        return LineDecoder()
    raise ProtocolError(f"the output came as {media_type!r}", hint="Check that the URL is that of a Sandlot API.")


class BinaryDecoder:
    """Reads `application/vnd.sandlot.frames`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _HEADER.size:
                kind, flags, reserved, length, seq, time_us = _HEADER.unpack_from(buffer, position)
                if length > _MAX_PAYLOAD:
                    raise ProtocolError(f"a frame of {length} bytes")
                start = position + _HEADER.size
                if len(buffer) - start < length:
                    return
                position = start + length
                name = _KINDS.get(kind)
                if name is not None and not flags and not reserved:
                    yield _binary_frame(name, seq, time_us, bytes(buffer[start:position]))
        finally:
            del buffer[:position]


class LineDecoder:
    """Reads `application/x-ndjson`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > _MAX_LINE:
            raise ProtocolError(f"a line of more than {_MAX_LINE} bytes")
        for line in lines:
            if line.strip():
                frame = _line_frame(_object(line))
                if frame is not None:
                    yield frame


def _binary_frame(kind: str, seq: int, time_us: int, payload: bytes) -> Frame:
    at = datetime.fromtimestamp(time_us / 1e6, timezone.utc) if time_us else None
    if kind in _OUTPUT:
        return Frame(kind, seq, seq + len(payload), data=payload, at=at)
    if kind == "lost":
        lost = _count(_object(payload).get("lost_bytes"))
        return Frame(kind, seq, seq + lost, lost_bytes=lost, at=at)
    if kind == "exit":
        return Frame(kind, seq, seq, exit=ProcessExit.parse(_object(payload)), at=at)
    return Frame(kind, seq, seq, at=at)


def _line_frame(line: dict[str, Any]) -> Frame | None:
    kind = line.get("kind")
    seq = _count(line.get("seq"))
    at = parse_time(line.get("at"))
    if kind in _OUTPUT:
        data = _line_bytes(line)
        return Frame(kind, seq, seq + len(data), data=data, at=at)
    if kind == "lost":
        lost = _count(line.get("lost_bytes"))
        return Frame(kind, seq, seq + lost, lost_bytes=lost, at=at)
    if kind == "exit":
        return Frame(kind, seq, seq, exit=ProcessExit.parse(line), at=at)
    if kind == "keepalive":
        return Frame(kind, seq, seq, at=at)
    return None


def _line_bytes(line: dict[str, Any]) -> bytes:
    text = line.get("text")
    if isinstance(text, str):
        return text.encode()
    try:
        return base64.b64decode(line["base64"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError("a line of output has neither text nor base64") from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(data)
    except ValueError as error:
        raise ProtocolError("a part of the output is not JSON") from error
    if not isinstance(value, dict):
        raise ProtocolError("a part of the output is not a JSON object")
    return cast("dict[str, Any]", value)


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ProtocolError(f"a position that is no number: {value!r}")
