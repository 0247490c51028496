"""The guest's calls on files over HTTP: bounded answers, streams passed on in the pieces they come in."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import BROKEN, GuestConnection, let_go
from sandboxd.guest_client.file_calls import Content, ExtractOptions, Part, Target, WriteOptions, encoded
from sandboxd.guest_client.pace import STEP_FRAMES, Pace

NDJSON: Final = "application/x-ndjson"
_ANSWERS: Final = frozenset({200, 304})
MAX_LINE_BYTES: Final = 65_536
"""Above two paths in base64 and what else there is."""


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _given(**fields: object) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items() if value is not None}


class HttpFiles:
    """GuestFiles over a connection."""

    def __init__(self, connection: GuestConnection, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace

    async def stat(self, target: Target, *, follow: bool) -> dict[str, Any]:
        return await self._connection.json("GET", "files/stat", query=target.query() | {"follow": _flag(follow)})

    async def readable(self, target: Target) -> dict[str, Any]:
        return await self._connection.json("GET", "files", query=target.query() | {"head": "1"})

    def read(self, target: Target, part: Part, unless: str | None) -> AbstractAsyncContextManager[Content]:
        return self._read(target, part, unless)

    @asynccontextmanager
    async def _read(self, target: Target, part: Part, unless: str | None) -> AsyncGenerator[Content]:
        query = target.query() | _given(first=part.first, last=part.last, suffix=part.suffix)
        headers = _given(**{"If-None-Match": unless})
        async with self._opened("files", query, headers) as response:
            etag = response.headers.get("ETag", "")
            if response.status == 304:
                yield Content(etag=etag, unchanged=True)
                return
            yield Content(
                etag=etag,
                offset=response.headers.get("Sandlot-Offset", ""),
                size=response.headers.get("Sandlot-Size", ""),
                length=response.content_length,
                pieces=self._pieces(response),
            )

    async def write(
        self, target: Target, body: AsyncIterator[bytes], options: WriteOptions
    ) -> tuple[dict[str, Any], bool]:
        query = target.query() | {"parents": _flag(options.parents), "append": _flag(options.append)}
        query |= _given(mode=options.mode, encoding=options.encoding)
        headers = _given(**{"If-Match": options.match, "If-None-Match": options.non_match})
        answer, status = await self._push("files", query, body, headers, options.length)
        return answer, status == 201

    async def change(self, target: Target, changes: dict[str, str], *, recursive: bool) -> dict[str, Any]:
        query = target.query() | changes | {"recursive": _flag(recursive)}
        return await self._connection.json("PATCH", "files", query=query, seconds=self._long)

    async def remove(self, target: Target, *, recursive: bool, missing_ok: bool) -> None:
        query = target.query() | {"recursive": _flag(recursive), "missing_ok": _flag(missing_ok)}
        response = await self._connection.send("DELETE", "files", query=query, seconds=self._long)
        await self._connection.body(response, self._connection.limits.error_bytes)

    async def move(self, target: Target, to: bytes, *, overwrite: bool) -> dict[str, Any]:
        query = target.query() | {"to_base64": encoded(to), "overwrite": _flag(overwrite)}
        return await self._connection.json("POST", "files/move", query=query)

    async def make_directory(self, target: Target, mode: str | None, *, parents: bool) -> tuple[dict[str, Any], bool]:
        query = target.query() | {"parents": _flag(parents)} | _given(mode=mode)
        response = await self._connection.send("PUT", "directories", query=query)
        return await self._connection.body_object(response), response.status == 201

    def listing(
        self, target: Target, *, depth: int, limit: int, after: bytes
    ) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        query = target.query() | {"depth": str(depth), "limit": str(limit), "after_base64": encoded(after)}
        return self._lined("directories", query)

    def pack(
        self, target: Target, archive_format: str, exclude: list[str]
    ) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
        return self._pack(target, archive_format, exclude)

    @asynccontextmanager
    async def _pack(
        self, target: Target, archive_format: str, exclude: list[str]
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        query: dict[str, str | list[str]] = {**target.query(), "format": archive_format}
        if exclude:
            query["exclude"] = exclude
        async with self._opened("archive", query, {}) as response:
            yield self._pieces(response)

    async def unpack(self, target: Target, body: AsyncIterator[bytes], options: ExtractOptions) -> dict[str, Any]:
        query = target.query() | {
            "format": options.archive_format,
            "strip_components": str(options.strip),
            "overwrite": _flag(options.overwrite),
        }
        answer, _ = await self._push("archive", query, body, {}, options.length)
        return answer

    def watch(self, target: Target, *, recursive: bool) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        return self._lined("watch", target.query() | {"recursive": _flag(recursive)})

    @property
    def _long(self) -> float:
        """How long what works on whole trees may take."""
        return self._connection.limits.work_seconds

    @asynccontextmanager
    async def _opened(
        self, path: str, query: dict[str, Any], headers: dict[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        response = await self._connection.send(
            "GET", path, query=query, headers=headers, seconds=self._connection.limits.start_seconds, statuses=_ANSWERS
        )
        try:
            yield response
        finally:
            let_go(response)

    @asynccontextmanager
    async def _lined(self, path: str, query: dict[str, str]) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        async with self._opened(path, query, {}) as response:
            if response.content_type != NDJSON:
                raise GuestError("the guest sent something else than lines")
            yield self._lines(response)

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """Yield a body as it comes. GuestUnreachableError when it breaks off, or stops for long."""
        content = response.content
        stall_seconds = self._connection.limits.stall_seconds
        try:
            while True:
                async with asyncio.timeout(stall_seconds):
                    data = await content.readany()
                if not data:
                    return
                yield data
        except HttpProcessingError as error:
            raise GuestError("the guest does not speak HTTP") from error
        except BROKEN as error:
            raise GuestUnreachableError(f"the answer broke off: {type(error).__name__}") from error

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[list[bytes]]:
        """Yield whole lines as they come, no more of them than this sandbox's share of the node's time allows."""
        rest = b""
        loop = asyncio.get_running_loop()
        async for data in self._pieces(response):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
                raise GuestError(f"a line is longer than {MAX_LINE_BYTES} bytes")
            for at in range(0, len(lines), STEP_FRAMES):
                some = lines[at : at + STEP_FRAMES]
                await asyncio.sleep(self._pace.take(len(some), loop.time()))
                yield some
        if rest:
            raise GuestUnreachableError("the answer broke off within a line")

    async def _push(
        self,
        path: str,
        query: dict[str, str],
        body: AsyncIterator[bytes],
        headers: dict[str, str],
        length: int | None,
    ) -> tuple[dict[str, Any], int]:
        """Send a body of any length. What the body raises is raised; a guest that takes nothing is unreachable."""
        limits = self._connection.limits
        loop = asyncio.get_running_loop()
        failure: list[Exception] = []
        scope = asyncio.timeout(limits.stall_seconds)

        async def pump() -> AsyncGenerator[bytes]:
            try:
                async for data in body:
                    scope.reschedule(loop.time() + limits.stall_seconds)
                    yield data
                scope.reschedule(loop.time() + limits.work_seconds)
            except Exception as error:
                failure.append(error)
                raise

        sent = headers if length is None else headers | {"Content-Length": str(length)}
        try:
            async with scope:
                response = await self._connection.send(
                    "PUT", path, query=query, data=pump(), headers=sent, seconds=limits.write_seconds
                )
                return await self._connection.body_object(response), response.status
        except TimeoutError as error:
            raise GuestUnreachableError("the guest takes no more of the body") from error
        except GuestUnreachableError:
            if failure:
                raise failure[0] from None
            raise
