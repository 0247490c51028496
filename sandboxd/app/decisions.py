"""The api's call on what was decided about a sandbox's traffic, also after its end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from sandboxd.app.bounds import Bounds, Most
from sandboxd.app.call import streamed
from sandboxd.app.history import LINES
from sandboxd.app.query import Query
from sandboxd.contract.ids import is_id
from sandboxd.errors import not_found
from sandboxd.history.decisions import DecisionBook, shown

_MOST: Final = Most(calls_of_one=32, calls=1024)
_MOST_POSITION: Final = 2**62
_LATEST_MS: Final = 253_402_300_799_000
_LIMIT: Final = 1000
_KEEPALIVE_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 1.0
"""How often a follower finds out that the sandbox has ended."""
_GATHER_SECONDS: Final = 0.05
"""Between two reads for one follower: what comes in a burst is read together."""


def routes(book: DecisionBook) -> list[web.AbstractRouteDef]:
    """Return the route `/node/v1/sandboxes/{id}/decisions`: a position, a space and an object a line."""
    calls = _DecisionCalls(book)
    return [web.get("/node/v1/sandboxes/{sandbox_id}/decisions", calls.read, allow_head=False)]


class _DecisionCalls:
    def __init__(self, book: DecisionBook) -> None:
        self._book = book
        self._bounds = Bounds(_MOST)

    async def read(self, request: web.Request) -> web.StreamResponse:
        sandbox_id = request.match_info["sandbox_id"]
        if not is_id("sbx", sandbox_id):
            raise not_found(sandbox_id[:64])
        query = Query(request)
        after = query.integer("after", 0, 0, _MOST_POSITION)
        since_ms = query.integer("since_ms", 0, 0, _LATEST_MS)
        limit = query.integer("limit", _LIMIT, 1, _LIMIT)
        verdict = query.text("verdict", max_bytes=5, pattern="allow|deny")
        follow = query.boolean("follow", default=False)
        query.check()
        with self._bounds.call(sandbox_id):
            if follow:
                found = self._followed(sandbox_id, after, since_ms, verdict)
            else:
                found = self._listed(sandbox_id, after, since_ms, verdict, limit)
            async with streamed(request, LINES) as response, aclosing(found):
                async for some in found:
                    await response.write(some)
                return response

    async def _listed(
        self, sandbox_id: str, after: int, since_ms: int, verdict: str | None, limit: int
    ) -> AsyncGenerator[bytes]:
        rows = await self._book.after(sandbox_id, after, since_ms, verdict, limit)
        yield b"".join(b"%d %s\n" % (row.id, to_json(shown(row))) for row in rows)

    async def _followed(self, sandbox_id: str, after: int, since_ms: int, verdict: str | None) -> AsyncGenerator[bytes]:
        position, quiet_seconds = after, 0.0
        with self._book.watched(sandbox_id) as news:
            while True:
                news.clear()
                goes_on = self._book.is_live(sandbox_id)
                rows = await self._book.after(sandbox_id, position, since_ms, verdict, _LIMIT)
                if rows:
                    position, quiet_seconds = rows[-1].id, 0.0
                    yield b"".join(b"%d %s\n" % (row.id, to_json(shown(row))) for row in rows)
                if len(rows) == _LIMIT:
                    continue
                if not goes_on:
                    return
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await news.wait()
                    await asyncio.sleep(_GATHER_SECONDS)
                except TimeoutError:
                    quiet_seconds += _LOOK_SECONDS
                    if quiet_seconds >= _KEEPALIVE_SECONDS:
                        quiet_seconds = 0.0
                        yield b'%d {"kind":"keepalive"}\n' % position
