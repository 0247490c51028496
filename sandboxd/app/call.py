"""One call of a client on a live sandbox: its body within bounds, its answer whole or visibly broken."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from sandboxd.app.answers import json_answer, json_bytes
from sandboxd.app.bounds import Bounds, Hold
from sandboxd.contract.ids import RandomBytes, is_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid, invalid_field
from sandboxd.processes.live import Ending, LiveSandbox, Sandboxes

MAX_BODY_BYTES: Final = 1_048_576
BODY_IDLE_SECONDS: Final = 30.0
"""A client that sends no byte of its body for so long has gone, or wants to hold us."""

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_HOLD: Final = web.RequestKey("hold", Hold)
_Model = TypeVar("_Model", bound=BaseModel)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Call:
    """One request on one live sandbox."""

    request: web.Request
    sandbox: LiveSandbox
    now: Callable[[], datetime]
    random_bytes: RandomBytes

    @property
    def process_id(self) -> str:
        """The process in the path; `process_not_found` for what is no id."""
        found = self.request.match_info["process_id"]
        if not is_id("prc", found):
            raise ProblemError("process_not_found", f"No such process: {found[:64]!r}")
        return found


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class DataPlane:
    """What every call on a live sandbox goes through. All of a node's calls share one set of bounds."""

    sandboxes: Sandboxes
    now: Callable[[], datetime]
    random_bytes: RandomBytes
    bounds: Bounds
    leaving: Ending = field(default_factory=Ending)
    """Set when this program is about to stop: what would go on for ever says so to its client."""

    def on(self, method: str, path: str, handler: Handler) -> web.AbstractRouteDef:
        """Return the route of `/v1/sandboxes/{id}` + `path`. Handlers raise ProblemError."""

        async def handle(request: web.Request) -> web.StreamResponse:
            sandbox_id = request.match_info["sandbox_id"]
            if not is_id("sbx", sandbox_id):
                raise ProblemError("sandbox_not_found", f"No such sandbox: {sandbox_id[:64]!r}")
            with self.bounds.call(sandbox_id) as hold:
                request[_HOLD] = hold
                async with self.sandboxes.use(sandbox_id) as sandbox:
                    return await handler(Call(request, sandbox, self.now, self.random_bytes))

        options = {"allow_head": False} if method == "GET" else {}
        return web.route(method, "/v1/sandboxes/{sandbox_id}" + path, handle, **options)


def idempotency_key(request: web.Request) -> str | None:
    """Return the request's key, checked."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or _KEY.fullmatch(keys[0]) is None:
        raise invalid_field("header:Idempotency-Key", "key", "must be 1 to 255 printable ASCII characters, once")
    return keys[0]


async def read_model(
    request: web.Request, model: type[_Model], max_bytes: int, kinds: Sequence[str] = ("application/json",)
) -> _Model:
    """Read a JSON body into a strict model."""
    if request.content_type not in kinds:
        raise ProblemError("unsupported_media_type", "The body must be application/json.")
    refuse_encoding(request)
    body = await read_body(request, max_bytes, "Send large input by POST …/stdin.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def refuse_encoding(request: web.Request) -> None:
    """Refuse a compressed body: `unsupported_media_type`."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProblemError("unsupported_media_type", "This body cannot be sent compressed.")


async def read_body(request: web.Request, max_bytes: int, hint: str) -> bytes:
    """Read a whole body; `body_too_large`, with the hint."""
    too_large = ProblemError(
        "body_too_large", f"The body is larger than {max_bytes} bytes.", limit_bytes=max_bytes, hint=hint
    )
    if (request.content_length or 0) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for data in body_chunks(request):
        request[_HOLD].take(len(data))
        parts.append(data)
        size += len(data)
        if size > max_bytes:
            raise too_large
    return b"".join(parts)


async def body_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes in. `deadline_exceeded` when it stops."""
    content = request.content
    while True:
        try:
            async with asyncio.timeout(BODY_IDLE_SECONDS):
                data = await content.readany()
        except TimeoutError:
            raise ProblemError("deadline_exceeded", f"No byte of the body for {BODY_IDLE_SECONDS:g} s.") from None
        if not data:
            return
        yield data


class Patience:
    """A JSON answer that may be long in coming: spaces go before it, so that no middlebox cuts a silent wait."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.begun: web.StreamResponse | None = None

    async def beat(self) -> None:
        """Send a space. From now on only a result or a broken connection can follow."""
        if self.begun is None:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(self._request)
            self.begun = response
        await self.begun.write(b" ")

    async def finish(self, value: BaseModel) -> web.StreamResponse:
        """Answer."""
        if self.begun is None:
            return json_answer(value)
        await self.begun.write(json_bytes(value))
        return self.begun


@asynccontextmanager
async def patience(request: web.Request) -> AsyncGenerator[Patience]:
    """Enter an answer that may be long in coming."""
    answer = Patience(request)
    try:
        yield answer
    except ProblemError as error:
        if answer.begun is not None:
            raise cut(request) from error
        raise


@asynccontextmanager
async def streamed(request: web.Request, content_type: str) -> AsyncGenerator[web.StreamResponse]:
    """Begin a streamed answer; whatever goes wrong in it breaks the connection, so that it never looks whole."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    try:
        yield response
        await response.write_eof()
    except ProblemError as error:
        raise cut(request) from error


def cut(request: web.Request) -> ConnectionError:
    """Break the connection of an answer that has begun; raise what is returned."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionAbortedError("an answer that had begun could not be finished")
