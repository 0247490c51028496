"""Answers made of what a node keeps: its own call on the node, and its lines as the public surface shows them."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import aiohttp
from starlette.types import Message, Scope, Send
from yarl import URL

from api.routes.calls import Call
from api.routes.passthrough import PassThrough
from api.services.history import LogCursors
from api.services.node_client import REQUEST_ID
from sandboxd.contract.problems import ProblemError

NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
_LONGEST_LINE: Final = 1024 * 1024
_KIND: Final = b'"kind":"'

Render = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]


class Relay(PassThrough):
    """Answers what another call on the node answers; `render` makes what is shown of a success."""

    def __init__(
        self,
        call: Call,
        session: aiohttp.ClientSession,
        explain: Callable[[], Coroutine[Any, Any, ProblemError]],
        target: URL,
        render: tuple[str, Render] | None = None,
    ) -> None:
        super().__init__(call, session, explain)
        self._target = target
        self._render = render

    async def _pass(self, data: object, scope: Scope, send: Send) -> None:  # noqa: ARG002 - a GET has none
        headers = {REQUEST_ID: scope["sandlot.request_id"]}
        async with self._session.get(self._target, headers=headers, allow_redirects=False) as answer:
            render = self._render if answer.status == 200 else None
            kind = answer.headers.get("Content-Type", "application/json") if render is None else render[0]
            content: AsyncIterator[bytes] = answer.content.iter_any()
            start: Message = {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(b"content-type", kind.encode("latin-1"))],
            }
            self._begun = True
            await send(start)
            async for chunk in content if render is None else render[1](content):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def whole_lines(content: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield the lines that came at once. ClientPayloadError for what has no end."""
    rest = b""
    async for chunk in content:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise aiohttp.ClientPayloadError("a line without end")
        yield whole
    if rest:
        raise aiohttp.ClientPayloadError("a line is cut short")


async def node_lines(content: AsyncIterator[bytes]) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Yield what came at once as positions and objects. ClientPayloadError for what is none of the node's lines."""
    async for whole in whole_lines(content):
        try:
            cut = [line.split(b" ", 1) for line in whole]
            yield [(int(position), row) for position, row in cut]
        except ValueError as error:
            raise aiohttp.ClientPayloadError("not a line of a log") from error


def as_ndjson(sealed: LogCursors) -> Render:
    """Return what shows a log as lines of JSON."""

    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for some in node_lines(content):
            yield b"".join(b'{"cursor":"%b",%b\n' % (sealed.seal(position), row[1:]) for position, row in some)

    return render


def as_server_events(sealed: LogCursors, after: str | None, *, follow: bool) -> Render:
    """Return what shows a log as server-sent events. One that was followed to the sandbox's end says so."""

    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        cursor = (after or "").encode()
        yield b"retry: 1000\n" + (b"id: %b\n" % cursor if cursor else b"") + b"data:\n\n"
        async for some in node_lines(content):
            events: list[bytes] = []
            for position, row in some:
                kind = row.partition(_KIND)[2].partition(b'"')[0]
                if kind == b"keepalive":
                    events.append(b": keepalive\n\n")
                    continue
                cursor = sealed.seal(position)
                shown = b'{"cursor":"%b",%b' % (cursor, row[1:])
                events.append(b"event: %b\nid: %b\ndata: %b\n\n" % (kind, cursor, shown))
            yield b"".join(events)
        if follow:
            yield b"event: end\nid: %b:end\ndata: {}\n\n" % cursor

    return render
