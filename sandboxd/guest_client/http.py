"""The guest's client over HTTP: bounded in size and time, trusting nothing that comes back.

What frames and records say is checked above, in `sandboxd.processes`.
"""

import asyncio
import base64
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from sandboxd.contract.frames import Batch, Decoder, Frame, FrameError
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.base import (
    Duplex,
    FeedRequest,
    FollowedStart,
    GuestAttachment,
    GuestError,
    GuestUnreachableError,
    Health,
    Init,
    InitResult,
    Started,
)
from sandboxd.guest_client.connection import GuestConnection, Limits
from sandboxd.guest_client.feed import open_feed
from sandboxd.guest_client.files import HttpFiles
from sandboxd.guest_client.pace import Pace
from sandboxd.guest_client.stream import FrameStream
from sandboxd.guest_client.upgrade import attached, dialled
from sandboxd.guest_client.wire import parse_health, parse_init_result, render_init


class HttpGuest:
    """A Guest behind an address."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        open_socket: Callable[[], socket.socket],
        port: int = GUEST_PORT,
        limits: Limits | None = None,
    ) -> None:
        self._connection = GuestConnection(address, token, open_socket=open_socket, port=port, limits=limits)
        self._pace = Pace()
        self.files = HttpFiles(self._connection, self._pace)

    async def listening(self) -> None:
        await self._connection.listening()

    async def health(self, timeout_seconds: float = 5) -> Health:
        return parse_health(await self._connection.json("GET", "health", seconds=timeout_seconds))

    async def init(self, init: Init, timeout_seconds: float = 10) -> InitResult:
        body = render_init(init, base64.b64encode(init.seed).decode())
        result = parse_init_result(await self._connection.json("POST", "init", json=body, seconds=timeout_seconds))
        if init.token is not None:
            self._connection.use(init.token)
        return result

    async def set_backstop(self, seconds: float | None) -> None:
        await self._connection.nothing("POST", "backstop", json={"seconds": seconds})

    async def start(self, spec: dict[str, Any]) -> Started:
        response = await self._connection.send(
            "POST", "processes", json=spec, seconds=self._connection.limits.start_seconds
        )
        process = await self._connection.body_object(response)
        return Started(process=process, joined=response.status == 200)

    def start_followed(self, spec: dict[str, Any]) -> AbstractAsyncContextManager[FollowedStart]:
        return self._start_followed(spec)

    @asynccontextmanager
    async def _start_followed(self, spec: dict[str, Any]) -> AsyncGenerator[FollowedStart]:
        response = await self._connection.send(
            "POST", "processes", query={"follow": "1"}, json=spec, seconds=self._connection.limits.start_seconds
        )
        stream = self._stream(response, self._connection.limits.stall_seconds, follow=True)
        try:
            process = await stream.attached()
            yield _Followed(Started(process=process, joined=response.status == 200), stream)
        finally:
            await stream.close()

    async def processes(self, state: str | None, tag: str | None) -> list[dict[str, Any]]:
        query = {name: value for name, value in (("state", state), ("tag", tag)) if value is not None}
        answer = await self._connection.json(
            "GET", "processes", query=query, max_bytes=self._connection.limits.list_bytes
        )
        items: Any = answer.get("items")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):  # pyright: ignore[reportUnknownVariableType] - JSON
            raise GuestError("the guest's list holds no objects")
        return items  # pyright: ignore[reportUnknownVariableType] - checked one line above

    async def process(self, process_id: str, wait_seconds: float = 0) -> dict[str, Any]:
        query = {"wait_seconds": f"{wait_seconds:.3f}"} if wait_seconds > 0 else {}
        seconds = self._connection.limits.answer_seconds + wait_seconds
        return await self._connection.json("GET", f"processes/{process_id}", query=query, seconds=seconds)

    def output(
        self,
        process_id: str,
        *,
        after: int = 0,
        tail_bytes: int | None = None,
        follow: bool = False,
        keepalive_seconds: float = 15,
    ) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        query = {"after": str(after)} if tail_bytes is None else {"tail_bytes": str(tail_bytes)}
        if follow:
            query |= {"follow": "1", "keepalive_seconds": f"{keepalive_seconds:g}"}
        silence = 3 * keepalive_seconds if follow else self._connection.limits.answer_seconds
        return self._output(process_id, query, silence_seconds=silence, follow=follow)

    @asynccontextmanager
    async def _output(
        self, process_id: str, query: dict[str, str], *, silence_seconds: float, follow: bool
    ) -> AsyncGenerator[AsyncGenerator[Batch]]:
        response = await self._connection.send("GET", f"processes/{process_id}/output", query=query)
        stream = self._stream(response, silence_seconds, follow=follow)
        try:
            yield stream.batches()
        finally:
            await stream.close()

    async def head(self, process_id: str) -> list[Frame]:
        response = await self._connection.send("GET", f"processes/{process_id}/head")
        body = await self._connection.body(response, self._connection.limits.head_bytes)
        decoder = Decoder()
        try:
            frames = list(decoder.feed(body))
            decoder.finish()
        except FrameError as error:
            raise GuestError(str(error)) from error
        return frames

    async def write_stdin(
        self, process_id: str, body: AsyncIterator[bytes], *, offset: int | None, close: bool
    ) -> dict[str, Any]:
        query = {"close": "1"} if close else {}
        if offset is not None:
            query["offset"] = str(offset)
        loop = asyncio.get_running_loop()
        failure: list[Exception] = []
        scope = asyncio.timeout(self._connection.limits.stall_seconds)

        async def pump() -> AsyncGenerator[bytes]:
            try:
                async for data in body:
                    scope.reschedule(loop.time() + self._connection.limits.stall_seconds)
                    yield data
                scope.reschedule(loop.time() + self._connection.limits.stall_seconds)
            except Exception as error:
                failure.append(error)
                raise

        try:
            async with scope:
                response = await self._connection.send(
                    "POST",
                    f"processes/{process_id}/stdin",
                    query=query,
                    data=pump(),
                    seconds=self._connection.limits.write_seconds,
                )
                return await self._connection.body_object(response)
        except TimeoutError as error:
            raise GuestUnreachableError("the guest takes no standard input") from error
        except GuestUnreachableError:
            if failure:
                raise failure[0] from None
            raise

    def attach(
        self, process_id: str, *, after: int = 0, tail_bytes: int | None = None
    ) -> AbstractAsyncContextManager[GuestAttachment]:
        return attached(self._connection, self._pace, process_id, after=after, tail_bytes=tail_bytes)

    def dial(self, port: int) -> AbstractAsyncContextManager[Duplex]:
        return dialled(self._connection, port)

    async def signal(self, process_id: str, signal: str, scope: str, key: str | None) -> None:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"signal": signal, "scope": scope}
        path = f"processes/{process_id}/signal"
        await self._connection.nothing("POST", path, json=body, headers=headers, again=key is not None)

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        await self._connection.nothing("POST", f"processes/{process_id}/resize", json={"rows": rows, "cols": cols})

    async def metrics(self) -> dict[str, Any]:
        return await self._connection.json("GET", "metrics")

    async def ports(self, port: int | None, wait_seconds: float) -> dict[str, Any]:
        query = {"wait_seconds": f"{wait_seconds:.3f}"} | ({} if port is None else {"port": str(port)})
        seconds = self._connection.limits.answer_seconds + wait_seconds
        return await self._connection.json("GET", "ports", query=query, seconds=seconds)

    def feed(self, request: FeedRequest) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        return open_feed(self._connection, request)

    async def shutdown(self, grace_seconds: float) -> None:
        body = {"grace_seconds": grace_seconds}
        await self._connection.json(
            "POST", "shutdown", json=body, seconds=self._connection.limits.answer_seconds + grace_seconds
        )

    async def close(self) -> None:
        await self._connection.close()

    def _stream(self, response: aiohttp.ClientResponse, silence_seconds: float, *, follow: bool) -> FrameStream:
        settle_seconds = self._connection.limits.settle_seconds
        return FrameStream(
            response, self._pace, silence_seconds=silence_seconds, settle_seconds=settle_seconds, follow=follow
        )


@dataclass(frozen=True, slots=True)
class _Followed:
    started: Started
    stream: FrameStream

    def batches(self) -> AsyncGenerator[Batch]:
        return self.stream.batches()
