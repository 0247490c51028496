"""A secret is written, and the nodes of live sandboxes that inject it are told at once."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from api.services import egress, secrets
from api.services.identity import Caller
from api.services.platform import Platform
from api.services.secret_requests import PutSecret
from api.store import sandboxes
from api.store.secret_tables import Secret
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState

_AT_ONCE: Final = 16


async def put(platform: Platform, caller: Caller, name: str, body: PutSecret) -> tuple[Secret, bool]:
    """Have a secret be this; returns it, and whether it is new. The same again changes nothing, not the version.

    Live sandboxes whose policies inject it get the new value, and those that may not have it any more lose it.
    """
    done = await secrets.put(platform, caller, name, body)
    if done.told:
        platform.background.start(_tell(platform, done.told))
    return done.secret, done.created


async def _tell(platform: Platform, sandbox_ids: Sequence[str]) -> None:
    """Tell each node; who cannot be told now is told by the reconciler of policies."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def tell(sandbox_id: str) -> None:
        async with turn:
            sandbox = await platform.database.read(sandboxes.get_any_project, sandbox_id)
            if sandbox is not None and sandbox.ended_at is None and sandbox.state == SandboxState.RUNNING:
                with contextlib.suppress(ProblemError):
                    await egress.apply(platform, sandbox)

    async with asyncio.TaskGroup() as group:
        for sandbox_id in sandbox_ids:
            group.create_task(tell(sandbox_id))
