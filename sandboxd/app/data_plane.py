"""Every call of clients on a live sandbox, put together."""

import os
from collections.abc import Callable
from datetime import datetime

from aiohttp import web

from sandboxd.app import ports, processes
from sandboxd.app.bounds import Bounds
from sandboxd.app.call import DataPlane, utc_now
from sandboxd.contract.ids import RandomBytes
from sandboxd.processes.live import Sandboxes


def routes(
    sandboxes: Sandboxes, *, now: Callable[[], datetime] = utc_now, random_bytes: RandomBytes = os.urandom
) -> list[web.AbstractRouteDef]:
    """Return the routes below `/v1/sandboxes/{id}`."""
    plane = DataPlane(sandboxes, now, random_bytes, Bounds())
    return [*processes.routes(plane), *ports.routes(plane)]
