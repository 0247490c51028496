"""tls tunnels: a connection is passed on, undecrypted, by the name in its first message."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tunnels.gateway.connections import address_of
from tunnels.gateway.node import NodeAwayError, NodeLink
from tunnels.hello import MOST_BYTES, HelloError, server_name
from tunnels.limits import Limits
from tunnels.routing import Names
from tunnels.ways import StreamRequest

BUFFER_BYTES: Final = 131_072
_HELLO_SECONDS: Final = 5.0
_MOST_PIECES: Final = 64
"""Of a ClientHello: what has come is read anew with each."""
_NOBODY: Final = bytes((21, 3, 3, 0, 2, 2, 112))
"""The alert `unrecognized_name`, fatal."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Serves the port of tls tunnels."""

    node: NodeLink
    names: Names
    limits: Limits

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, until both ways have come to their end."""
        client = address_of(writer.transport)
        if not self.limits.enter(client):
            writer.transport.abort()
            return
        try:
            await self._serve(reader, writer, client)
        except (OSError, TimeoutError, EOFError):
            pass
        finally:
            self.limits.leave(client)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: str) -> None:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                name, data = await _hello(reader)
            stands_for = self.names.sandbox_of_name(name) or (None, None)
            asked = StreamRequest(server_name=name, sandbox_id=stands_for[0], port=stands_for[1], client=client)
            answer, link = await self.node.stream(asked)
        except (HelloError, NodeAwayError):
            link = None
        else:
            link = None if answer.problem is not None else link
            if link is not None:
                there, inside = await asyncio.open_unix_connection(sock=link, limit=BUFFER_BYTES)
                try:
                    inside.write(data)
                    await _join(_Way(reader, inside), _Way(there, writer))
                finally:
                    inside.transport.abort()
                return
        writer.write(_NOBODY)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _hello(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read until the name is known; returns all that was read too. HelloError."""
    data = b""
    for _ in range(_MOST_PIECES):
        piece = await reader.read(MOST_BYTES)
        if not piece:
            break
        data += piece
        name = server_name(data)
        if name is not None:
            return name, data
    raise HelloError("it ended before its name, or came in crumbs")


@dataclass(frozen=True, slots=True)
class _Way:
    source: asyncio.StreamReader
    sink: asyncio.StreamWriter

    async def run(self) -> None:
        while data := await self.source.read(BUFFER_BYTES):
            self.sink.write(data)
            await self.sink.drain()
        with suppress(OSError):
            self.sink.write_eof()


async def _join(*ways: _Way) -> None:
    """Pass bytes both ways; one way that breaks ends both."""
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for way in ways:
                group.create_task(way.run())
