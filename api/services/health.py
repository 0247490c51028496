"""Whether the platform can do its work, and the gauges that say how much of it there is."""

import asyncio
from collections import Counter
from typing import Final

from api.services.platform import Platform
from api.store import nodes
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState

_STORE_SECONDS: Final = 2.0


async def checks(platform: Platform) -> dict[str, bool]:
    """Return what must be true before a create can succeed."""
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            store = await platform.database.read(nodes.ping_any_project)
    except (ProblemError, TimeoutError):
        store = False
    node = any(view.ready for view in platform.fleet.views())
    return {"store": store, "node": node}


def observe(platform: Platform) -> None:
    """Set the gauges to what nodes last said."""
    states = Counter(report.state for report in platform.fleet.observed.values())
    for state in SandboxState:
        platform.metrics.observed.labels(state.value).set(states.get(state, 0))
    platform.metrics.pending.set(len(platform.starting))
    members = platform.fleet.members.values()
    for member in members:
        if member.report is not None:
            platform.metrics.note_pool(member.id, member.incarnation, member.report.pool)
    silent = sum(member.silent for member in members)
    platform.metrics.nodes.labels("ready").set(len(members) - silent)
    platform.metrics.nodes.labels("silent").set(silent)
