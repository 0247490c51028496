"""The calls of the api on what is kept of a sandbox, also after its end: its log, and samples of its meters."""

import asyncio
from contextlib import aclosing
from typing import Final

from aiohttp import web

from sandboxd.app.answers import json_answer
from sandboxd.app.bounds import Bounds, Most
from sandboxd.app.call import streamed
from sandboxd.app.query import Query
from sandboxd.contract.ids import is_id
from sandboxd.contract.problems import ProblemError
from sandboxd.errors import not_found
from sandboxd.history.reading import lines
from sandboxd.manager.manager import Manager

LINES: Final = "application/vnd.sandlot.log-lines"
"""A position, a space and an object a line."""
_MOST: Final = Most(calls_of_one=32, calls=1024)
_LATEST_MS: Final = 253_402_300_799_000
_MOST_POSITION: Final = 2**62
_TAKE_SECONDS: Final = 60.0


def routes(manager: Manager) -> list[web.AbstractRouteDef]:
    """Return the routes `/node/v1/sandboxes/{id}/logs` and `…/metrics`."""
    calls = _HistoryCalls(manager)
    return [
        web.get("/node/v1/sandboxes/{sandbox_id}/logs", calls.logs, allow_head=False),
        web.get("/node/v1/sandboxes/{sandbox_id}/metrics", calls.metrics, allow_head=False),
    ]


class _HistoryCalls:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._bounds = Bounds(_MOST)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        sandbox_id = _sandbox_id(request)
        query = Query(request)
        after = query.integer("after", 0, 0, _MOST_POSITION)
        process_id = query.text("process_id", max_bytes=23, pattern="prc[a-z2-7]{20}")
        follow = query.boolean("follow", default=False)
        query.check()
        keeper = self._manager.tools.keeper
        if not keeper.is_on:
            raise ProblemError("not_implemented", "This node keeps no logs.", reason="logs")
        with self._bounds.call(sandbox_id):
            found = lines(keeper, sandbox_id, after=after, process_id=process_id, follow=follow)
            async with streamed(request, LINES) as response, aclosing(found):
                async for some in found:
                    # A reader that takes nothing must not hold its place for ever.
                    try:
                        async with asyncio.timeout(_TAKE_SECONDS):
                            await response.write(some)
                    except TimeoutError:
                        raise ProblemError("deadline_exceeded", "The reader takes nothing.") from None
                return response

    async def metrics(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        query = Query(request)
        begin_ms = query.integer("start_ms", 0, 0, _LATEST_MS)
        end_ms = query.integer("end_ms", _LATEST_MS, 0, _LATEST_MS)
        step_seconds = query.integer("step_seconds", 5, 5, 3600)
        query.check()
        with self._bounds.call(sandbox_id):
            live = self._manager.sampled_one(sandbox_id)
            sampler = self._manager.tools.sampler
            return json_answer(await sampler.samples(sandbox_id, begin_ms, end_ms, step_seconds, live))


def _sandbox_id(request: web.Request) -> str:
    sandbox_id = request.match_info["sandbox_id"]
    if not is_id("sbx", sandbox_id):
        raise not_found(sandbox_id[:64])
    return sandbox_id
