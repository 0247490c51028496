"""Ending sandboxes: the intent is written first, then the node is told until it agrees."""

import asyncio
from typing import Final

import structlog

from api.services import reports
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.waiting import wait_until
from api.store import sandboxes as store
from api.store.sandboxes import Filter
from api.store.tables import Sandbox
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import DesiredState

_log = structlog.get_logger()
_GONE: Final = frozenset({"sandbox_not_found", "moved", "sandbox_ended"})
_NODE_WAIT_SECONDS: Final = 90.0
"""How long one call may wait for the end of a stop; longer than the longest grace."""
_NAMED: Final = 1000
_BATCH: Final = 200
_AT_ONCE: Final = 16
_BULK_GRACE_SECONDS: Final = 5.0


async def delete(
    platform: Platform,
    caller: Caller,
    sandbox_id: str,
    *,
    grace_seconds: float,
    wait_seconds: float,
    match: frozenset[int] | None,
) -> Sandbox:
    """Ask for the end, and wait for it a while. Asking again changes nothing."""
    sandbox = await platform.database.write(
        store.ask_stop, caller.project_id, sandbox_id, now_us=platform.sources.now_us(), match=match
    )
    _asked(platform, sandbox)
    if sandbox.ended_at is not None:
        return sandbox
    platform.background.start(stop(platform, sandbox, grace_seconds=grace_seconds))
    return await wait_until(platform, sandbox, lambda row: row.ended_at is not None, seconds=wait_seconds)


def _asked(platform: Platform, sandbox: Sandbox) -> None:
    """Let everybody know that it shall stop."""
    platform.fleet.note(sandbox)
    if sandbox.id in platform.starting:
        platform.overtaken.add(sandbox.id)
    platform.changes.notify(sandbox.id)


async def delete_matching(
    platform: Platform, caller: Caller, wanted: Filter, *, dry_run: bool
) -> tuple[int, list[str]]:
    """Ask for the end of all that match now; returns how many, and the ids of the first thousand.

    What was asked before counts as matched. Nothing is waited for: the intent is written, the nodes are told a few at
    a time.
    """
    matched, named = await platform.database.read(store.matching, caller.project_id, wanted, limit=_NAMED)
    if not dry_run:
        while asked := await platform.database.write(
            store.ask_stop_matching, caller.project_id, wanted, limit=_BATCH, now_us=platform.sources.now_us()
        ):
            for sandbox in asked:
                _asked(platform, sandbox)
            platform.background.start(_stop_all(platform, asked))
            if len(asked) < _BATCH:
                break
    return matched, named


async def _stop_all(platform: Platform, sandboxes: list[Sandbox]) -> None:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(sandbox: Sandbox) -> None:
        async with limit:
            await stop(platform, sandbox, grace_seconds=_BULK_GRACE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for sandbox in sandboxes:
            group.create_task(one(sandbox))


async def stop(platform: Platform, sandbox: Sandbox, *, grace_seconds: float) -> None:
    """Tell the node; apply what it says. Where it cannot be told, the reconciler will."""
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None or sandbox.id in platform.stopping or sandbox.desired_state != DesiredState.STOPPED:
        return
    platform.stopping.add(sandbox.id)
    try:
        report = await platform.nodes.stop(
            member.address,
            sandbox.id,
            generation=sandbox.generation,
            epoch=member.epoch,
            grace_seconds=grace_seconds,
            wait_seconds=_NODE_WAIT_SECONDS,
        )
    except NodeUnreachableError as error:
        _log.warning("stop not confirmed", sandbox=sandbox.id, node=sandbox.node_id, why=str(error))
    except NodeProblemError as error:
        if error.code not in _GONE:
            _log.warning("stop refused", sandbox=sandbox.id, node=sandbox.node_id, code=error.code)
        elif sandbox.id not in platform.starting:
            await reports.end_all(platform, [sandbox.id], SandboxReason.REQUESTED, None)
    else:
        await reports.apply(platform, sandbox.node_id, [report])
    finally:
        platform.stopping.discard(sandbox.id)
