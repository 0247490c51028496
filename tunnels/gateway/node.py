"""The gateway's link to its node: calls of the data plane, streams into sandboxes, and word that we are here."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from pydantic import ValidationError

from tunnels.ways import LENGTH_BYTES, MOST_BYTES, StreamAnswer, StreamRequest, pack

_CONNECT_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 60.0
"""A node waits 30 s for a sandbox that is not ready yet."""
_HELLO_SECONDS: Final = 5.0
_KEPT_SECONDS: Final = 10.0
"""How long a stream waits for its client's next request: an open one is use of the sandbox."""
_READ_BUFFER: Final = 256 * 1024
IDLE_SECONDS: Final = 620.0
"""Without a byte for so long an answer counts as broken; longer than any balancer in front of us would wait."""


class NodeAwayError(Exception):
    """The node does not answer, or not in a way that can be understood."""


class _Given(aiohttp.BaseConnector):
    """A connector of one connection, which is there already."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__(limit=1, keepalive_timeout=_KEPT_SECONDS)
        self._link: socket.socket | None = link
        self._protocol: ResponseHandler | None = None

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ARG002 - the base's
        link, self._link = self._link, None
        if link is None:
            raise aiohttp.ClientConnectionError("used already")
        made = await self._loop.create_unix_connection(self._factory, sock=link)
        self._protocol = made[1]
        return made[1]

    @property
    def is_connected(self) -> bool:
        return self._protocol is not None and self._protocol.is_connected()

    def cut(self) -> None:
        """End the connection, whatever was made of it."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._close()


def _session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=IDLE_SECONDS),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class NodeLink:
    """The node's two sockets for its gateway."""

    def __init__(self, directory: Path) -> None:
        self._calls_path = str(directory / "calls.sock")
        self._streams_path = str(directory / "streams.sock")
        self.calls = _session(aiohttp.UnixConnector(self._calls_path, limit=0, keepalive_timeout=30))

    async def close(self) -> None:
        await self.calls.close()

    async def hello(self, body: dict[str, Any]) -> bool:
        """Say that the gateway is here, and how it is reached; tells whether the node has heard it."""
        try:
            async with (
                asyncio.timeout(_HELLO_SECONDS),
                self.calls.put("http://node/gateway/v1/hello", json=body) as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def stream(self, asked: StreamRequest) -> tuple[StreamAnswer, socket.socket | None]:
        """Ask for a stream; without a problem in the answer the connection is that stream. NodeAwayError."""
        loop = asyncio.get_running_loop()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(link, self._streams_path)
                await loop.sock_sendall(link, pack(asked))
            async with asyncio.timeout(_ANSWER_SECONDS):
                length = min(int.from_bytes(await _exactly(loop, link, LENGTH_BYTES)), MOST_BYTES)
                answer = StreamAnswer.model_validate_json(await _exactly(loop, link, length))
        except (OSError, TimeoutError, ValidationError) as error:
            link.close()
            raise NodeAwayError(type(error).__name__) from error
        except BaseException:
            link.close()
            raise
        if answer.problem is not None:
            link.close()
            return answer, None
        return answer, link


class Stream:
    """A stream into a sandbox, for requests of one client with the same credentials, one after the other."""

    def __init__(self, key: Sequence[object], answer: StreamAnswer, link: socket.socket) -> None:
        """`key` is what it was asked for with."""
        self._key = tuple(key)
        self.answer = answer
        self._given = _Given(link)
        self.session = _session(self._given)

    def is_for(self, key: Sequence[object], now_seconds: float) -> bool:
        """Tell whether a request may use it again. Who may no longer has had it cut by the node; but tokens expire."""
        expires_at = self.answer.expires_at
        return self._key == tuple(key) and self.is_open and (expires_at is None or now_seconds < expires_at)

    @property
    def is_open(self) -> bool:
        return self._given.is_connected

    def cut(self) -> None:
        """End it. Idempotent."""
        self.session.detach()
        self._given.cut()


async def _exactly(loop: asyncio.AbstractEventLoop, link: socket.socket, count: int) -> bytes:
    """Read so many bytes and not one more: what follows is the stream's."""
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(link, count - len(data))
        if not piece:
            raise NodeAwayError("the node hung up")
        data += piece
    return data
