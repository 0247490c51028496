"""Connections of clients: how many there may be, how long a head may take, and one reading of where requests end.

The parser is aiohttp's (llhttp, strict): both a length and chunks, a length twice, or a bare line end are refused.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from tunnels.gateway.answers import new_request_id, refuse
from tunnels.gateway.node import Stream
from tunnels.limits import Limits
from tunnels.problems import Refusal

HEAD_SECONDS: Final = 60.0
"""From the beginning of a connection, or the last answer on it, to the end of the next request's headers."""
MAX_LINE_BYTES: Final = 8190
"""A header, or a request's path with its query."""
MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 65_536
"""All headers of a request together."""
_LINGERING_SECONDS: Final = 2.0
_READ_BYTES: Final = 128 * 1024
_NOBODY: Final = logging.getLogger("tunnels.gateway.nobody")
"""What clients send is no business of our log."""

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(RequestHandler):
    """One client, and the stream that its last request went through."""

    __slots__ = ("_address", "_answered", "_head_bytes", "_kept", "_limits")

    def __init__(self, manager: "Server", limits: Limits, **options: Any) -> None:
        super().__init__(manager, **options)
        self._limits = limits
        self._address: str | None = None
        self._answered = 0
        self._head_bytes = 0
        """Of a head that is still coming in: the parser keeps them."""
        self._kept: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = address_of(transport)
        if not self._limits.enter(address):
            cast("asyncio.Transport", transport).abort()
            return
        self._address = address
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._address is not None:
            self._limits.leave(self._address)
            self._address = None
            self.keep(None)
            super().connection_lost(exc)

    @property
    def kept(self) -> Stream | None:
        """The stream of the last request, if it is still there."""
        return self._kept

    def keep(self, stream: Stream | None) -> None:
        """Keep a stream for the next request instead of the one before; not longer than the client is there."""
        if self._kept is not None and self._kept is not stream:
            self._kept.cut()
        self._kept = None
        if stream is not None and self._address is not None and stream.is_open:
            self._kept = stream
        elif stream is not None:
            stream.cut()

    def data_received(self, data: bytes) -> None:
        if self._address is None:
            return
        # Only then is what comes a head's: a body may go on after its answer.
        awaits_head, known = self._waiter is not None, self._request_count
        super().data_received(data)
        if not awaits_head or self._request_count > known:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_LINE_BYTES + MAX_HEAD_BYTES and self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> bool | None:  # pyright: ignore[reportIncompatibleMethodOverride] - asyncio's own type
        """Let a client that has said all it had to say read its answer."""
        transport, parser = self.transport, self._parser
        pending = self._request_count > self._answered
        if not pending or self.has_switched or transport is None or not transport.can_write_eof():
            return None
        try:
            if parser is not None:
                parser.feed_eof()
        except HttpProcessingError:
            return None  # in the middle of a body
        self.close()
        return True

    @property
    def has_switched(self) -> bool:
        """Whether what comes is no longer HTTP."""
        return bool(self._upgraded)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - a bool

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what is left of an answer (the base's call)."""
        self._answered += 1
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 - the base's signature
        message: str | None = None,  # noqa: ARG002 - it repeats what was sent
    ) -> web.StreamResponse:
        """Answer what cannot be read, or is our fault, and hang up."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        if status < 500:
            detail = "This is not HTTP as it is spoken here, or a line of it is too long."
            refusal = Refusal.of("malformed_request", detail, new_request_id())
        else:
            refusal = Refusal.of("internal", "This is a fault of the gateway.", new_request_id())
        answer = refuse(refusal, as_page=False)
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes connections."""

    def __init__(self, handle: Handle, limits: Limits) -> None:
        super().__init__(handle, handler_cancellation=True)
        self._limits = limits

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            self._limits,
            loop=self._loop,
            keepalive_timeout=HEAD_SECONDS,
            access_log=None,
            logger=_NOBODY,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=_LINGERING_SECONDS,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )


def address_of(transport: asyncio.BaseTransport | None) -> str:
    """Return the address of who is at the other end."""
    peer: Any = None if transport is None else transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else "unknown"  # pyright: ignore[reportUnknownArgumentType]
