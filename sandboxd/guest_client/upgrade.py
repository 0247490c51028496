"""Streams that begin as a request to the guest: bounded in what is held of them, each wait with an end."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from sandboxd.contract.frames import Batch, Decoder, FrameError, FrameKind
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import PROCESS_PROTOCOL, TCP_PROTOCOL
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import GuestConnection
from sandboxd.guest_client.pace import STEP_FRAMES, Pace
from sandboxd.guest_client.wire import parse_object, parse_problem

_READ_BYTES: Final = 131_072
_MAX_HEAD_BYTES: Final = 16_384
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3})(?: [^\r\n]*)?")
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)")
_SWITCHING: Final = 101
_DETACH_SECONDS: Final = 2.0
_KEEPALIVE_SECONDS: Final = 15.0


class UpgradedStream:
    """A Duplex over a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except OSError as error:
            raise _broken(error) from error

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise _broken(error) from error

    def end(self) -> None:
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()


def _broken(error: OSError) -> GuestUnreachableError:
    return GuestUnreachableError(f"the stream broke: {type(error).__name__}")


@asynccontextmanager
async def upgraded(
    connection: GuestConnection, path: str, query: dict[str, str], protocol: str
) -> AsyncGenerator[UpgradedStream]:
    """Open a stream; it is broken off on leaving. Raises what the guest answers instead of one."""
    link = await connection.connected()
    reader, writer = await asyncio.open_connection(sock=link, limit=_READ_BYTES)
    try:
        try:
            async with asyncio.timeout(connection.limits.answer_seconds):
                writer.write(connection.upgrade_head(path, query, protocol))
                await _await_switch(reader, connection.limits.error_bytes)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise GuestUnreachableError(f"no answer: {type(error).__name__}") from error
        yield UpgradedStream(reader, writer)
    finally:
        writer.transport.abort()


async def _await_switch(reader: asyncio.StreamReader, error_bytes: int) -> None:
    """Read the answer to an upgrade, and not a byte of the stream behind it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise GuestError("the guest's answer has no end") from error
    status = _STATUS.match(head)
    if status is None or len(head) > _MAX_HEAD_BYTES:
        raise GuestError("the guest does not speak HTTP")
    if int(status[1]) == _SWITCHING:
        return
    lengths = _LENGTH.findall(head)
    if int(status[1]) < 400 or len(lengths) != 1 or int(lengths[0]) > error_bytes:
        raise GuestError(f"the guest answered {int(status[1])} to an upgrade")
    body = await reader.readexactly(int(lengths[0]))
    if parse_object(body).get("code") == "route_not_found":
        raise ProblemError(
            "not_implemented",
            "This sandbox was started by a version that cannot do this.",
            reason="attach",
            hint="Follow its output and write to its standard input by HTTP, or create another sandbox.",
        )
    raise parse_problem(int(status[1]), body)


class UpgradedAttachment:
    """A GuestAttachment over a stream."""

    def __init__(self, stream: UpgradedStream, pace: Pace, silence_seconds: float) -> None:
        self._stream = stream
        self._pace = pace
        self._silence_seconds = silence_seconds
        self._decoder = Decoder()
        self._more_held = False

    async def batches(self) -> AsyncGenerator[Batch]:
        last: int | None = None
        while last != FrameKind.EXIT:
            batch = await self._read()
            last = batch.heads[-1].kind
            yield batch

    async def _read(self) -> Batch:
        """Read until there is a whole frame. A frame that trickles in counts as silence."""
        try:
            async with asyncio.timeout(self._silence_seconds):
                batch = await self._cut()
        except FrameError as error:
            raise GuestError(str(error)) from error
        except TimeoutError as error:
            raise GuestUnreachableError("the attachment fell silent") from error
        if pause := self._pace.take(len(batch.heads), asyncio.get_running_loop().time()):
            await asyncio.sleep(pause)
        elif self._more_held:
            await asyncio.sleep(0)
        return batch

    async def _cut(self) -> Batch:
        while True:
            data = b"" if self._more_held else await self._stream.read()
            if not data and not self._more_held:
                raise GuestUnreachableError("the attachment broke off before its end")
            batch = self._decoder.cut(data, STEP_FRAMES)
            self._more_held = len(batch.heads) == STEP_FRAMES
            if batch.heads:
                return batch

    async def send(self, frame: bytes) -> None:
        await self._stream.write(frame)

    async def detach(self) -> None:
        self._stream.end()
        try:
            async with asyncio.timeout(_DETACH_SECONDS):
                while await self._stream.read():
                    pass
        except (GuestUnreachableError, TimeoutError):
            return


@asynccontextmanager
async def attached(
    connection: GuestConnection, pace: Pace, process_id: str, *, after: int, tail_bytes: int | None
) -> AsyncGenerator[UpgradedAttachment]:
    """Attach to a process."""
    query = {"after": str(after)} if tail_bytes is None else {"tail_bytes": str(tail_bytes)}
    query["keepalive_seconds"] = f"{_KEEPALIVE_SECONDS:g}"
    async with upgraded(connection, f"processes/{process_id}/attach", query, PROCESS_PROTOCOL) as stream:
        yield UpgradedAttachment(stream, pace, 3 * _KEEPALIVE_SECONDS)


@asynccontextmanager
async def dialled(connection: GuestConnection, port: int) -> AsyncGenerator[UpgradedStream]:
    """Connect to a port of the sandbox's loopback."""
    async with upgraded(connection, "dial", {"port": str(port)}, TCP_PROTOCOL) as stream:
        yield stream
