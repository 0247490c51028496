"""Requests to one guest: every answer bounded in bytes and time, headers included; every wait has an end.

No redirect is followed, no cookie kept, nothing unpacked.
"""

import asyncio
import functools
import io
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from pydantic_core import to_json
from yarl import URL

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.wire import parse_object, parse_problem

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
    work_seconds: float = 600.0
    """Work on a whole tree, or on what was packed: as long as the sandbox's disk takes."""
    settle_seconds: float = 0.02
    """How long the end of a body may follow the exit frame for its connection to be kept."""
    idle_seconds: float = 30.0


BROKEN: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError, TimeoutError)
SUCCESSES: Final = frozenset({200, 201, 204})
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


class _Answers(ResponseHandler):
    """A connection that is dropped when a guest sends answers nobody asked for: the library would keep them all."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > _MAX_UNREAD_ANSWERS and self.transport is not None:
            self.transport.abort()


class GuestConnection:
    """The connections to one guest: opened when they are needed, and kept."""

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
        self.limits = limits or Limits()
        self._open_socket = open_socket
        self._opened: aiohttp.ClientSession | None = None
        self._closed = False

    async def listening(self) -> None:
        """Return once it takes connections."""
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

    def use(self, token: str) -> None:
        """Make every later request with another token; what is open stays."""
        self._token = token
        if self._opened is not None:
            self._opened.headers["Authorization"] = f"Bearer {token}"

    async def close(self) -> None:
        """Drop them all."""
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
            keepalive_timeout=self.limits.idle_seconds,
            use_dns_cache=False,
            ssl=False,
            happy_eyeballs_delay=None,
            socket_factory=self._socket_for,
        )
        loop = asyncio.get_running_loop()
        # The library has no public way to bound what an idle connection takes in.
        setattr(connector, "_factory", functools.partial(_Answers, loop=loop))  # noqa: B010 - a private attribute
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {self._token}"},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self.limits.connect_seconds, sock_connect=self.limits.connect_seconds
            ),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BYTES,
            max_line_size=1024,
            max_field_size=4096,
            max_headers=32,
        )

    async def connected(self) -> socket.socket:
        """Return a connection of its own, outside the kept ones. GuestUnreachableError."""
        if self._closed:
            raise GuestUnreachableError("the client is closed")
        made = self._open_socket()
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self.limits.connect_seconds):
                await asyncio.get_running_loop().sock_connect(made, (self._url.host, self._url.port))
        except (OSError, TimeoutError) as error:
            made.close()
            raise GuestUnreachableError(f"no connection: {type(error).__name__}") from error
        except BaseException:
            made.close()
            raise
        return made

    def upgrade_head(self, path: str, query: dict[str, str], protocol: str) -> bytes:
        """Return the request that turns a connection into a stream."""
        target = self._url.joinpath("v1", path, encoded=True).with_query(query).raw_path_qs
        return (
            f"GET {target} HTTP/1.1\r\nHost: {self._url.host}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        ).encode("ascii")

    def _socket_for(self, _address: object) -> socket.socket:
        return self._open_socket()

    async def json(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        response = await self.send(method, path, query=query, json=json, seconds=seconds)
        return await self.body_object(response, max_bytes)

    async def nothing(
        self,
        method: str,
        path: str,
        *,
        json: dict[str, Any],
        headers: dict[str, str] | None = None,
        again: bool = True,
    ) -> None:
        response = await self.send(method, path, json=json, headers=headers, again=again)
        await self.body(response, self.limits.error_bytes)

    async def send(  # noqa: PLR0913 - the parts of a request
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | list[str]] | None = None,
        json: dict[str, Any] | None = None,
        data: bytes | AsyncGenerator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float | None = None,
        again: bool = True,
        statuses: frozenset[int] = SUCCESSES,
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
        if response.status in statuses and "Content-Encoding" not in response.headers:
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
            async with asyncio.timeout(self.limits.answer_seconds if seconds is None else seconds):
                return await self._session.request(method, url, data=sent, headers=headers, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError as error:
            if len(self._session.connector._acquired if self._session.connector else ()) >= MAX_CONNECTIONS:  # noqa: SLF001 - the only way to tell the pool from the peer
                raise ProblemError(
                    "too_many_streams", "Too many calls on this sandbox at once.", limit=MAX_CONNECTIONS
                ) from None
            raise GuestUnreachableError("no connection in time") from error
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            raise GuestError("the guest does not speak HTTP") from error
        except BROKEN as error:
            raise GuestUnreachableError(f"no answer: {type(error).__name__}") from error

    async def _refuse(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """Raise what an answer that is no success means."""
        if response.status < 400:
            response.close()
            raise GuestError(f"the guest answered {response.status}")
        body = await self.body(response, self.limits.error_bytes)
        raise parse_problem(response.status, body)

    async def body_object(self, response: aiohttp.ClientResponse, max_bytes: int | None = None) -> dict[str, Any]:
        return parse_object(await self.body(response, max_bytes or self.limits.json_bytes))

    async def body(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """Read a whole body within both limits."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                while data := await response.content.readany():
                    parts.append(data)
                    size += len(data)
                    if size > max_bytes:
                        raise GuestError(f"the guest's answer is beyond {max_bytes} bytes")
        except BROKEN as error:
            raise GuestUnreachableError(f"the answer broke off: {type(error).__name__}") from error
        except HttpProcessingError as error:
            raise GuestError("the guest does not speak HTTP") from error
        finally:
            let_go(response)
        return b"".join(parts)


def let_go(response: aiohttp.ClientResponse) -> None:
    if response.content.at_eof():
        response.release()
    else:
        response.close()
