"""Egress policies that were asked for and are not true: the node was out of reach, or the api ended in between."""

import contextlib
from typing import Final

from api.services import egress
from api.services.platform import Platform
from api.store import egress as store
from api.store import sandboxes
from api.store.tables import Sandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState

_BATCH: Final = 100
_AGAIN_US: Final = 10_000_000
"""How long a change may take before its node is told again."""


async def apply_again(platform: Platform) -> None:
    """Tell nodes again of policies that are not true."""
    before = platform.sources.now_us() - _AGAIN_US
    for sandbox in await platform.database.read(store.unapplied_any_project, asked_before_us=before, limit=_BATCH):
        platform.background.start(_apply(platform, sandbox))


async def give_credentials(platform: Platform) -> None:
    """Tell nodes what to put into requests of sandboxes for which they say that they do not know it."""
    lacking = [
        report.id
        for report in platform.fleet.observed.values()
        if report.credentials_missing and report.state is SandboxState.RUNNING and report.id not in platform.telling
    ]
    for sandbox_id in lacking[:_BATCH]:
        platform.telling.add(sandbox_id)
        platform.background.start(_give(platform, sandbox_id))


async def _give(platform: Platform, sandbox_id: str) -> None:
    try:
        sandbox = await platform.database.read(sandboxes.get_any_project, sandbox_id)
        if sandbox is not None and sandbox.ended_at is None:
            await _apply(platform, sandbox)
    finally:
        platform.telling.discard(sandbox_id)


async def _apply(platform: Platform, sandbox: Sandbox) -> None:
    # Its owner sees it in the policy's state; the next turn tries again.
    with contextlib.suppress(ProblemError):
        await egress.apply(platform, sandbox)
