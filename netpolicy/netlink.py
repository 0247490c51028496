"""Netlink sockets: framing, acknowledgements, errors in the kernel's words.

A socket belongs for good to the network namespace of the thread that made it. It knows nothing of what the messages
say; `firewall` and the node's link code encode those.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

REQUEST = 0x1
ACK = 0x4
REPLACE = 0x100
EXCLUSIVE = 0x200
CREATE = 0x400
DUMP = 0x300
NESTED = 0x8000

_SEND_BUFFER_FORCE, _RECEIVE_BUFFER_FORCE = 32, 33
_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11
_STRICT_CHECK = 12
_ERROR = 2
_DONE = 3
_ACK_HAS_ATTRIBUTES = 0x200
_DUMP_INTERRUPTED = 0x10
_HEADER = struct.Struct("=IHHII")
_BUFFER_BYTES = 4 << 20
_READ_BYTES = 1 << 18
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Message:
    """One request without its header."""

    kind: int
    flags: int
    payload: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def text_attribute(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attribute_list(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Decode a run of attributes."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes in which no kind comes twice."""
    return dict(attribute_list(data))


class NetlinkSocket:
    """One request at a time, each answered before the next; not for use by two threads at once."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            for option in (_CAP_ACK, _EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            # All acknowledgements of a batch wait here before the first is read.
            self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, _BUFFER_BYTES)
            self._socket.settimeout(_TIMEOUT_SECONDS)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def filter_dumps(self) -> None:
        """Let the kernel apply what a dump request names (a link, a family) instead of ignoring it."""
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)

    def change(self, messages: Sequence[Message]) -> None:
        """Send in one datagram; return when every message that asked for it is acknowledged.

        OSError names the first one refused. The others may have been done (links) or not (a batch of nftables,
        after which the socket should be thrown away).
        """
        first = self._sequence + 1
        waiting = {first + place for place, message in enumerate(messages) if message.flags & ACK}
        self._send(messages)
        refusal: OSError | None = None
        # What follows a refused message of a batch may never be acknowledged: then what is there is all there is.
        while waiting and (refusal is None or self._more()):
            for sequence, kind, flags, payload in self._receive():
                if kind == _ERROR and sequence >= first:
                    waiting.discard(sequence)
                    refusal = refusal or _refusal(payload, flags)
        if refusal is not None:
            raise refusal

    def get(self, message: Message) -> bytes:
        """Return the payload of the one answer to a request."""
        self._send([message])
        while True:
            for sequence, kind, flags, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if kind != _ERROR:
                    return payload
                refused = _refusal(payload, flags)
                if refused is not None:
                    raise refused

    def dump(self, message: Message) -> list[bytes]:
        """Return the payloads of a listing; OSError (EINTR) when it changed under our eyes."""
        self._send([Message(message.kind, message.flags | REQUEST | DUMP, message.payload)])
        found: list[bytes] = []
        interrupted = False
        while True:
            for sequence, kind, flags, payload in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind == _ERROR:
                    refused = _refusal(payload, flags)
                    if refused is not None:
                        raise refused
                elif kind == _DONE:
                    if interrupted:
                        raise OSError(errno.EINTR, "the listing changed while it was read")
                    return found
                else:
                    found.append(payload)

    def _send(self, messages: Iterable[Message]) -> None:
        parts: list[bytes] = []
        for message in messages:
            self._sequence += 1
            length = _HEADER.size + len(message.payload)
            parts.append(_HEADER.pack(length, message.kind, message.flags | REQUEST, self._sequence, 0))
            parts.append(message.payload + b"\0" * (-length % 4))
        self._socket.send(b"".join(parts))

    def _more(self) -> bool:
        """Whether an answer is already there: netlink answers before the send returns."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "the kernel did not answer a netlink request") from error
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            yield sequence, kind, flags, data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def _refusal(payload: bytes, flags: int) -> OSError | None:
    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if number == 0:
        return None
    words = os.strerror(number)
    if flags & _ACK_HAS_ATTRIBUTES:
        # NLM_F_CAPPED is on, so only the header of the refused request lies between the number and the attributes.
        said = attributes(payload[4 + _HEADER.size :]).get(1)
        if said:
            words += ": " + said.rstrip(b"\0").decode(errors="replace")
    return OSError(number, words)
