"""WebSockets of the data plane: the node is asked for one, and what it answers passes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

import httptools
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.routes.answers import problem_answer
from api.routes.passage import SWITCH, ClientSide, NodeSide, Passage, Side, Switch
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import CloseCode

_CONNECT_SECONDS: Final = 2.0
_HANDSHAKE_SECONDS: Final = 60.0
"""A node waits 30 s for a sandbox that is not ready yet."""
_MAX_ANSWER_BYTES: Final = 65_536
_RECHECK_SECONDS: Final = 1.0
_SWITCHING: Final = 101
_MOVED: Final = 421
_PASSED_ON: Final = frozenset({b"upgrade", b"connection", b"sec-websocket-accept", b"sec-websocket-protocol"})


class _NodeLink(asyncio.Protocol):
    """The connection to the node: one answer, and if that is a switch, what follows it."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.transport: asyncio.Transport | None = None
        self.side: Side | None = None
        self.early = b""
        self.over = False
        self._parser = httptools.HttpResponseParser(self)
        self._seen = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.side is not None:
            self.side.received(data)
        elif self.answered.done():
            self.early += data
            self._stop_reading()
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._seen += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.early = data[upgrade.args[0] :]
            self._stop_reading()
            self._answer()
        except httptools.HttpParserError:
            self._break("the node's answer is not HTTP")
        else:
            if self._seen > _MAX_ANSWER_BYTES:
                self._break("the node's answer is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != _SWITCHING:
            self._answer()

    def _answer(self) -> None:
        if not self.answered.done():
            self.answered.set_result(self._parser.get_status_code())

    def _break(self, why: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(why))
        if self.transport is not None:
            self.transport.abort()

    def _stop_reading(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.over = True
        if self.side is not None:
            self.side.lost()
        else:
            self._break("the node broke the connection")

    def pause_writing(self) -> None:
        if self.side is not None:
            self.side.hold()

    def resume_writing(self) -> None:
        if self.side is not None:
            self.side.go_on()


@dataclass(frozen=True, slots=True)
class Handshake:
    """A request for a WebSocket, as the node is to see it."""

    address: str
    target: str
    headers: dict[str, str] = field(repr=False)

    def render(self) -> bytes:
        rows = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"GET {self.target} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{rows}\r\n"
        return head.encode("ascii")


class SocketAnswer(Response):
    """Asks the node for a WebSocket, and answers what it answers; agreed on, everything passes until one side ends."""

    def __init__(
        self,
        request: Request,
        handshake: Handshake,
        explain: Callable[[], Coroutine[Any, Any, ProblemError]],
        recheck: Callable[[], Awaitable[object]],
    ) -> None:
        """`recheck` raises `unauthenticated` once the credential is good no longer."""
        super().__init__()
        self._request = request
        self._handshake = handshake
        self._explain = explain
        self._recheck = recheck

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            link = await self._ask()
        except (OSError, TimeoutError):
            await self._refuse(await self._problem(), scope, receive, send)
            return
        try:
            if link.answered.result() != _SWITCHING:
                await self._pass_answer(link, scope, receive, send)
            else:
                await self._pass_all(link, scope, receive, send)
        finally:
            if link.transport is not None:
                link.transport.abort()

    async def _ask(self) -> _NodeLink:
        loop = asyncio.get_running_loop()
        path = self._handshake.address.removeprefix("unix:")
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, link = await loop.create_unix_connection(_NodeLink, path)
        try:
            if link.transport is not None:
                link.transport.write(self._handshake.render())
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await link.answered
        except BaseException:
            if link.transport is not None:
                link.transport.abort()
            raise
        return link

    async def _problem(self) -> ProblemError:
        try:
            return await self._explain()
        except ProblemError as error:
            return error

    async def _refuse(self, problem: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
        await problem_answer(self._request, problem)(scope, receive, send)

    async def _pass_answer(self, link: _NodeLink, scope: Scope, receive: Receive, send: Send) -> None:
        status = link.answered.result()
        if status == _MOVED or status < 400:
            await self._refuse(await self._problem(), scope, receive, send)
            return
        headers = [pair for pair in link.headers if pair[0] in {b"content-type", b"retry-after"}]
        headers.append((b"content-length", str(len(link.body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": link.body})

    async def _pass_all(self, link: _NodeLink, scope: Scope, receive: Receive, send: Send) -> None:
        assert link.transport is not None  # noqa: S101 - it has answered
        passage = Passage(link.transport)
        switch: Switch = scope[SWITCH]
        rows = [b"%s: %s\r\n" % pair for pair in link.headers if pair[0] in _PASSED_ON]
        rows.append(b"sandlot-request-id: %s\r\n" % scope["sandlot.request_id"].encode())
        try:
            client = switch(b"HTTP/1.1 101 Switching Protocols\r\n" + b"".join(rows) + b"\r\n", ClientSide(passage))
        except ConnectionError as error:
            await self._refuse(ProblemError("malformed_request", str(error)), scope, receive, send)
            return
        passage.join(client)
        await send({"type": SWITCH, "status": _SWITCHING})
        side = NodeSide(passage)
        link.side = side
        if link.early:
            passage.to_client(link.early)
        if link.over:
            side.lost()
        else:
            passage.go_on("node")
        try:
            await self._watch(passage)
        finally:
            if not passage.over.is_set():
                client.abort()

    async def _watch(self, passage: Passage) -> None:
        """Wait for the end; bring it about when the credential is revoked."""
        while True:
            try:
                async with asyncio.timeout(_RECHECK_SECONDS):
                    await passage.over.wait()
                    return
            except TimeoutError:
                pass
            try:
                await self._recheck()
            except ProblemError as problem:
                if problem.code == "unauthenticated":
                    passage.close(CloseCode.CREDENTIAL, f"the credential is {problem.reason}")


def no_socket(hint: str) -> NoReturn:
    """Raise what is answered to a request that is no handshake."""
    raise ProblemError(
        "malformed_request", "This is not the handshake of a WebSocket of a kind that is spoken here.", hint=hint
    )
