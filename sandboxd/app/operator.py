"""Calls of an operator on a node: what a backup and a look from outside need. For root, not for the api."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from sandboxd.app.metrics import CONTENT_TYPE, Meters
from sandboxd.app.query import Query
from sandboxd.app.server import peer_of, runner
from sandboxd.contract.problems import ProblemError
from sandboxd.errors import LedgerError
from sandboxd.ledger.base import Ledger


def routes(ledger: Ledger, meters: Meters) -> list[web.AbstractRouteDef]:
    """Return the routes under `/node/v1` that ask who calls."""
    calls = _OperatorCalls(ledger, meters)
    return [
        web.get("/node/v1/ledger", calls.ledger, allow_head=False),
        web.get("/node/v1/metrics", calls.metrics, allow_head=False),
    ]


@asynccontextmanager
async def listening(meters: Meters, host: str, port: int | None) -> AsyncGenerator[None]:
    """Serve `/metrics` on an address of its own while inside, where a port is set: nothing else is there."""
    if port is None:
        yield
        return

    async def metrics(_request: web.Request) -> web.Response:
        return _answer(meters)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    serves = runner(app)
    await serves.setup()
    try:
        await web.TCPSite(serves, host, port).start()
        yield
    finally:
        await serves.cleanup()


class _OperatorCalls:
    def __init__(self, ledger: Ledger, meters: Meters) -> None:
        self._ledger = ledger
        self._meters = meters

    async def ledger(self, request: web.Request) -> web.Response:
        """Answer with a consistent copy of the ledger."""
        _require_root(request)
        Query(request).check()
        try:
            return web.Response(body=await self._ledger.copy(), content_type="application/vnd.sqlite3")
        except LedgerError as error:
            raise ProblemError("disk_full", "The node cannot copy its ledger.", scope="node") from error

    async def metrics(self, request: web.Request) -> web.Response:
        _require_root(request)
        Query(request).check()
        return _answer(self._meters)


def _answer(meters: Meters) -> web.Response:
    return web.Response(body=meters.render(), headers={"Content-Type": CONTENT_TYPE})


def _require_root(request: web.Request) -> None:
    if peer_of(request) not in {0, os.getuid()}:
        raise ProblemError("unauthenticated", "This call is for root.", reason="wrong_user")
