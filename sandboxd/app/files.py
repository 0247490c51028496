"""The calls of clients on files, as the api passes them on.

Headers are made here, of what was checked; bodies stream through.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from sandboxd.app.answers import json_answer, negotiate
from sandboxd.app.call import MAX_BODY_BYTES, Call, DataPlane, body_chunks, cut, read_model, refuse_encoding
from sandboxd.app.directories import cursor_after, read_cursor
from sandboxd.app.query import Query
from sandboxd.contract.files import (
    ARCHIVE_FORMATS,
    MAX_DEPTH,
    MAX_GLOB_BYTES,
    MAX_GLOBS,
    MAX_STRIP,
    DirectorySpec,
    FileInfo,
    FileList,
    FilePatch,
    MoveSpec,
    path_of,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import render_time
from sandboxd.contract.validation import invalid_field
from sandboxd.files import calls
from sandboxd.files.streams import (
    StreamBrokenError,
    open_archive,
    open_content,
    open_listing,
    open_watch,
    page,
    render,
)
from sandboxd.files.trust import Span
from sandboxd.guest_client.file_calls import ExtractOptions, Part, Target, WriteOptions, encoded
from sandboxd.processes.rendering import EVENT_STREAM, NDJSON

_SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
}
"""What a sandbox holds is never a page of ours, whatever a browser makes of it."""
_OCTETS: Final = "application/octet-stream"
_ARCHIVE_TYPES: Final = {"tar": "application/x-tar", "tar.gz": "application/gzip", "tar.zst": "application/zstd"}
_MERGE_PATCH: Final = ("application/json", "application/merge-patch+json")
_MODE: Final = "0?[0-7]{3,4}"
_USER: Final = r"[^\x00\s/]+"
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)
_TAG: Final = r'(W/)?"[\x21\x23-\x7e]*"'
_TAGS: Final = re.compile(rf"\s*(\*|{_TAG}(\s*,\s*{_TAG})*)\s*", re.ASCII)
_MAX_TAGS: Final = 2048
_KEEPALIVE: Final = b": keepalive\n\n"


def routes(plane: DataPlane) -> list[web.AbstractRouteDef]:
    """Return the routes of `…/files`, `…/directories`, `…/archive` and `…/watch`."""
    on = plane.on
    return [
        on("GET", "/files", _read),
        on("HEAD", "/files", _head),
        on("PUT", "/files", _write),
        on("PATCH", "/files", _change),
        on("DELETE", "/files", _remove),
        on("GET", "/files/stat", _stat),
        on("POST", "/files/move", _move),
        on("GET", "/directories", _list),
        on("PUT", "/directories", _make_directory),
        on("GET", "/archive", _pack),
        on("PUT", "/archive", _unpack),
        on("GET", "/watch", _watch),
    ]


def _target(query: Query) -> Target:
    """Read what a call is about, check that nothing else was asked, and return it."""
    path, path_base64 = query.raw("path"), query.raw("path_base64")
    user = query.text("user", max_bytes=64, pattern=_USER)
    query.check()
    return Target(path_of(path, path_base64, "query:path"), user)


async def _read(call: Call) -> web.StreamResponse:
    target = _target(Query(call.request))
    part, unless = _part(call), _tags(call, "If-None-Match")
    async with open_content(call.sandbox, target, part, unless) as (span, pieces):
        if pieces is None:
            return web.Response(status=304, headers={"ETag": span.etag})
        partial = span.length < span.size or part != Part()
        response = web.StreamResponse(status=206 if partial else 200, headers=_headers(span, target))
        if partial:
            last = span.offset + span.length - 1
            response.headers["Content-Range"] = f"bytes {span.offset}-{last}/{span.size}"
        response.content_length = span.length
        async with _sending(call, response), aclosing(pieces):
            async for data in pieces:
                await response.write(data)
        return response


async def _head(call: Call) -> web.StreamResponse:
    target = _target(Query(call.request))
    unless = _tags(call, "If-None-Match")
    info = await calls.readable(call.sandbox, target)
    if unless is not None and _is_among(info.etag, unless):
        return web.Response(status=304, headers={"ETag": info.etag})
    response = web.StreamResponse(headers=_headers(Span(info.etag, 0, info.size_bytes, info.size_bytes), target))
    response.content_length = info.size_bytes
    await response.prepare(call.request)
    await response.write_eof()
    return response


def _headers(span: Span, target: Target) -> dict[str, str]:
    return _SAFE | {
        "Content-Type": _OCTETS,
        "Content-Disposition": _attachment(target),
        "ETag": span.etag,
        "Accept-Ranges": "bytes",
    }


def _attachment(target: Target, suffix: str = "") -> str:
    """Name the download after the path that was asked for."""
    name = target.path.rstrip(b"/").rpartition(b"/")[2].decode(errors="replace") + suffix
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _part(call: Call) -> Part:
    """Read `Range`. One that is not understood, or names several parts, is none: the answer is the whole file."""
    found = _RANGE.fullmatch(call.request.headers.get("Range", "").replace(" ", ""))
    if found is None or found[0] == "bytes=-":
        return Part()
    first, last = found.groups()
    if not first:
        return Part(suffix=int(last))
    if last and int(last) < int(first):
        return Part()
    return Part(first=int(first), last=int(last) if last else None)


def _tags(call: Call, name: str) -> str | None:
    values = call.request.headers.getall(name, [])
    if not values:
        return None
    value = ", ".join(values)
    if len(value) > _MAX_TAGS or _TAGS.fullmatch(value) is None:
        raise invalid_field(f"header:{name}", "entity_tags", "must be * or quoted entity tags")
    return value


def _is_among(etag: str, tags: str) -> bool:
    return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))


async def _write(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    mode = query.text("mode", max_bytes=5, pattern=_MODE)
    parents = query.boolean("parents", default=True)
    append = query.boolean("append", default=False)
    target = _target(query)
    options = WriteOptions(
        mode=mode,
        parents=parents,
        append=append,
        encoding=_encoding(call.request),
        match=_tags(call, "If-Match"),
        non_match=_tags(call, "If-None-Match"),
        length=call.request.content_length,
    )
    info, new = await calls.write(call.sandbox, target, body_chunks(call.request), options)
    return _described(info, 201 if new else 200)


def _encoding(request: web.Request) -> str | None:
    """Return how a body is packed: it is unpacked inside the sandbox, never here."""
    given = request.headers.get("Content-Encoding", "identity").strip().lower()
    if given not in ("identity", "gzip", "zstd"):
        raise ProblemError("unsupported_media_type", "A file is sent plain, or packed by gzip or zstd.")
    return None if given == "identity" else given


def _described(info: FileInfo, status: int = 200) -> web.Response:
    answer = web.Response(status=status, body=info.model_dump_json(exclude_none=True).encode())
    answer.content_type = "application/json"
    answer.headers["ETag"] = info.etag
    return answer


async def _change(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, FilePatch, MAX_BODY_BYTES, kinds=_MERGE_PATCH)
    changes = {"mode": body.mode, "owner": body.owner, "group": body.group}
    found = {name: value for name, value in changes.items() if value is not None}
    if body.modified_at is not None:
        if body.modified_at.tzinfo is None:
            raise invalid_field("/modified_at", "timezone", "must have a time zone")
        found["modified_at"] = render_time(body.modified_at)
    target = Target(body.location(), body.user)
    return _described(await calls.change(call.sandbox, target, found, recursive=body.recursive))


async def _remove(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    recursive = query.boolean("recursive", default=False)
    missing_ok = query.boolean("missing_ok", default=False)
    target = _target(query)
    await calls.remove(call.sandbox, target, recursive=recursive, missing_ok=missing_ok)
    return web.Response(status=204)


async def _stat(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    follow = query.boolean("follow", default=True)
    target = _target(query)
    return _described(await calls.stat(call.sandbox, target, follow=follow))


async def _move(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, MoveSpec, MAX_BODY_BYTES)
    target = Target(path_of(body.from_, body.from_base64, "/from"), body.user)
    to = path_of(body.to, body.to_base64, "/to")
    return _described(await calls.move(call.sandbox, target, to, overwrite=body.overwrite))


async def _make_directory(call: Call) -> web.StreamResponse:
    Query(call.request).check()
    body = await read_model(call.request, DirectorySpec, MAX_BODY_BYTES)
    target = Target(body.location(), body.user)
    info, new = await calls.make_directory(call.sandbox, target, body.mode, parents=body.parents)
    return _described(info, 201 if new else 200)


async def _list(call: Call) -> web.StreamResponse:
    kind = negotiate(call.request, ("application/json", NDJSON))
    query = Query(call.request)
    depth = query.integer("depth", 1, 1, MAX_DEPTH)
    if kind == NDJSON:
        return await _list_all(call, _target(query), depth)
    limit = query.integer("limit", 1000, 1, 10_000)
    cursor = query.text("cursor", max_bytes=8192)
    target = _target(query)
    filters = (call.sandbox.id, encoded(target.path), target.user, str(depth))
    after = b"" if cursor is None else read_cursor(cursor, filters)
    found, more = await page(call.sandbox, target, depth=depth, limit=limit, after=after)
    answer: dict[str, Any] = FileList(items=found).model_dump(mode="json", exclude_none=True)
    return json_answer(answer | {"next_cursor": cursor_after(found[-1], filters) if more else None})


async def _list_all(call: Call, target: Target, depth: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    async with open_listing(call.sandbox, target, depth) as rows, _sending(call, response), aclosing(rows):
        async for some in rows:
            await response.write(some)
    return response


async def _pack(call: Call) -> web.StreamResponse:
    query = Query(call.request, repeated=("exclude",))
    archive_format = query.choice("format", ARCHIVE_FORMATS) or "tar"
    exclude = query.texts("exclude", most=MAX_GLOBS, max_bytes=MAX_GLOB_BYTES)
    target = _target(query)
    headers = _SAFE | {
        "Content-Type": _ARCHIVE_TYPES[archive_format],
        "Content-Disposition": _attachment(target, "." + archive_format),
    }
    response = web.StreamResponse(headers=headers)
    async with (
        open_archive(call.sandbox, target, archive_format, exclude) as pieces,
        _sending(call, response),
        aclosing(pieces),
    ):
        async for data in pieces:
            await response.write(data)
    return response


async def _unpack(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    archive_format = query.choice("format", ARCHIVE_FORMATS) or "tar"
    strip = query.integer("strip_components", 0, 0, MAX_STRIP)
    overwrite = query.boolean("overwrite", default=True)
    target = _target(query)
    refuse_encoding(call.request)
    options = ExtractOptions(
        archive_format=archive_format, strip=strip, overwrite=overwrite, length=call.request.content_length
    )
    found = await calls.unpack(call.sandbox, target, body_chunks(call.request), options)
    return json_answer(found)


async def _watch(call: Call) -> web.StreamResponse:
    kind = negotiate(call.request, (NDJSON, EVENT_STREAM))
    query = Query(call.request)
    recursive = query.boolean("recursive", default=True)
    target = _target(query)
    response = web.StreamResponse(headers={"Content-Type": kind})
    async with (
        open_watch(call.sandbox, target, recursive=recursive) as events,
        _sending(call, response),
        aclosing(events),
    ):
        if kind == EVENT_STREAM:
            await response.write(b"retry: 1000\n\n")
        async for some in events:
            if kind == NDJSON:
                await response.write(b"".join(map(render, some)))
            else:
                await response.write(b"".join([_server_event(event.kind, render(event)) for event in some]))
    return response


def _server_event(kind: str, line: bytes) -> bytes:
    return _KEEPALIVE if kind == "keepalive" else b"event: %s\ndata: %s\n" % (kind.encode(), line)


@asynccontextmanager
async def _sending(call: Call, response: web.StreamResponse) -> AsyncGenerator[None]:
    """Begin an answer; whatever goes wrong in it breaks the connection, so that it never looks whole."""
    await response.prepare(call.request)
    try:
        yield
        await response.write_eof()
    except (ProblemError, StreamBrokenError) as error:
        raise cut(call.request) from error
