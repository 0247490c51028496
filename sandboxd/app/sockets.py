"""WebSockets of clients: the handshake, signs of life both ways, and an end that says why."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NoReturn

import structlog
from aiohttp import WSMsgType, web

from sandboxd.app.call import Call, cut
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import CloseCode, close_code
from sandboxd.processes.live import Ending

_log = structlog.get_logger(__name__)

PING_SECONDS: Final = 15.0
PONG_SECONDS: Final = 45.0
_CLOSE_SECONDS: Final = 15.0
"""For a client to take what is still on its way to it, and answer the end."""
_REASON_BYTES: Final = 123
_KEY_BYTES: Final = 24


class OverError(Exception):
    """The WebSocket is to be closed, unless the client has done so."""

    def __init__(self, code: CloseCode | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Socket:
    """The WebSocket of one call. Opened late, so that what is wrong before is an answer like any other."""

    def __init__(self, call: Call, protocol: str, leaving: Ending, *, max_message_bytes: int) -> None:
        """Raise `malformed_request` for a request that is no handshake for `protocol`."""
        self._request = call.request
        self._leaving = leaving
        _require_handshake(call.request, protocol)
        self.response = web.WebSocketResponse(
            protocols=(protocol,),
            compress=False,
            autoping=False,
            timeout=_CLOSE_SECONDS,
            max_msg_size=max_message_bytes + 1,
        )
        self._heard_at = 0.0
        self._holding = False

    async def open(self) -> None:
        """Complete the handshake."""
        await self.response.prepare(self._request)
        self._heard_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def closing(self) -> AsyncGenerator[None]:
        """Close with what comes out of this: OverError, a ProblemError, or nothing, which is a normal end."""
        over = OverError(CloseCode.DONE)
        try:
            yield
        except OverError as error:
            over = error
        except ProblemError as problem:
            over = OverError(close_code(problem.code), problem.code)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - the last resort: logged; an answer of HTTP has no place here any more
            _log.exception("socket failed", path=self._request.path)
            over = OverError(CloseCode.FAILED, "internal")
        await self._close(over)

    async def _close(self, over: OverError) -> None:
        if over.code is None:
            return
        reason = over.reason.encode()[:_REASON_BYTES]
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.response.close(code=over.code, message=reason)
        except TimeoutError:
            raise cut(self._request) from None

    async def converse(
        self, *parts: Coroutine[Any, Any, None], on_beat: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Run parts side by side until one raises, and raise that. Pings, and ends with a client that is silent."""
        try:
            async with asyncio.TaskGroup() as group:
                for part in (*parts, self._beat(on_beat), self._await_leaving()):
                    group.create_task(part)
        except BaseExceptionGroup as errors:
            raise _foremost(errors) from None

    async def messages(self) -> AsyncGenerator[bytes | str]:
        """Yield what the client sends, until OverError."""
        loop = asyncio.get_running_loop()
        while True:
            self._holding = False
            message = await self.response.receive()
            self._holding = True
            self._heard_at = loop.time() if message.type == WSMsgType.PONG else self._heard_at
            match message.type:
                case WSMsgType.BINARY | WSMsgType.TEXT:
                    yield message.data
                    # Nothing of the client was heard while what it sent could not be passed on: not its fault.
                    self._heard_at = max(self._heard_at, loop.time() - PING_SECONDS)
                case WSMsgType.PING:
                    await self.response.pong(message.data)
                case WSMsgType.PONG:
                    pass
                case _:
                    raise OverError

    async def send(self, data: bytes | memoryview) -> None:
        """Send a binary message. Waits for a client that does not read."""
        try:
            await self.response.send_bytes(data)  # pyright: ignore[reportArgumentType] - any buffer will do
        except ConnectionError:
            raise OverError from None

    async def send_text(self, text: str) -> None:
        try:
            await self.response.send_str(text)
        except ConnectionError:
            raise OverError from None

    async def _beat(self, on_beat: Callable[[], Awaitable[None]] | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_SECONDS)
            if not self._holding and loop.time() - self._heard_at > PONG_SECONDS - PING_SECONDS / 2:
                raise cut(self._request)
            # What is sent is on its way even if the client does not take it in time.
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(PING_SECONDS / 2):
                    await self.response.ping()
                    if on_beat is not None:
                        await on_beat()

    async def _await_leaving(self) -> NoReturn:
        await self._leaving.wait()
        raise OverError(CloseCode.GOING_AWAY, "the node is stopping")


def _foremost(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that says the most: not an end that another one brought about."""
    found: list[BaseException] = []
    waiting: list[BaseException] = list(errors.exceptions)
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - of exceptions
        else:
            found.append(error)
    return min(found, key=lambda error: (isinstance(error, OverError), isinstance(error, OverError) and not error.code))


def _require_handshake(request: web.Request, protocol: str) -> None:
    headers = request.headers
    offered = [word.strip() for word in ",".join(headers.getall("Sec-WebSocket-Protocol", [])).split(",")]
    whole = (
        request.method == "GET"
        and headers.get("Upgrade", "").strip().lower() == "websocket"
        and "upgrade" in headers.get("Connection", "").lower()
        and headers.get("Sec-WebSocket-Version") == "13"
        and len(headers.get("Sec-WebSocket-Key", "")) == _KEY_BYTES
        and not request.body_exists
    )
    if not whole or (offered != [""] and protocol not in offered):
        raise ProblemError(
            "malformed_request",
            "This is not the handshake of a WebSocket of a kind that is spoken here.",
            hint=f"Open this address as a WebSocket, version 13, with the subprotocol {protocol}.",
        )
