"""The guest's client over HTTP: bounded in size and time, trusting nothing that comes back.

Every answer has a limit in bytes, headers included; every wait has an end. No redirect is followed, no cookie kept,
nothing unpacked. What frames and records say is checked above, in `sandboxd.processes`.
"""

import asyncio
import base64
import functools
import io
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from pydantic_core import to_json
from yarl import URL

from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.frames import Batch, Decoder, Frame, FrameError, FrameKind
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import (
    GUEST_PORT,
    FollowedStart,
    GuestError,
    GuestUnreachableError,
    Health,
    Init,
    InitResult,
    Started,
)
from sandboxd.guest_client.pace import STEP_FRAMES, Pace
from sandboxd.guest_client.wire import parse_health, parse_init_result, parse_object, parse_problem, render_init

MAX_CONNECTIONS: Final = 200
"""Below the 256 a guest takes, so that it is this client that says `too_many_streams`."""

READ_BYTES: Final = 262_144
LARGE_BYTES: Final = 524_288
"""Bodies above this are handed to the transport piece by piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a guest may make this client hold, and how long it may keep it waiting."""

    json_bytes: int = 1_048_576
    list_bytes: int = 8 * 1_048_576
    head_bytes: int = 1_048_576
    error_bytes: int = 65_536
    connect_seconds: float = 5.0
    answer_seconds: float = 15.0
    start_seconds: float = 30.0
    stall_seconds: float = 45.0
    """A guest that takes no byte of standard input answers within 30 s by itself; keep-alives come every 15 s."""
    write_seconds: float = 86_400.0
    """One call that writes standard input, as long as both ends go on."""
    settle_seconds: float = 0.02
    """How long the end of a body may follow the exit frame for its connection to be kept."""
    idle_seconds: float = 30.0


_BROKEN: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError, TimeoutError)
_MAX_UNREAD_ANSWERS: Final = 4

_FIRST_NAP_SECONDS: Final = 0.008
_NAP_SHARE: Final = 0.2
_LONGEST_NAP_SECONDS: Final = 0.02
"""Between two tries to connect: a share of the time waited so far. A guest listens some 15 ms after its start, seldom
sooner; and each try costs both ends some 0.2 ms of a processor, which the one that is starting could do with."""
_FIRST_TRY_SECONDS: Final = 0.25
_LONGEST_TRY_SECONDS: Final = 4.0
"""A packet sent before the sentry's network is up is lost, and TCP sends the next a second later: rather try anew.
Later tries wait longer, for a host so busy that the answer takes its time."""


class _Connection(ResponseHandler):
    """A connection that is dropped when a guest sends answers nobody asked for: the library would keep them all."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > _MAX_UNREAD_ANSWERS and self.transport is not None:
            self.transport.abort()


class HttpGuest:
    """A Guest behind an address. Opens connections when they are needed and keeps them."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        open_socket: Callable[[], socket.socket],
        port: int = GUEST_PORT,
        limits: Limits | None = None,
    ) -> None:
        self._url = URL.build(scheme="http", host=address, port=port)
        self._token = token
        self._limits = limits or Limits()
        self._open_socket = open_socket
        self._opened: aiohttp.ClientSession | None = None
        self._closed = False
        self._pace = Pace()

    async def listening(self) -> None:
        patience = _FIRST_TRY_SECONDS
        began = asyncio.get_running_loop().time()
        while True:
            with self._open_socket() as probe:
                try:
                    async with asyncio.timeout(patience):
                        await self._connected(probe, began)
                except (OSError, TimeoutError):
                    patience = min(patience * 1.5, _LONGEST_TRY_SECONDS)
                    await asyncio.sleep(_FIRST_NAP_SECONDS)
                else:
                    return

    async def _connected(self, probe: socket.socket, began: float) -> None:
        """Connect, and again while that is refused: the same socket can."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.sock_connect(probe, (self._url.host, self._url.port))
            except ConnectionRefusedError:
                waited = loop.time() - began
                nap = max(_FIRST_NAP_SECONDS - waited, _NAP_SHARE * waited)
                await asyncio.sleep(min(nap, _LONGEST_NAP_SECONDS))

    async def health(self, timeout_seconds: float = 5) -> Health:
        return parse_health(await self._json("GET", "health", seconds=timeout_seconds))

    async def init(self, init: Init, timeout_seconds: float = 10) -> InitResult:
        body = render_init(init, base64.b64encode(init.seed).decode())
        return parse_init_result(await self._json("POST", "init", json=body, seconds=timeout_seconds))

    async def set_backstop(self, seconds: float | None) -> None:
        await self._nothing("POST", "backstop", json={"seconds": seconds})

    async def start(self, spec: dict[str, Any]) -> Started:
        response = await self._send("POST", "processes", json=spec, seconds=self._limits.start_seconds)
        process = await self._body_object(response)
        return Started(process=process, joined=response.status == 200)

    def start_followed(self, spec: dict[str, Any]) -> AbstractAsyncContextManager[FollowedStart]:
        return self._start_followed(spec)

    @asynccontextmanager
    async def _start_followed(self, spec: dict[str, Any]) -> AsyncGenerator[FollowedStart]:
        response = await self._send(
            "POST", "processes", query={"follow": "1"}, json=spec, seconds=self._limits.start_seconds
        )
        stream = self._stream(response, self._limits.stall_seconds, follow=True)
        try:
            process = await stream.attached()
            yield _Followed(Started(process=process, joined=response.status == 200), stream)
        finally:
            await stream.close()

    async def processes(self, state: str | None, tag: str | None) -> list[dict[str, Any]]:
        query = {name: value for name, value in (("state", state), ("tag", tag)) if value is not None}
        answer = await self._json("GET", "processes", query=query, max_bytes=self._limits.list_bytes)
        items: Any = answer.get("items")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):  # pyright: ignore[reportUnknownVariableType] - JSON
            raise GuestError("the guest's list holds no objects")
        return items  # pyright: ignore[reportUnknownVariableType] - checked one line above

    async def process(self, process_id: str, wait_seconds: float = 0) -> dict[str, Any]:
        query = {"wait_seconds": f"{wait_seconds:.3f}"} if wait_seconds > 0 else {}
        seconds = self._limits.answer_seconds + wait_seconds
        return await self._json("GET", f"processes/{process_id}", query=query, seconds=seconds)

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
        silence = 3 * keepalive_seconds if follow else self._limits.answer_seconds
        return self._output(process_id, query, silence_seconds=silence, follow=follow)

    @asynccontextmanager
    async def _output(
        self, process_id: str, query: dict[str, str], *, silence_seconds: float, follow: bool
    ) -> AsyncGenerator[AsyncGenerator[Batch]]:
        response = await self._send("GET", f"processes/{process_id}/output", query=query)
        stream = self._stream(response, silence_seconds, follow=follow)
        try:
            yield stream.batches()
        finally:
            await stream.close()

    async def head(self, process_id: str) -> list[Frame]:
        response = await self._send("GET", f"processes/{process_id}/head")
        body = await self._body(response, self._limits.head_bytes)
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
        scope = asyncio.timeout(self._limits.stall_seconds)

        async def pump() -> AsyncGenerator[bytes]:
            try:
                async for data in body:
                    scope.reschedule(loop.time() + self._limits.stall_seconds)
                    yield data
                scope.reschedule(loop.time() + self._limits.stall_seconds)
            except Exception as error:
                failure.append(error)
                raise

        try:
            async with scope:
                response = await self._send(
                    "POST",
                    f"processes/{process_id}/stdin",
                    query=query,
                    data=pump(),
                    seconds=self._limits.write_seconds,
                )
                return await self._body_object(response)
        except TimeoutError as error:
            raise GuestUnreachableError("the guest takes no standard input") from error
        except GuestUnreachableError:
            if failure:
                raise failure[0] from None
            raise

    async def signal(self, process_id: str, signal: str, scope: str, key: str | None) -> None:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"signal": signal, "scope": scope}
        path = f"processes/{process_id}/signal"
        await self._nothing("POST", path, json=body, headers=headers, again=key is not None)

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        await self._nothing("POST", f"processes/{process_id}/resize", json={"rows": rows, "cols": cols})

    async def write_file(self, path: str, body: bytes, *, user: str | None, mode: str | None) -> None:
        query = {"path": path, "parents": "1"}
        query |= {name: value for name, value in (("user", user), ("mode", mode)) if value is not None}
        response = await self._send("PUT", "files", query=query, data=body, seconds=self._limits.start_seconds)
        await self._body(response, self._limits.json_bytes)

    async def metrics(self) -> dict[str, Any]:
        return await self._json("GET", "metrics")

    async def shutdown(self, grace_seconds: float) -> None:
        body = {"grace_seconds": grace_seconds}
        await self._json("POST", "shutdown", json=body, seconds=self._limits.answer_seconds + grace_seconds)

    async def close(self) -> None:
        self._closed = True
        session, self._opened = self._opened, None
        if session is not None:
            await session.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise GuestUnreachableError("the client is closed")
        if self._opened is None:
            self._opened = self._open_session()
        return self._opened

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS,
            keepalive_timeout=self._limits.idle_seconds,
            use_dns_cache=False,
            ssl=False,
            happy_eyeballs_delay=None,
            socket_factory=self._socket_for,
        )
        loop = asyncio.get_running_loop()
        # The library has no public way to bound what an idle connection takes in.
        setattr(connector, "_factory", functools.partial(_Connection, loop=loop))  # noqa: B010 - a private attribute
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {self._token}"},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._limits.connect_seconds, sock_connect=self._limits.connect_seconds
            ),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BYTES,
            max_line_size=1024,
            max_field_size=4096,
            max_headers=32,
        )

    def _socket_for(self, _address: object) -> socket.socket:
        return self._open_socket()

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        response = await self._send(method, path, query=query, json=json, seconds=seconds)
        return await self._body_object(response, max_bytes)

    async def _nothing(
        self,
        method: str,
        path: str,
        *,
        json: dict[str, Any],
        headers: dict[str, str] | None = None,
        again: bool = True,
    ) -> None:
        response = await self._send(method, path, json=json, headers=headers, again=again)
        await self._body(response, self._limits.error_bytes)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        data: bytes | AsyncGenerator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float | None = None,
        again: bool = True,
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer with its body unread.

        `again`: the guest may have closed a kept connection just when it was used; every call but an appending write
        and a signal without key may be sent twice.
        """
        url = self._url.joinpath("v1", path, encoded=True)
        url = url.with_query(query) if query else url
        sent = dict(headers or {})
        if json is not None:
            data = to_json(json, inf_nan_mode="strings")
            sent["Content-Type"] = "application/json"
        try:
            response = await self._request(method, url, data, sent, seconds)
        except GuestUnreachableError as error:
            once_more = again and isinstance(error.__cause__, aiohttp.ServerDisconnectedError)
            if not once_more or isinstance(data, AsyncGenerator):
                raise
            response = await self._request(method, url, data, sent, seconds)
        if response.status in (200, 201, 204) and "Content-Encoding" not in response.headers:
            return response
        return await self._refuse(response)

    async def _request(
        self,
        method: str,
        url: URL,
        data: bytes | AsyncGenerator[bytes] | None,
        headers: dict[str, str],
        seconds: float | None,
    ) -> aiohttp.ClientResponse:
        sent = io.BytesIO(data) if isinstance(data, bytes) and len(data) > LARGE_BYTES else data
        try:
            async with asyncio.timeout(self._limits.answer_seconds if seconds is None else seconds):
                return await self._session.request(method, url, data=sent, headers=headers, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError as error:
            if len(self._session.connector._acquired if self._session.connector else ()) >= MAX_CONNECTIONS:  # noqa: SLF001 - the only way to tell the pool from the peer
                raise ProblemError(
                    "too_many_streams", "Too many calls on this sandbox at once.", limit=MAX_CONNECTIONS
                ) from None
            raise GuestUnreachableError("no connection in time") from error
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            raise GuestError("the guest does not speak HTTP") from error
        except _BROKEN as error:
            raise GuestUnreachableError(f"no answer: {type(error).__name__}") from error

    async def _refuse(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """Raise what an answer that is no success means."""
        if response.status < 400:
            response.close()
            raise GuestError(f"the guest answered {response.status}")
        body = await self._body(response, self._limits.error_bytes)
        raise parse_problem(response.status, body)

    def _stream(self, response: aiohttp.ClientResponse, silence_seconds: float, *, follow: bool) -> "_Stream":
        settle_seconds = self._limits.settle_seconds
        return _Stream(
            response, self._pace, silence_seconds=silence_seconds, settle_seconds=settle_seconds, follow=follow
        )

    async def _body_object(self, response: aiohttp.ClientResponse, max_bytes: int | None = None) -> dict[str, Any]:
        return parse_object(await self._body(response, max_bytes or self._limits.json_bytes))

    async def _body(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """Read a whole body within both limits."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                while data := await response.content.readany():
                    parts.append(data)
                    size += len(data)
                    if size > max_bytes:
                        raise GuestError(f"the guest's answer is beyond {max_bytes} bytes")
        except _BROKEN as error:
            raise GuestUnreachableError(f"the answer broke off: {type(error).__name__}") from error
        except HttpProcessingError as error:
            raise GuestError("the guest does not speak HTTP") from error
        finally:
            _let_go(response)
        return b"".join(parts)


class _Stream:
    """Frames of one response: whole ones only, each within a time."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        pace: Pace,
        *,
        silence_seconds: float,
        settle_seconds: float,
        follow: bool,
    ) -> None:
        self._response = response
        self._pace = pace
        self._more_held = False
        self._silence_seconds = silence_seconds
        self._settle_seconds = settle_seconds
        self._follow = follow
        self._decoder = Decoder()
        self._over = False
        self._first: Batch | None = None
        if response.content_type != FRAMES:
            response.close()
            raise GuestError("the guest sent something else than frames")

    async def attached(self) -> dict[str, Any]:
        """Read the first frame and return the process in it."""
        batch = await self._read()
        head = batch.heads[0]
        if head.kind != FrameKind.ATTACHED or head.skip:
            raise GuestError("the stream does not begin with the process")
        self._first = Decoder().cut(bytes(batch.data[head.end :]))
        return parse_object(bytes(batch.payload(head)))

    async def batches(self) -> AsyncGenerator[Batch]:
        """Yield whole frames to the end."""
        if self._first is not None and self._first.heads:
            yield self._first
            self._look_for_end(self._first)
        while not self._over:
            batch = await self._read()
            self._look_for_end(batch)
            yield batch

    def _look_for_end(self, batch: Batch) -> None:
        last = batch.heads[-1].kind
        self._over = last == FrameKind.EXIT or (last == FrameKind.KEEPALIVE and not self._follow)

    async def _read(self) -> Batch:
        """Read until there is a whole frame. A frame that trickles in counts as silence."""
        batch = await self._cut()
        if pause := self._pace.take(len(batch.heads), asyncio.get_running_loop().time()):
            await asyncio.sleep(pause)
        elif self._more_held:
            await asyncio.sleep(0)
        return batch

    async def _cut(self) -> Batch:
        content = self._response.content
        try:
            async with asyncio.timeout(self._silence_seconds):
                while True:
                    data = b"" if self._more_held else await content.readany()
                    if not data and not self._more_held:
                        raise GuestUnreachableError("the stream broke off before its end")
                    batch = self._decoder.cut(data, STEP_FRAMES)
                    self._more_held = len(batch.heads) == STEP_FRAMES
                    if batch.heads:
                        return batch
        except FrameError as error:
            raise GuestError(str(error)) from error
        except HttpProcessingError as error:
            raise GuestError("the guest does not speak HTTP") from error
        except _BROKEN as error:
            raise GuestUnreachableError(f"the stream broke off: {type(error).__name__}") from error

    async def close(self) -> None:
        """Keep the connection if the body ends right behind the last frame, else drop it."""
        content = self._response.content
        if self._over and not content.at_eof():
            try:
                async with asyncio.timeout(self._settle_seconds):
                    await content.readany()
            except (*_BROKEN, HttpProcessingError):
                pass
        _let_go(self._response)


def _let_go(response: aiohttp.ClientResponse) -> None:
    if response.content.at_eof():
        response.release()
    else:
        response.close()


@dataclass(frozen=True, slots=True)
class _Followed:
    started: Started
    stream: _Stream

    def batches(self) -> AsyncGenerator[Batch]:
        return self.stream.batches()
