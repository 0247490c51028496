"""What sandboxd and one of its programs say to each other: JSON objects, each behind its length, on a stream socket.

Both ends refuse what is too long or no object: the other side is then taken for broken, and the channel is closed.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, cast

_LENGTH: Final = struct.Struct(">I")
MOST_BYTES: Final = 1 << 20
"""The longest message: a policy of 256 rules is some 80 KiB."""


class ChannelError(Exception):
    """The other side is gone, or does not keep to the form."""


class Channel:
    """One end. Any task may send; one task receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> "Channel":
        """Take over a connected stream socket."""
        end.setblocking(False)  # noqa: FBT003 - its only parameter
        reader, writer = await asyncio.open_unix_connection(sock=end)
        return cls(reader, writer)

    def post(self, message: Mapping[str, Any]) -> None:
        """Queue a message. What the other side is too slow to take is bounded by whoever sends without waiting."""
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > MOST_BYTES:
            raise ChannelError(f"a message of {len(body)} bytes is too long")
        if self._writer.is_closing():
            raise ChannelError("the channel is closed")
        self._writer.write(_LENGTH.pack(len(body)) + body)

    @property
    def unsent_bytes(self) -> int:
        """What was posted and has not left."""
        return self._writer.transport.get_write_buffer_size()

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; return when there is room for the next."""
        self.post(message)
        try:
            await self._writer.drain()
        except OSError as error:
            raise ChannelError("the other side is gone") from error

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the other side has ended. ChannelError for anything else."""
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            (length,) = _LENGTH.unpack(head)
            if length > MOST_BYTES:
                raise ChannelError(f"a message of {length} bytes is too long")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        try:
            message: Any = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ChannelError("a message is no JSON") from error
        if not isinstance(message, dict):
            raise ChannelError("a message is no object")
        return cast("dict[str, Any]", message)

    def close(self) -> None:
        self._writer.close()
