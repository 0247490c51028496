"""WebSockets of the data plane: once node and client have agreed on one, its bytes pass unread both ways.

Of what the node says only the lengths of frames are followed, so that whatever goes away, the client is told so in a
frame of its own between two of the node's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, cast

import httptools
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.routes.answers import problem_answer
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import CloseCode

SWITCH: Final = "sandlot.switch"
"""Where a request's scope has its Switch, when it asks for a WebSocket."""
_CONNECT_SECONDS: Final = 2.0
_HANDSHAKE_SECONDS: Final = 60.0
"""A node waits 30 s for a sandbox that is not ready yet."""
_MAX_ANSWER_BYTES: Final = 65_536
_FLUSH_SECONDS: Final = 15.0
"""For what is still on its way when one side has gone."""
_BOUNDARY_SECONDS: Final = 2.0
_RECHECK_SECONDS: Final = 1.0
_SWITCHING: Final = 101
_MOVED: Final = 421
_PASSED_ON: Final = frozenset({b"upgrade", b"connection", b"sec-websocket-accept", b"sec-websocket-protocol"})
_CLOSE: Final = 0x88
_TWO_BYTES, _EIGHT_BYTES = 126, 127


class Side(Protocol):
    """What one end of a passage is told of its connection."""

    def received(self, data: bytes) -> None: ...

    def lost(self) -> None: ...

    def hold(self) -> None:
        """More is waiting to be written than should be."""
        ...

    def go_on(self) -> None: ...

    def leave(self) -> None:
        """Say good-bye: the program is about to stop."""
        ...


class Switch(Protocol):
    """A client's connection that can be taken out of HTTP."""

    def __call__(self, head: bytes, side: Side) -> asyncio.Transport:
        """Answer with a head, and give all that comes from then on to `side`. ConnectionError when that is too late."""
        ...


class Boundaries:
    """Follows the frames that a server sends, without looking into them. Pure."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self.closed = False
        """A close frame has passed."""

    @property
    def between(self) -> bool:
        """Whether a frame may be put in here."""
        return not self._left and not self._head

    def follow(self, data: bytes, *, to_boundary: bool = False) -> int:
        """Take note of bytes that pass; how many, with `to_boundary` those up to the end of the frame under way."""
        at, end = 0, len(data)
        while at < end and not (to_boundary and self.between):
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            self._read_head()
        return at

    def _read_head(self) -> None:
        head = self._head
        if len(head) < 2:
            return
        short = head[1] & 0x7F
        extra = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(short, 0)
        if len(head) < 2 + extra:
            return
        self._left = int.from_bytes(head[2:]) if extra else short
        self._left += 4 if head[1] & 0x80 else 0
        self.closed = self.closed or head[0] & 0x8F == _CLOSE
        head.clear()


def close_frame(code: CloseCode, reason: str) -> bytes:
    """Render a server's close frame."""
    payload = code.to_bytes(2) + reason.encode()
    return bytes((_CLOSE, len(payload))) + payload


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


class _Passage:
    """Two connections and what passes between them. Holds no more than their buffers do."""

    def __init__(self, node: asyncio.Transport) -> None:
        self._node = node
        self._client: asyncio.Transport | None = None
        self._boundaries = Boundaries()
        self._parting: bytes | None = None
        self._open = {"client", "node"}
        self._timers: list[asyncio.TimerHandle] = []
        self.over = asyncio.Event()

    def join(self, client: asyncio.Transport) -> None:
        self._client = client

    def to_client(self, data: bytes) -> None:
        if self._client is None or self._client.is_closing():
            return
        if self._parting is None:
            self._boundaries.follow(data)
            self._client.write(data)
        else:
            self._client.write(data[: self._boundaries.follow(data, to_boundary=True)])
            self._part()

    def to_node(self, data: bytes) -> None:
        if not self._node.is_closing():
            self._node.write(data)

    def hold(self, end: str) -> None:
        """Stop reading from an end: the other one takes no more."""
        transport = self._client if end == "client" else self._node
        if transport is not None and not transport.is_closing():
            transport.pause_reading()

    def go_on(self, end: str) -> None:
        transport = self._client if end == "client" else self._node
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def close(self, code: CloseCode, reason: str) -> None:
        """Close from here, as soon as no frame of the node is cut by it."""
        if self._parting is None:
            self._parting = close_frame(code, reason)
            self._after(_BOUNDARY_SECONDS, self._give_up)
            self._part()

    def _part(self) -> None:
        client = self._client
        if client is None or client.is_closing() or not self._boundaries.between:
            return
        if not self._boundaries.closed and self._parting is not None:
            client.write(self._parting)
        client.close()
        self._node.close()
        self._give_time()

    def lost(self, end: str) -> None:
        self._open.discard(end)
        if not self._open:
            for timer in self._timers:
                timer.cancel()
            self.over.set()
        elif end == "client":
            self._node.close()
            self._give_time()
        elif self._boundaries.between:
            self.close(CloseCode.NODE_UNREACHABLE, "the node is out of reach")
        else:
            self._give_up()

    def _give_time(self) -> None:
        self._after(_FLUSH_SECONDS, self._give_up)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act))

    def _give_up(self) -> None:
        if self._client is not None:
            self._client.abort()
        self._node.abort()


@dataclass(frozen=True, slots=True)
class _ClientSide:
    passage: _Passage

    def received(self, data: bytes) -> None:
        self.passage.to_node(data)

    def lost(self) -> None:
        self.passage.lost("client")

    def hold(self) -> None:
        self.passage.hold("node")

    def go_on(self) -> None:
        self.passage.go_on("node")

    def leave(self) -> None:
        self.passage.close(CloseCode.GOING_AWAY, "the api is stopping")


@dataclass(frozen=True, slots=True)
class _NodeSide:
    passage: _Passage

    def received(self, data: bytes) -> None:
        self.passage.to_client(data)

    def lost(self) -> None:
        self.passage.lost("node")

    def hold(self) -> None:
        self.passage.hold("client")

    def go_on(self) -> None:
        self.passage.go_on("client")

    def leave(self) -> None:
        """Nobody tells it: the node says so itself."""


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
        passage = _Passage(link.transport)
        switch: Switch = scope[SWITCH]
        rows = [b"%s: %s\r\n" % pair for pair in link.headers if pair[0] in _PASSED_ON]
        rows.append(b"sandlot-request-id: %s\r\n" % scope["sandlot.request_id"].encode())
        try:
            client = switch(b"HTTP/1.1 101 Switching Protocols\r\n" + b"".join(rows) + b"\r\n", _ClientSide(passage))
        except ConnectionError as error:
            await self._refuse(ProblemError("malformed_request", str(error)), scope, receive, send)
            return
        passage.join(client)
        await send({"type": SWITCH, "status": _SWITCHING})
        side = _NodeSide(passage)
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

    async def _watch(self, passage: _Passage) -> None:
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
