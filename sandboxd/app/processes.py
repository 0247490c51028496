"""The calls of clients on processes, as the api passes them on: byte for byte what crosses the public surface."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from sandboxd.app.answers import json_answer, json_bytes, negotiate
from sandboxd.app.bounds import Bounds, Hold
from sandboxd.app.paging import page_of
from sandboxd.app.query import Query
from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.ids import RandomBytes, is_id, new_id, process_id_from_key
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import (
    MAX_RESULT_BYTES,
    ProcessSpec,
    ResizeSpec,
    ResultOptions,
    RunSpec,
    SignalSpec,
)
from sandboxd.contract.validation import invalid, invalid_field
from sandboxd.processes import calls
from sandboxd.processes.live import LiveSandbox, Sandboxes
from sandboxd.processes.rendering import (
    EVENT_STREAM,
    NDJSON,
    Render,
    as_frames,
    as_ndjson,
    as_server_events,
    begin_server_events,
)
from sandboxd.processes.results import Collector
from sandboxd.processes.specs import guest_spec
from sandboxd.processes.streams import OutputOptions, open_output, open_run

MAX_BODY_BYTES: Final = 1_048_576
MAX_COMMAND_BYTES: Final = 8 * 1_048_576
MAX_FILE_BYTES: Final = 8 * 1_048_576
MAX_POSITION: Final = 2**62
BODY_IDLE_SECONDS: Final = 30.0
"""A client that sends no byte of its body for so long has gone, or wants to hold us."""

_RENDERS: Final[dict[str, Render]] = {NDJSON: as_ndjson, EVENT_STREAM: as_server_events, FRAMES: as_frames}
_EVENT_ID: Final = re.compile(r"([0-9]{1,19})(:end)?", re.ASCII)
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_HOLD: Final = web.RequestKey("hold", Hold)
_Model = TypeVar("_Model", bound=BaseModel)
_Handler = Callable[["_Call"], Awaitable[web.StreamResponse]]


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on one live sandbox."""

    request: web.Request
    sandbox: LiveSandbox
    now: Callable[[], datetime]
    random_bytes: RandomBytes

    @property
    def process_id(self) -> str:
        found = self.request.match_info["process_id"]
        if not is_id("prc", found):
            raise ProblemError("process_not_found", f"No such process: {found[:64]!r}")
        return found


def routes(
    sandboxes: Sandboxes, *, now: Callable[[], datetime] = _utc_now, random_bytes: RandomBytes = os.urandom
) -> list[web.AbstractRouteDef]:
    """Return the routes of `/v1/sandboxes/{id}/run`, `…/processes…` and `…/files`. Handlers raise ProblemError."""
    bounds = Bounds()

    def on(method: str, path: str, handler: _Handler) -> web.AbstractRouteDef:
        async def handle(request: web.Request) -> web.StreamResponse:
            sandbox_id = request.match_info["sandbox_id"]
            if not is_id("sbx", sandbox_id):
                raise ProblemError("sandbox_not_found", f"No such sandbox: {sandbox_id[:64]!r}")
            with bounds.call(sandbox_id) as hold:
                request[_HOLD] = hold
                async with sandboxes.use(sandbox_id) as sandbox:
                    return await handler(_Call(request, sandbox, now, random_bytes))

        return web.route(method, "/v1/sandboxes/{sandbox_id}" + path, handle)

    one = "/processes/{process_id}"
    return [
        on("POST", "/run", _run),
        on("POST", "/processes", _start),
        on("GET", "/processes", _list),
        on("GET", one, _look),
        on("GET", one + "/result", _result),
        on("GET", one + "/output", _output),
        on("POST", one + "/stdin", _stdin),
        on("POST", one + "/signal", _signal),
        on("POST", one + "/resize", _resize),
        on("GET", one + "/attach", _attach),
        on("PUT", "/files", _write_file),
    ]


async def _run(call: _Call) -> web.StreamResponse:
    Query(call.request).check()
    kind = negotiate(call.request, ("application/json", NDJSON))
    body = await _model(call.request, RunSpec, MAX_COMMAND_BYTES)
    spec = guest_spec(body, _process_id(call, body.id), call.sandbox.shell)
    if kind == NDJSON:
        return await _run_streamed(call, body, spec)
    options = ResultOptions(
        max_output_bytes=body.max_output_bytes, keep=body.keep, output_encoding=body.output_encoding
    )
    async with _patience(call.request) as answer:
        found = await calls.run(
            call.sandbox, spec, options, wait_seconds=body.wait_seconds, beat=answer.beat, now=call.now
        )
        return await answer.finish(found)


async def _run_streamed(call: _Call, body: RunSpec, spec: dict[str, Any]) -> web.StreamResponse:
    async with open_run(call.sandbox, spec) as opened, _stream(call.request, NDJSON) as response:
        collector = Collector(None)
        scope = asyncio.timeout(body.wait_seconds)
        try:
            async with scope, aclosing(opened.events) as events:
                async for event in events:
                    collector.add(event)
                    await response.write(as_ndjson(event))
        except TimeoutError:
            if not scope.expired():
                raise
        process = opened.process
        if collector.lost and not call.sandbox.ended.is_set():
            process = await calls.latest(call.sandbox, process)
        found = collector.result(process, call.now(), running=collector.exit is None)
        row = {"kind": "result"} | found.model_dump(mode="json", exclude={"stdout", "stderr"})
        await response.write(to_json(row) + b"\n")
        return response


async def _start(call: _Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await _model(call.request, ProcessSpec, MAX_COMMAND_BYTES)
    spec = guest_spec(body, _process_id(call, body.id), call.sandbox.shell)
    process, joined = await calls.start(call.sandbox, spec)
    return json_answer(process, 200 if joined else 201)


async def _list(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    state = query.choice("state", ("running", "ended"))
    tag = query.text("tag", max_bytes=512)
    order = query.choice("order", ("asc", "desc")) or "desc"
    limit = query.integer("limit", 100, 1, 1000)
    cursor = query.text("cursor", max_bytes=512)
    query.check()
    found = await calls.listing(call.sandbox, state, tag)
    filters = (call.sandbox.id, state, tag, order)
    return json_answer(page_of(found, filters=filters, descending=order == "desc", limit=limit, cursor=cursor))


async def _look(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    wait_seconds = query.number("wait_seconds", 0, 0, 60)
    wait_for = query.text("wait_for", max_bytes=64, pattern="(running|ended)(,(running|ended))?")
    query.check()
    if "running" in (wait_for or "").split(","):
        wait_seconds = 0  # every process is running or has been: there is nothing to wait for
    return json_answer(await calls.look(call.sandbox, call.process_id, wait_seconds))


async def _result(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    wait_seconds = query.number("wait_seconds", 0, 0, 3600)
    max_output_bytes = query.integer("max_output_bytes", 1_048_576, 0, MAX_RESULT_BYTES)
    keep = query.choice("keep", ("both", "head", "tail")) or "both"
    encoding = query.choice("output_encoding", ("text", "base64")) or "text"
    query.check()
    options = ResultOptions.model_validate(
        {"max_output_bytes": max_output_bytes, "keep": keep, "output_encoding": encoding}
    )
    async with _patience(call.request) as answer:
        found = await calls.result(
            call.sandbox, call.process_id, options, wait_seconds=wait_seconds, beat=answer.beat, now=call.now
        )
        return await answer.finish(found)


async def _output(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    query.exclusive("after", "tail_bytes")
    after = query.integer("after", 0, 0, MAX_POSITION)
    tail_bytes = query.optional_integer("tail_bytes", 0, MAX_POSITION)
    follow = query.boolean("follow", default=False)
    keepalive_seconds = query.integer("keepalive_seconds", 15, 5, 60)
    query.check()
    kind = negotiate(call.request, tuple(_RENDERS))
    if kind == EVENT_STREAM and (last := call.request.headers.get("Last-Event-ID")):
        found = _EVENT_ID.fullmatch(last)
        if found is None:
            raise invalid_field("header:Last-Event-ID", "event_id", "is not an id of this stream")
        if found[2]:
            return web.Response(status=204)
        after, tail_bytes = int(found[1]), None
    options = OutputOptions(
        after=after, tail_bytes=tail_bytes, follow=follow, keepalive_seconds=float(keepalive_seconds)
    )
    async with (
        open_output(call.sandbox, call.process_id, options) as opened,
        _stream(call.request, kind) as response,
        aclosing(opened) as events,
    ):
        if kind == EVENT_STREAM:
            await response.write(begin_server_events(None if tail_bytes is not None else after))
        render = _RENDERS[kind]
        async for event in events:
            await response.write(render(event))
        return response


async def _stdin(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    offset = query.optional_integer("offset", 0, MAX_POSITION)
    close = query.boolean("close", default=False)
    query.check()
    _refuse_encoding(call.request)
    body = _chunks(call.request)
    return json_answer(await calls.write_stdin(call.sandbox, call.process_id, body, offset=offset, close=close))


async def _signal(call: _Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await _model(call.request, SignalSpec, MAX_BODY_BYTES)
    await calls.signal(call.sandbox, call.process_id, body, _idempotency_key(call.request))
    return web.Response(status=204)


async def _resize(call: _Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await _model(call.request, ResizeSpec, MAX_BODY_BYTES)
    await calls.resize(call.sandbox, call.process_id, body)
    return web.Response(status=204)


async def _attach(call: _Call) -> web.StreamResponse:
    raise ProblemError(
        "not_implemented",
        "Attaching by WebSocket is not available in this version.",
        reason="attach",
        hint=f"Follow GET /v1/sandboxes/{call.sandbox.id}/processes/{call.process_id}/output?follow=true.",
    )


async def _write_file(call: _Call) -> web.StreamResponse:
    query = Query(call.request)
    path = query.required("path")
    user = query.text("user", max_bytes=64, pattern=r"[^\s/]+")
    mode = query.text("mode", max_bytes=5, pattern="0?[0-7]{3,4}")
    query.check()
    _require_path(path)
    _refuse_encoding(call.request)
    body = await _read(call.request, MAX_FILE_BYTES, "Split it, or send it by standard input of a process.")
    await calls.write_file(call.sandbox, path, body, user=user, mode=mode)
    return json_answer({"path": path, "size_bytes": len(body)}, 201)


def _require_path(path: str) -> None:
    size = len(path.encode(errors="surrogatepass"))
    longest = max(len(part.encode(errors="surrogatepass")) for part in path.split("/"))
    if not path or "\0" in path or size > 4096 or longest > 255:
        raise ProblemError("invalid_path", "A path has 1 to 4096 bytes, no NUL, and components of at most 255 bytes.")


def _process_id(call: _Call, given: str | None) -> str:
    """Return the id of the process to start or join: the client's, its key's, or a fresh one."""
    key = _idempotency_key(call.request)
    derived = None if key is None else process_id_from_key(call.sandbox.id, key)
    if given is not None and derived not in (None, given):
        raise invalid_field("header:Idempotency-Key", "exclusive", "stands for another process than id")
    return given or derived or new_id("prc", call.random_bytes)


def _idempotency_key(request: web.Request) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or _KEY.fullmatch(keys[0]) is None:
        raise invalid_field("header:Idempotency-Key", "key", "must be 1 to 255 printable ASCII characters, once")
    return keys[0]


async def _model(request: web.Request, model: type[_Model], max_bytes: int) -> _Model:
    """Read a JSON body into a strict model."""
    if request.content_type != "application/json":
        raise ProblemError("unsupported_media_type", "The body must be application/json.")
    _refuse_encoding(request)
    body = await _read(request, max_bytes, "Send large input by POST …/stdin.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def _refuse_encoding(request: web.Request) -> None:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProblemError("unsupported_media_type", "This body cannot be sent compressed.")


async def _read(request: web.Request, max_bytes: int, hint: str) -> bytes:
    too_large = ProblemError(
        "body_too_large", f"The body is larger than {max_bytes} bytes.", limit_bytes=max_bytes, hint=hint
    )
    if (request.content_length or 0) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for data in _chunks(request):
        request[_HOLD].take(len(data))
        parts.append(data)
        size += len(data)
        if size > max_bytes:
            raise too_large
    return b"".join(parts)


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
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


class _Patience:
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
async def _patience(request: web.Request) -> AsyncGenerator[_Patience]:
    answer = _Patience(request)
    try:
        yield answer
    except ProblemError as error:
        if answer.begun is not None:
            raise _cut(request) from error
        raise


@asynccontextmanager
async def _stream(request: web.Request, content_type: str) -> AsyncGenerator[web.StreamResponse]:
    """Begin a streamed answer; whatever goes wrong in it breaks the connection, so that it never looks whole."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    try:
        yield response
        await response.write_eof()
    except ProblemError as error:
        raise _cut(request) from error


def _cut(request: web.Request) -> ConnectionError:
    if request.transport is not None:
        request.transport.abort()
    return ConnectionAbortedError("an answer that had begun could not be finished")
