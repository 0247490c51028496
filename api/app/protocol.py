"""HTTP as it comes in from anybody: a bounded head, in bounded time, and one reading of where a request ends.

What surrounds a request is held in memory before anybody knows who sent it, so there is a limit to it.
"""

import asyncio
import os
from typing import Any, Final

import httptools
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.routes.passage import SWITCH, Side
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import MEDIA_TYPE, ProblemError
from tunnels.limits import Limits

MAX_LINE_BYTES: Final = 8000
"""One header, or the request's path with its query: a node takes 8190 bytes of each."""
MAX_HEAD_BYTES: Final = 65_536
"""All that precedes a body, or follows it."""
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 30.0
"""From the first byte of a request, or from the connection's beginning, to the end of its headers."""
_BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})


class _RefusedError(Exception):
    """What has been read so far is not taken."""


class PublicProtocol(HttpToolsProtocol):
    """One connection from anybody."""

    _refusal = "The request is not HTTP."
    _deaf = False
    _in_head = False
    _unpromising_bytes = 0
    """Bytes since the last end of headers or piece of a body: the parser keeps them."""
    _head_timer: asyncio.TimerHandle | None = None
    _side: Side | None = None
    """Whose connection this is once it is no longer HTTP's."""
    _spoke_early = False
    _address: str | None = None
    """Of who is counted."""

    def __init__(self, limits: Limits, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else "unknown"
        if not self._limits.enter(address):
            self._deaf = True
            transport.abort()
            return
        self._address = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None:
            self._limits.leave(self._address)
            self._address = None
        self._head_came()
        if self._side is not None:
            self._side.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._side is not None:
            self._side.received(data)
            return
        if self._deaf or self.parser is None:
            self._spoke_early = True
            return
        self._unset_keepalive_if_required()
        self._unpromising_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Whatever follows is in no protocol that was agreed on: it is not read, and never becomes a request.
            self._deaf = True
            self._spoke_early = upgrade.args[0] < len(data)
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._unpromising_bytes > MAX_HEAD_BYTES:
                self._refusal = f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."
                self._refuse()
            elif self._in_head:
                self._expect_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        self._unpromising_bytes = 0
        if (wrong := self._wrong_with_head()) is not None:
            self._refusal = wrong
            raise _RefusedError
        super().on_headers_complete()
        if self._asks_for_upgrade():
            self.cycle.keep_alive = False
            if self.scope["method"] == "GET" and self._get_upgrade() == b"websocket":
                self.scope[SWITCH] = self._switch  # pyright: ignore[reportGeneralTypeIssues] - an extension of ours

    def _switch(self, head: bytes, side: Side) -> asyncio.Transport:
        """Take this connection out of HTTP, for good. Only routes of WebSockets do, once a node has agreed."""
        if self._spoke_early or self.transport.is_closing():
            raise ConnectionError("The client spoke before the WebSocket was open.")
        self.cycle.response_started = self.cycle.response_complete = True
        self._side = side
        self.transport.write(head)
        self.flow.resume_reading()
        return self.transport

    def pause_writing(self) -> None:
        if self._side is not None:
            self._side.hold()
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._side is not None:
            self._side.go_on()
        super().resume_writing()

    def shutdown(self) -> None:
        if self._side is not None:
            self._side.leave()
        else:
            super().shutdown()

    def on_body(self, body: bytes) -> None:
        self._unpromising_bytes = 0
        super().on_body(body)

    def _wrong_with_head(self) -> str | None:
        sizes = [len(name) + len(value) for name, value in self.headers]
        if max(len(self.url), *sizes, 0) > MAX_LINE_BYTES:
            return f"The path with its query, or a header, is longer than {MAX_LINE_BYTES} bytes."
        if sum(sizes) > MAX_HEAD_BYTES or len(sizes) > MAX_HEADERS:
            return f"There are more than {MAX_HEADERS} headers, or more than {MAX_HEAD_BYTES} bytes of them."
        # The parser takes an upgrade for the end of the request: a body would be read as the next one.
        if self._asks_for_upgrade() and any(name in _BODY_HEADERS for name, _ in self.headers):
            return "A request with a body cannot ask for an upgrade to another protocol."
        return None

    def _asks_for_upgrade(self) -> bool:
        return self.parser is not None and self.parser.should_upgrade()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_came(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refusal = f"The request's headers took longer than {HEAD_SECONDS:g} s."
        self._refuse()

    def _refuse(self) -> None:
        """Say what is wrong, unless that would land in the middle of an answer; then hang up."""
        self._deaf = True
        self._head_came()
        answering = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None before the first request
        if self.transport.is_closing():
            return
        if answering and (self.cycle.response_started or self.pipeline):
            self.transport.abort()
            return
        request_id = new_id("req", os.urandom)
        body = to_json(ProblemError("malformed_request", self._refusal).body(request_id))
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"sandlot-request-id: {request_id}\r\n"
            "cache-control: no-store\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
