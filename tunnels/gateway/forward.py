"""One request and its answer between two connections, streaming both ways; and what follows when both go over to
another protocol.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict
from yarl import URL

from tunnels.gateway.node import IDLE_SECONDS

_AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_SWITCHING: Final = 101
_FEED_BYTES: Final = 256 * 1024
"""Bytes of a raw stream that wait to be passed on, before their sender must wait."""

Outward = Callable[[Sequence[tuple[str, str]]], list[tuple[str, str]]]


class BrokenInsideError(Exception):
    """No answer came that could be passed on; nothing has been said to the client yet."""


class _Relayed(web.StreamResponse):
    """An answer of somebody else's: nothing is added to its headers that a reader would act on."""

    def __init__(self, status: int, reason: str | None, headers: CIMultiDict[str]) -> None:
        super().__init__(status=status, reason=reason, headers=headers)
        self._untyped = "Content-Type" not in headers
        self._unnamed = "Server" not in headers

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        if self._untyped:
            self.headers.popall("Content-Type", None)
        if self._unnamed:
            self.headers.popall("Server", None)


async def exchange(
    request: web.BaseRequest,
    session: aiohttp.ClientSession,
    target: str,
    headers: Sequence[tuple[str, str]],
    outward: Outward,
    *,
    upgrade: str | None = None,
) -> web.StreamResponse:
    """Send a request on and answer what comes back. BrokenInsideError before anything was answered."""
    sent = CIMultiDict(headers)
    if upgrade is not None:
        sent["Connection"], sent["Upgrade"] = "Upgrade", upgrade
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    begun: list[_Relayed] = []
    try:
        async with session.request(
            request.method,
            URL(f"http://inside{target}", encoded=True),
            headers=sent,
            data=_body(request) if request.body_exists else None,
            skip_auto_headers=_AUTOMATIC,
            allow_redirects=False,
        ) as answer:
            if answer.status == _SWITCHING:
                return await _switch(request, answer, outward, begun)
            return await _pass(request, answer, outward, begun)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        if not begun:
            raise BrokenInsideError(type(error).__name__) from error
        # Left unfinished, and visibly so: that is what happened to it.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke off") from error


async def _body(request: web.BaseRequest) -> AsyncGenerator[bytes]:
    content = request.content
    while True:
        async with asyncio.timeout(IDLE_SECONDS):
            data = await content.readany()
        if not data:
            return
        yield data


async def _pass(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, outward: Outward, begun: list[_Relayed]
) -> web.StreamResponse:
    response = _Relayed(answer.status, answer.reason, CIMultiDict(outward(_pairs(answer.raw_headers))))
    begun.append(response)
    await response.prepare(request)
    if request.method != "HEAD":
        async for data in answer.content.iter_any():
            await response.write(data)
    await response.write_eof()
    return response


def _pairs(raw: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw]


class _Feed:
    """Bytes of one side of a raw stream, on their way to the other."""

    def __init__(self, protocol: BaseProtocol) -> None:
        self._protocol = protocol
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._held = False
        self._over = False
        self._news = asyncio.Event()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes in (the server's call)."""
        self._pieces.append(bytes(data))
        self._size += len(data)
        if self._size > _FEED_BYTES and not self._held:
            self._held = True
            self._protocol.pause_reading()
        self._news.set()
        return False, b""

    def feed_eof(self) -> None:
        """Nothing more comes (the server's call)."""
        self._over = True
        self._news.set()

    async def pieces(self) -> AsyncGenerator[bytes]:
        while True:
            while self._pieces:
                data = self._pieces.popleft()
                self._size -= len(data)
                if self._held and self._size <= _FEED_BYTES // 2:
                    self._held = False
                    self._protocol.resume_reading()
                yield data
            if self._over:
                return
            self._news.clear()
            await self._news.wait()


async def _switch(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, outward: Outward, begun: list[_Relayed]
) -> web.StreamResponse:
    """Pass bytes both ways, unread, until one side ends."""
    connection = answer.connection
    inside = None if connection is None else connection.protocol
    asked, protocol = request.headers.get("Upgrade", ""), answer.headers.get("Upgrade", "")
    if inside is None or not asked or protocol.lower() != asked.lower():
        raise aiohttp.ClientPayloadError("an upgrade that nobody asked for")
    headers = CIMultiDict(outward(_pairs(answer.raw_headers)))
    headers["Connection"], headers["Upgrade"] = "Upgrade", protocol
    response = _Relayed(_SWITCHING, answer.reason, headers)
    response.force_close()
    begun.append(response)
    await response.prepare(request)
    from_client, from_inside = _Feed(request.protocol), _Feed(inside)
    request.protocol.set_parser(_any(from_client))
    inside.set_parser(_any(from_inside), None)
    async with asyncio.TaskGroup() as group:
        ways = {
            group.create_task(_to_inside(from_client, inside)),
            group.create_task(_to_client(from_inside, response)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
    return response


def _any(feed: _Feed) -> Any:
    """What a parser is for aiohttp: its type names only the one of WebSockets."""
    return feed


async def _to_inside(feed: _Feed, inside: BaseProtocol) -> None:
    async for data in feed.pieces():
        if inside.transport is None:
            return
        inside.transport.write(data)
        await inside._drain_helper()  # noqa: SLF001 - aiohttp's own writers wait here too


async def _to_client(feed: _Feed, response: web.StreamResponse) -> None:
    async for data in feed.pieces():
        await response.write(data)
