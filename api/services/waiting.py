"""Waiting for a sandbox to change."""

import asyncio
from collections.abc import Callable

from api.services.platform import Platform
from api.store import sandboxes as store
from api.store.tables import Sandbox


async def wait_until(
    platform: Platform, sandbox: Sandbox, reached: Callable[[Sandbox], bool], *, seconds: float
) -> Sandbox:
    """Return the sandbox once `reached` says so, or as it is when the time is up."""
    if reached(sandbox) or seconds <= 0:
        return sandbox
    with platform.changes.subscribe(sandbox.id) as changed:
        try:
            async with asyncio.timeout(seconds):
                while not reached(sandbox):
                    changed.clear()
                    sandbox = await platform.database.read(store.get, sandbox.project_id, sandbox.id)
                    if not reached(sandbox):
                        await changed.wait()
        except TimeoutError:
            return await platform.database.read(store.get, sandbox.project_id, sandbox.id)
    return sandbox
