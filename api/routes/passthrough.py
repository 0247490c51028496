"""Data-plane calls: the node's answer, byte for byte, streaming both ways.

A client that vanishes takes its call along, and so does a key that is revoked.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from api.routes.answers import problem_answer
from api.routes.calls import Call
from api.services.node_client import REQUEST_ID
from sandboxd.contract.problems import ProblemError

_SMALL: Final = 64 * 1024
"""Bodies up to this are passed on in one piece."""
_UNWATCHED_SECONDS: Final = 0.05
"""How long a call goes on before its client is watched: most calls have ended by then."""
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_TO_NODE: Final = frozenset(
    {
        b"accept",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"last-event-id",
        b"range",
        b"traceparent",
        b"tracestate",
    }
)
"""Credentials and whatever else a client sends stay here: a node is told what a call needs."""
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {b"date", b"server"}
_AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_MOVED: Final = 421
RECHECK_SECONDS: Final = 0.5
"""How often it is asked whether a call that goes on may still do so."""


class _ClientGoneError(Exception):
    """The client closed its connection while it was sending, or while it was being answered."""


class _RevokedError(Exception):
    """The key behind the call is good no longer."""

    def __init__(self, problem: ProblemError) -> None:
        super().__init__(problem.code)
        self.problem = problem


class _Upload:
    """The request's body, and the client's presence after it."""

    def __init__(self, receive: Receive, scope: Scope) -> None:
        self._receive = receive
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() else None
        self._has_body = bool(self._length) or b"transfer-encoding" in headers
        self._finished = asyncio.Event()

    async def data(self) -> bytes | AsyncGenerator[bytes] | None:
        """Return the body as it is best passed on."""
        if not self._has_body:
            self._finished.set()
            return None
        if self._length is not None and self._length <= _SMALL:
            async with aclosing(self._chunks()) as chunks:
                return b"".join([chunk async for chunk in chunks])
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk
        self._finished.set()

    async def gone(self) -> None:
        """Return when the client has closed its connection, or the answer is complete."""
        await self._finished.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Presence:
    """Ends what is inside when the client leaves, or may no longer be here; looks only at calls that take a while.

    Raises _ClientGoneError, _RevokedError.
    """

    def __init__(self, upload: _Upload, recheck: Callable[[], Awaitable[None]]) -> None:
        self._upload = upload
        self._recheck = recheck
        self._group = asyncio.TaskGroup()
        self._watches: list[asyncio.Task[None]] = []
        self._handle: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._group.__aenter__()
        self._handle = asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, self._begin)

    def _begin(self) -> None:
        self._watches = [self._group.create_task(self._leave()), self._group.create_task(self._outlive())]

    async def _leave(self) -> None:
        await self._upload.gone()
        raise _ClientGoneError

    async def _outlive(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                await self._recheck()
            except ProblemError as problem:
                if problem.code == "unauthenticated":
                    raise _RevokedError(problem) from problem

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        for watch in self._watches:
            watch.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            _, others = group.split((_ClientGoneError, _RevokedError))
            if others is not None:
                raise others from None
            raise group.exceptions[0] from None


class PassThrough(Response):
    """Asks the node and answers what it answers."""

    def __init__(
        self, call: Call, session: aiohttp.ClientSession, explain: Callable[[], Coroutine[Any, Any, ProblemError]]
    ) -> None:
        super().__init__()
        self._call = call
        self._session = session
        self._explain = explain
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = _Upload(receive, scope)
        try:
            data = await upload.data()
            async with _Presence(upload, self._call.recheck):
                await self._exchange(data, scope, receive, send)
        except _ClientGoneError:
            return
        except _RevokedError as revoked:
            if not self._begun:
                await problem_answer(self._call.request, revoked.problem)(scope, receive, send)

    async def _exchange(
        self, data: bytes | AsyncIterator[bytes] | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            await self._pass(data, scope, send)
        except (aiohttp.ClientError, OSError):
            if not self._begun:
                await self._refuse(scope, receive, send)
        # A broken answer is left unfinished: the server then breaks the connection, which is what happened.

    async def _pass(self, data: bytes | AsyncIterator[bytes] | None, scope: Scope, send: Send) -> None:
        path, question = scope["raw_path"], scope["query_string"]
        target = path + b"?" + question if question else path
        async with self._session.request(
            scope["method"],
            URL(f"http://node{target.decode('ascii')}", encoded=True),
            data=data,
            headers=_to_node(scope),
            skip_auto_headers=_AUTOMATIC,
            allow_redirects=False,
        ) as answer:
            if answer.status == _MOVED:
                raise aiohttp.ClientConnectionError
            headers = [pair for pair in answer.raw_headers if pair[0].lower() not in _NOT_TO_CLIENT]
            start: Message = {"type": "http.response.start", "status": answer.status, "headers": headers}
            if answer.content_length is not None and answer.content_length <= _SMALL:
                body = await answer.read()
                self._begun = True
                await send(start)
                await send({"type": "http.response.body", "body": body})
                return
            self._begun = True
            await send(start)
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            problem = await self._explain()
        except ProblemError as error:
            problem = error
        await problem_answer(self._call.request, problem)(scope, receive, send)


def _to_node(scope: Scope) -> CIMultiDict[str]:
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name in _TO_NODE
    )
    headers[REQUEST_ID] = scope["sandlot.request_id"]
    return headers
