"""The call on what listens in a sandbox."""

from aiohttp import web

from sandboxd.app.answers import json_answer
from sandboxd.app.call import Call, DataPlane
from sandboxd.app.query import Query
from sandboxd.processes.ports import listening


def routes(plane: DataPlane) -> list[web.AbstractRouteDef]:
    """Return the route of `…/ports`."""
    return [plane.on("GET", "/ports", _ports)]


async def _ports(call: Call) -> web.StreamResponse:
    query = Query(call.request)
    port = query.optional_integer("port", 1, 65535)
    wait_seconds = query.number("wait_seconds", 0, 0, 60)
    query.check()
    return json_answer(await listening(call.sandbox, port, wait_seconds))
