"""Nodes that have fallen silent: their sandboxes are lost, and after the grace they have failed."""

import structlog

from api.services.fleet import Member
from api.services.platform import Platform
from api.services.reports import note
from api.store import nodes as node_store
from api.store import sandboxes as store
from api.store.sandboxes import Applied

_log = structlog.get_logger()


async def watch_nodes(platform: Platform) -> None:
    """Mark what was on nodes silent for too long."""
    now = platform.sources.monotonic()
    for member in list(platform.fleet.members.values()):
        if not member.silent and now - member.last_seen > platform.settings.silence_seconds:
            await _lose(platform, member)


async def _lose(platform: Platform, member: Member) -> None:
    """Fence the node, so that nothing it was told before holds when it returns, then mark its sandboxes."""
    member.silent = True
    member.epoch += 1
    member.applied.clear()
    _log.warning("node is silent", node=member.id)
    await platform.database.write(node_store.fence_any_project, member.id, epoch=member.epoch)
    lost = await platform.database.write(store.lose_any_project, member.id, platform.sources.now_us())
    for sandbox_id in lost:
        platform.fleet.unsettle(sandbox_id)
        platform.changes.notify(sandbox_id)


async def bury_lost(platform: Platform) -> None:
    """Fail what has been lost for longer than the grace."""
    now_us = platform.sources.now_us()
    before = now_us - round(platform.settings.lost_grace_seconds * 1e6)
    for sandbox_id in await platform.database.write(store.bury_lost_any_project, lost_before_us=before, now_us=now_us):
        sandbox = await platform.database.read(store.get_any_project, sandbox_id)
        note(platform, Applied(sandbox_id, "ended", sandbox))
