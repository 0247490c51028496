"""Every call of clients on a live sandbox, put together."""

import os
from collections.abc import Callable
from datetime import datetime

from aiohttp import web

from sandboxd.app import attach, dial, files, ports, processes
from sandboxd.app.bounds import Bounds
from sandboxd.app.call import DataPlane, utc_now
from sandboxd.contract.ids import RandomBytes
from sandboxd.processes.live import Ending, Sandboxes


def routes(
    sandboxes: Sandboxes,
    *,
    now: Callable[[], datetime] = utc_now,
    random_bytes: RandomBytes = os.urandom,
    leaving: Ending | None = None,
) -> list[web.AbstractRouteDef]:
    """Return the routes below `/v1/sandboxes/{id}`; `leaving` is set before this program stops."""
    plane = DataPlane(sandboxes, now, random_bytes, Bounds(), leaving or Ending())
    calls = (processes, files, ports, attach, dial)
    return [route for each in calls for route in each.routes(plane)]
