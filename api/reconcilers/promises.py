"""Promises nobody is keeping at the moment: stops not carried out, starts without an outcome, runs without a waiter."""

from typing import Final

from api.services import reports, sandboxes, stopping
from api.services.platform import Platform
from api.store import sandboxes as store
from sandboxd.contract.reasons import SandboxReason

_BATCH: Final = 200
_STOP_AGAIN_US: Final = 5_000_000
"""How long a stop may take before the node is told again."""
_OVERDUE_US: Final = 10_000_000
"""How long after its deadline a start counts as without outcome; the node has undone it by then."""


async def stop_again(platform: Platform) -> None:
    """Tell nodes again of what shall stop and has not."""
    before = platform.sources.now_us() - _STOP_AGAIN_US
    rows = await platform.database.read(store.unstopped_any_project, asked_before_us=before, limit=_BATCH)
    for sandbox in rows:
        if sandbox.id not in platform.stopping and sandbox.id not in platform.starting:
            platform.background.start(stopping.stop(platform, sandbox, grace_seconds=0))


async def settle_starts(platform: Platform) -> None:
    """Ask nodes about starts that should long have ended; what they do not know has failed.

    An env is never stored, so a start whose api has died before the node took it cannot be made up for.
    """
    before = platform.sources.now_us() - _OVERDUE_US
    for sandbox in await platform.database.read(store.overdue_any_project, deadline_before_us=before, limit=_BATCH):
        if sandbox.id not in platform.starting and not await sandboxes.refresh(platform, sandbox):
            message = "No node took it within its deadline."
            await reports.end_all(platform, [sandbox.id], SandboxReason.START_FAILED, message)


async def stop_orphans(platform: Platform) -> None:
    """Stop the sandboxes of runs that an earlier start of the api was waiting for."""
    orphans = await platform.database.write(
        store.orphans_any_project, incarnation=platform.incarnation, now_us=platform.sources.now_us()
    )
    for sandbox in orphans:
        platform.fleet.note(sandbox)
        platform.background.start(stopping.stop(platform, sandbox, grace_seconds=0))
