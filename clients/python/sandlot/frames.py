"""Reads the two wire forms of a process's output, however they were cut on the way.

Pure. A position is a number of output bytes of the process, all channels, so it holds across both forms and any break.
"""

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Protocol

from sandlot._lines import NDJSON as NDJSON  # noqa: PLC0414 - offered from here
from sandlot._lines import LineReader, parse_object
from sandlot.errors import ProtocolError
from sandlot.models import Frame, ProcessExit, parse_time

FRAMES: Final = "application/vnd.sandlot.frames"
STDIN_PIECE_BYTES: Final = 262_144
"""The longest payload of a `stdin` frame."""

_HEADER: Final = struct.Struct(">BBHIQq")
_MAX_PAYLOAD: Final = 65_536
_MAX_MESSAGE: Final = 1024 * 1024
_KINDS: Final = {1: "stdout", 2: "stderr", 3: "terminal", 4: "exit", 5: "lost", 6: "keepalive"}
_CONTROL: Final = {7: "attached", 8: "stdin_ack", 9: "error"}
_SENT: Final = {"stdin": 0x41, "stdin_close": 0x42, "resize": 0x43, "signal": 0x44}
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
        self._reader = LineReader()

    def feed(self, data: bytes) -> Iterator[Frame]:
        for line in self._reader.feed(data):
            frame = _line_frame(line)
            if frame is not None:
                yield frame


@dataclass(frozen=True)
class Control:
    """A message of an attachment that is not output: `attached`, `stdin_ack`, `error`."""

    kind: str
    seq: int
    fields: dict[str, Any]


def decode_message(message: bytes | str) -> Frame | Control | None:
    """Read one message of `sandlot.process.v1`; None for a kind that is not known. ProtocolError if it is no frame."""
    if isinstance(message, str):
        raise ProtocolError("a text message where frames are spoken")
    if len(message) < _HEADER.size:
        raise ProtocolError(f"a frame of {len(message)} bytes")
    kind, flags, reserved, length, seq, time_us = _HEADER.unpack_from(message)
    payload = message[_HEADER.size :]
    if length != len(payload) or length > _MAX_MESSAGE:
        raise ProtocolError(f"a frame that says {length} bytes and has {len(payload)}")
    if flags or reserved:
        return None
    if kind in _CONTROL:
        return Control(_CONTROL[kind], seq, parse_object(payload) if payload else {})
    return _binary_frame(_KINDS[kind], seq, time_us, payload) if kind in _KINDS else None


def encode_message(kind: str, *, seq: int = 0, data: bytes = b"", fields: Mapping[str, Any] | None = None) -> bytes:
    """Return a message of `sandlot.process.v1` to the server: `stdin`, `stdin_close`, `resize` or `signal`.

    >>> encode_message("stdin", seq=5, data=b"hi").hex()
    '4100000000000002000000000000000500000000000000006869'
    """
    payload = data if fields is None else json.dumps(dict(fields)).encode()
    return _HEADER.pack(_SENT[kind], 0, 0, len(payload), seq, 0) + payload


def _binary_frame(kind: str, seq: int, time_us: int, payload: bytes) -> Frame:
    at = datetime.fromtimestamp(time_us / 1e6, timezone.utc) if time_us else None
    if kind in _OUTPUT:
        return Frame(kind, seq, seq + len(payload), data=payload, at=at)
    if kind == "lost":
        lost = _count(parse_object(payload).get("lost_bytes"))
        return Frame(kind, seq, seq + lost, lost_bytes=lost, at=at)
    if kind == "exit":
        return Frame(kind, seq, seq, exit=ProcessExit.parse(parse_object(payload)), at=at)
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


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ProtocolError(f"a position that is no number: {value!r}")
