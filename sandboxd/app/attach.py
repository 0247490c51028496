"""The call of clients that attaches to a process: `sandlot.process.v1`."""

from contextlib import aclosing
from functools import partial
from typing import Final

from aiohttp import web

from sandboxd.app.answers import request_id
from sandboxd.app.call import Call, DataPlane
from sandboxd.app.query import Query
from sandboxd.app.sockets import OverError, Socket
from sandboxd.contract.frames import HEADER_BYTES, MAX_STDIN_PAYLOAD, Frame, FrameKind, encode
from sandboxd.contract.sockets import MAY_WRITE, PROCESS_PROTOCOL, CloseCode
from sandboxd.processes.attachment import Attachment, BadFrameError, BrokenError, open_attachment
from sandboxd.processes.live import Ending

MAX_POSITION: Final = 2**62


def routes(plane: DataPlane) -> list[web.AbstractRouteDef]:
    """Return the route of `…/attach`."""
    return [plane.on("GET", "/processes/{process_id}/attach", partial(_attach, plane.leaving))]


async def _attach(leaving: Ending, call: Call) -> web.StreamResponse:
    query = Query(call.request)
    query.exclusive("after", "tail_bytes")
    after = query.integer("after", 0, 0, MAX_POSITION)
    tail_bytes = query.optional_integer("tail_bytes", 0, MAX_POSITION)
    query.check()
    socket = Socket(call, PROCESS_PROTOCOL, leaving, max_message_bytes=HEADER_BYTES + MAX_STDIN_PAYLOAD)
    async with open_attachment(
        call.sandbox,
        call.process_id,
        after=after,
        tail_bytes=tail_bytes,
        may_write=call.request.headers.get(MAY_WRITE) == "true",
        request_id=request_id(call.request),
    ) as attachment:
        await socket.open()
        async with socket.closing():

            async def keep_alive() -> None:
                await socket.send(encode(Frame(FrameKind.KEEPALIVE, attachment.position)))

            await socket.converse(_show(socket, attachment), _obey(socket, attachment), on_beat=keep_alive)
    return socket.response


async def _show(socket: Socket, attachment: Attachment) -> None:
    try:
        async with aclosing(attachment.frames()) as frames:
            async for frame in frames:
                await socket.send(frame)
    except BrokenError:
        raise OverError(CloseCode.GOING_AWAY, "the way to the sandbox broke") from None
    raise OverError(CloseCode.DONE)


async def _obey(socket: Socket, attachment: Attachment) -> None:
    async with aclosing(socket.messages()) as messages:
        async for message in messages:
            if isinstance(message, str):
                raise OverError(CloseCode.TEXT, "frames are binary")
            try:
                answer = await attachment.take(message)
            except BadFrameError as error:
                raise OverError(CloseCode.BAD_FRAME, str(error)) from None
            if answer is not None:
                await socket.send(answer)
