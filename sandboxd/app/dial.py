"""The call of clients that connects to a port inside: `sandlot.tcp.v1`."""

import asyncio
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from sandboxd.app.call import Call, DataPlane
from sandboxd.app.query import Query
from sandboxd.app.sockets import OverError, Socket
from sandboxd.contract.processes import Strict
from sandboxd.contract.sockets import TCP_PROTOCOL, CloseCode
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.contract.validation import invalid_field
from sandboxd.guest_client.base import Duplex, GuestUnreachableError
from sandboxd.processes.live import END_GRACE_SECONDS, Ending, LiveSandbox, guarded

MAX_MESSAGE_BYTES: Final = 1_048_576
_EOF: Final = '{"eof":true}'
_LAST_PORT: Final = 65_535


class _Eof(Strict):
    """The one text message there is."""

    eof: bool


def routes(plane: DataPlane) -> list[web.AbstractRouteDef]:
    """Return the route of `…/dial`."""
    return [plane.on("GET", "/dial", partial(_dial, plane.leaving))]


async def _dial(leaving: Ending, call: Call) -> web.StreamResponse:
    query = Query(call.request)
    port = query.optional_integer("port", 1, _LAST_PORT)
    query.check()
    if port is None:
        raise invalid_field("query:port", "missing", "is required")
    if port == GUEST_PORT:
        raise invalid_field("query:port", "reserved", "is the port of the sandbox's own agent")
    socket = Socket(call, TCP_PROTOCOL, leaving, max_message_bytes=MAX_MESSAGE_BYTES)
    # It opens even when nothing listens: a browser is told how a WebSocket was closed, not why it did not open.
    await socket.open()
    async with socket.closing(), AsyncExitStack() as stack:
        async with guarded(call.sandbox):
            stream = await stack.enter_async_context(call.sandbox.guest.dial(port))
        await _Splice(socket, stream, call.sandbox).run()
    return socket.response


class _Splice:
    """Bytes both ways, until both ends have said that they are done."""

    def __init__(self, socket: Socket, stream: Duplex, sandbox: LiveSandbox) -> None:
        self._socket = socket
        self._stream = stream
        self._sandbox = sandbox
        self._said = {"client": False, "inside": False}

    async def run(self) -> None:
        try:
            await self._socket.converse(self._outward(), self._inward(), self._await_end())
        except GuestUnreachableError:
            if await self._sandbox.ended.wait(END_GRACE_SECONDS):
                raise self._sandbox.end_problem() from None
            raise OverError(CloseCode.FAILED, "the connection inside broke") from None

    async def _outward(self) -> None:
        while data := await self._stream.read():
            await self._socket.send(data)
        await self._socket.send_text(_EOF)
        self._end_of("inside")

    async def _inward(self) -> None:
        async with aclosing(self._socket.messages()) as messages:
            async for message in messages:
                if isinstance(message, str):
                    self._take_text(message)
                elif self._said["client"]:
                    raise OverError(CloseCode.BAD_FRAME, "bytes behind the end")
                elif message:
                    await self._stream.write(message)

    def _take_text(self, text: str) -> None:
        try:
            ends = _Eof.model_validate_json(text).eof
        except ValidationError:
            ends = False
        if not ends:
            raise OverError(CloseCode.TEXT, f"the only text is {_EOF}")
        if not self._said["client"]:
            self._stream.end()
        self._end_of("client")

    def _end_of(self, side: str) -> None:
        self._said[side] = True
        if all(self._said.values()):
            raise OverError(CloseCode.DONE)

    async def _await_end(self) -> None:
        await self._sandbox.ended.wait()
        await asyncio.sleep(END_GRACE_SECONDS)
        raise self._sandbox.end_problem()
