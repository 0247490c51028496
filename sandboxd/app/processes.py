"""The calls of clients on processes, as the api passes them on: byte for byte what crosses the public surface."""

import asyncio
import re
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from sandboxd.app.answers import json_answer, negotiate
from sandboxd.app.call import (
    MAX_BODY_BYTES,
    Call,
    DataPlane,
    body_chunks,
    idempotency_key,
    patience,
    read_model,
    refuse_encoding,
    streamed,
)
from sandboxd.app.paging import page_of
from sandboxd.app.query import Query
from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.ids import new_id, process_id_from_key
from sandboxd.contract.processes import (
    MAX_RESULT_BYTES,
    ProcessSpec,
    ResizeSpec,
    ResultOptions,
    RunSpec,
    SignalSpec,
)
from sandboxd.contract.validation import invalid_field
from sandboxd.processes import calls
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

MAX_COMMAND_BYTES: Final = 8 * 1_048_576
MAX_POSITION: Final = 2**62

_RENDERS: Final[dict[str, Render]] = {NDJSON: as_ndjson, EVENT_STREAM: as_server_events, FRAMES: as_frames}
_EVENT_ID: Final = re.compile(r"([0-9]{1,19})(:end)?", re.ASCII)


def routes(plane: DataPlane) -> list[web.AbstractRouteDef]:
    """Return the routes of `…/run` and `…/processes…`."""
    on = plane.on
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
    ]


async def _run(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    kind = negotiate(call.request, ("application/json", NDJSON))
    body = await read_model(call.request, RunSpec, MAX_COMMAND_BYTES)
    spec = guest_spec(body, _process_id(call, body.id), call.sandbox.shell)
    if kind == NDJSON:
        return await _run_streamed(call, body, spec)
    options = ResultOptions(
        max_output_bytes=body.max_output_bytes, keep=body.keep, output_encoding=body.output_encoding
    )
    async with patience(call.request) as answer:
        found = await calls.run(
            call.sandbox, spec, options, wait_seconds=body.wait_seconds, beat=answer.beat, now=call.now
        )
        return await answer.finish(found)


async def _run_streamed(call: Call, body: RunSpec, spec: dict[str, Any]) -> web.StreamResponse:
    async with open_run(call.sandbox, spec) as opened, streamed(call.request, NDJSON) as response:
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


async def _start(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, ProcessSpec, MAX_COMMAND_BYTES)
    spec = guest_spec(body, _process_id(call, body.id), call.sandbox.shell)
    process, joined = await calls.start(call.sandbox, spec)
    return json_answer(process, 200 if joined else 201)


async def _list(call: Call) -> web.StreamResponse:
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


async def _look(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    wait_seconds = query.number("wait_seconds", 0, 0, 60)
    wait_for = query.text("wait_for", max_bytes=64, pattern="(running|ended)(,(running|ended))?")
    query.check()
    if "running" in (wait_for or "").split(","):
        wait_seconds = 0  # every process is running or has been: there is nothing to wait for
    return json_answer(await calls.look(call.sandbox, call.process_id, wait_seconds))


async def _result(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    wait_seconds = query.number("wait_seconds", 0, 0, 3600)
    max_output_bytes = query.integer("max_output_bytes", 1_048_576, 0, MAX_RESULT_BYTES)
    keep = query.choice("keep", ("both", "head", "tail")) or "both"
    encoding = query.choice("output_encoding", ("text", "base64")) or "text"
    query.check()
    options = ResultOptions.model_validate(
        {"max_output_bytes": max_output_bytes, "keep": keep, "output_encoding": encoding}
    )
    async with patience(call.request) as answer:
        found = await calls.result(
            call.sandbox, call.process_id, options, wait_seconds=wait_seconds, beat=answer.beat, now=call.now
        )
        return await answer.finish(found)


async def _output(call: Call) -> web.StreamResponse:
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
        streamed(call.request, kind) as response,
        aclosing(opened) as events,
    ):
        if kind == EVENT_STREAM:
            await response.write(begin_server_events(None if tail_bytes is not None else after))
        render = _RENDERS[kind]
        async for event in events:
            await response.write(render(event))
        return response


async def _stdin(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    offset = query.optional_integer("offset", 0, MAX_POSITION)
    close = query.boolean("close", default=False)
    query.check()
    refuse_encoding(call.request)
    body = body_chunks(call.request)
    return json_answer(await calls.write_stdin(call.sandbox, call.process_id, body, offset=offset, close=close))


async def _signal(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, SignalSpec, MAX_BODY_BYTES)
    await calls.signal(call.sandbox, call.process_id, body, idempotency_key(call.request))
    return web.Response(status=204)


async def _resize(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, ResizeSpec, MAX_BODY_BYTES)
    await calls.resize(call.sandbox, call.process_id, body)
    return web.Response(status=204)


def _process_id(call: Call, given: str | None) -> str:
    """Return the id of the process to start or join: the client's, its key's, or a fresh one."""
    key = idempotency_key(call.request)
    derived = None if key is None else process_id_from_key(call.sandbox.id, key)
    if given is not None and derived not in (None, given):
        raise invalid_field("header:Idempotency-Key", "exclusive", "stands for another process than id")
    return given or derived or new_id("prc", call.random_bytes)
