"""What the gateway does with a request: finds where it leads, has the node decide, and passes it on."""

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from tunnels.gateway.answers import CORS, PREFLIGHT, REQUEST_ID, new_request_id, refuse
from tunnels.gateway.connections import MAX_HEAD_BYTES, Connection, address_of
from tunnels.gateway.forward import BrokenInsideError, exchange
from tunnels.gateway.node import NodeAwayError, NodeLink, Stream
from tunnels.hygiene import (
    HOP_BY_HOP,
    Credentials,
    credentials_of,
    inward,
    outward,
    token_cookie,
    upgrade_of,
    wants_html,
    without_token,
)
from tunnels.problems import Refusal
from tunnels.routing import PORT_HEADER, SANDBOX_HEADER, DataCall, Names, RoutingError, Visit
from tunnels.ways import StreamAnswer, StreamRequest

_NOT_HERE: Final = frozenset({"CONNECT", "TRACE"})
_SAFE: Final = frozenset({"GET", "HEAD"})
_TO_NODE: Final = frozenset(
    {
        "accept",
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "last-event-id",
        "range",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "traceparent",
        "tracestate",
        "x-api-key",
    }
)
"""A node is told what a call needs, and nothing else that a client sends."""
_NOT_TO_CLIENT: Final = HOP_BY_HOP | {"date", "server"}
_DAY_SECONDS: Final = 86_400


class RefusedError(Exception):
    """The request is answered with a problem."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Handler:
    """Serves requests."""

    names: Names
    node: NodeLink
    scheme: str

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = new_request_id()
        headers = _pairs(request)
        cors = False
        try:
            found = self._find(request)
            if isinstance(found, Visit):
                return await self._visit(request, found, headers, request_id)
            cors = True
            return await self._call(request, request_id)
        except RoutingError as error:
            if error.code == "route_not_found" and request.raw_path == "/healthz":
                return web.Response(body=b'{"status":"ok"}', content_type="application/json")
            refusal = Refusal.of(error.code, error.detail, request_id)
        except RefusedError as error:
            refusal = error.refusal
        return refuse(refusal, as_page=not cors and wants_html(headers), cors=cors)

    def _find(self, request: web.BaseRequest) -> Visit | DataCall:
        target = request.raw_path
        if request.method in _NOT_HERE:
            raise RoutingError("method_not_allowed", f"{request.method} is not served.")
        if not target.isascii() or not target.isprintable() or "#" in target or " " in target:
            raise RoutingError("malformed_request", "The path holds what must be written with %.")
        if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEAD_BYTES:
            raise RoutingError("malformed_request", f"The headers are longer than {MAX_HEAD_BYTES} bytes.")
        hosts, sandboxes, ports = (request.headers.getall(name, []) for name in ("Host", SANDBOX_HEADER, PORT_HEADER))
        return self.names.find(target, hosts, sandboxes, ports)

    async def _visit(
        self, request: web.BaseRequest, visit: Visit, headers: list[tuple[str, str]], request_id: str
    ) -> web.StreamResponse:
        passing = _Passing(self.scheme, request, visit, headers, credentials_of(headers, visit.target))
        connection = request.protocol
        if not isinstance(connection, Connection):
            raise TypeError("a connection of another server")
        key = (visit.sandbox_id, visit.port, *passing.credentials.tokens)
        kept = connection.kept
        if kept is not None and passing.may_be_repeated and kept.is_for(key, time.time()):
            # Closed inside meanwhile: nothing was answered, and nothing happens twice.
            with suppress(BrokenInsideError):
                return await passing.through(kept)
        connection.keep(None)
        stream = Stream(key, *await self._stream(request_id, visit, passing.client, passing.credentials))
        try:
            answer = await passing.through(stream)
        except BrokenInsideError as error:
            stream.cut()
            detail = f"What listens on port {visit.port} does not answer in HTTP."
            raise RefusedError(Refusal.of("port_not_listening", detail, request_id, reason="broken")) from error
        except BaseException:
            stream.cut()
            raise
        connection.keep(stream)
        return answer

    async def _stream(
        self, request_id: str, visit: Visit, client: str, credentials: Credentials
    ) -> tuple[StreamAnswer, socket.socket]:
        asked = StreamRequest(sandbox_id=visit.sandbox_id, port=visit.port, client=client, tokens=credentials.tokens)
        try:
            answer, link = await self.node.stream(asked)
        except NodeAwayError as error:
            raise RefusedError(_away(request_id)) from error
        if answer.problem is not None or link is None:
            problem = answer.problem or {}
            raise RefusedError(Refusal.passed_on({**problem, "request_id": request_id}))
        return answer, link

    async def _call(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=PREFLIGHT)
        headers = [(name, value) for name, value in _pairs(request) if name.lower() in _TO_NODE]
        headers.append((REQUEST_ID, request_id))
        own = [("Cache-Control", "no-store"), (REQUEST_ID, request_id), *CORS.items()]
        replaced = _NOT_TO_CLIENT | {name.lower() for name, _ in own}
        try:
            return await exchange(
                request,
                self.node.calls,
                request.raw_path,
                headers,
                lambda pairs: [*(pair for pair in pairs if pair[0].lower() not in replaced), *own],
                upgrade=upgrade_of(_headers_of_upgrade(request)),
            )
        except BrokenInsideError as error:
            raise RefusedError(_away(request_id)) from error


@dataclass(frozen=True, slots=True)
class _Passing:
    """One request on its way to a server inside."""

    scheme: str
    request: web.BaseRequest
    visit: Visit
    headers: list[tuple[str, str]] = field(repr=False)
    credentials: Credentials = field(repr=False)

    @property
    def client(self) -> str:
        return address_of(self.request.transport)

    @property
    def may_be_repeated(self) -> bool:
        return self.request.method in _SAFE and not self.request.body_exists and "Upgrade" not in self.request.headers

    async def through(self, stream: Stream) -> web.StreamResponse:
        """Pass the request through a stream. BrokenInsideError before anything was answered."""
        if self._came_by_address(stream.answer):
            return self._keep_token(stream.answer)
        request, visit = self.request, self.visit
        sent = inward(
            self.headers,
            visit,
            client=self.client,
            scheme=self.scheme,
            host=request.headers["Host"],
            identity=stream.answer.identity,
        )
        return await exchange(
            request,
            stream.session,
            without_token(visit.target),
            sent,
            lambda pairs: outward(pairs, visit, request.headers["Host"]),
            upgrade=upgrade_of(self.headers),
        )

    def _came_by_address(self, answer: StreamAnswer) -> bool:
        given = self.credentials.in_address
        return (
            given is not None
            and answer.token is not None
            and self.credentials.tokens[answer.token] == given
            and self.request.method in _SAFE
            and "Upgrade" not in self.request.headers
        )

    def _keep_token(self, answer: StreamAnswer) -> web.Response:
        """Send the client to the same address without the token, which it keeps as a cookie."""
        left = max(1, (answer.expires_at or 0) - int(time.time()))
        cookie = token_cookie(
            self.credentials.in_address or "",
            self.visit,
            secure=self.scheme == "https",
            seconds=min(left, 7 * _DAY_SECONDS),
        )
        # Absolute: a path may begin with two slashes.
        path = self.visit.cut + without_token(self.visit.target)
        headers = {
            "Location": f"{self.scheme}://{self.request.headers['Host']}{path}",
            "Set-Cookie": cookie,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(status=302, headers=headers)


def _headers_of_upgrade(request: web.BaseRequest) -> list[tuple[str, str]]:
    return [(name, value) for name, value in _pairs(request) if name.lower() in {"upgrade", "connection"}]


def _away(request_id: str) -> Refusal:
    return Refusal.of("node_unreachable", "The node agent does not answer.", request_id)


def _pairs(request: web.BaseRequest) -> list[tuple[str, str]]:
    return list(request.headers.items())


async def say_hello(node: NodeLink, body: dict[str, object], *, every_seconds: float) -> None:
    """Tell the node for ever that the gateway is here."""
    while True:
        heard = await node.hello(body)
        await asyncio.sleep(every_seconds if heard else min(every_seconds, 0.5))
