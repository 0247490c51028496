"""Egress policies that were asked for and are not true: the node was out of reach, or the api ended in between."""

import contextlib
from typing import Final

from api.services import egress
from api.services.platform import Platform
from api.store import egress as store
from api.store.tables import Sandbox
from sandboxd.contract.problems import ProblemError

_BATCH: Final = 100
_AGAIN_US: Final = 10_000_000
"""How long a change may take before its node is told again."""


async def apply_again(platform: Platform) -> None:
    """Tell nodes again of policies that are not true."""
    before = platform.sources.now_us() - _AGAIN_US
    for sandbox in await platform.database.read(store.unapplied_any_project, asked_before_us=before, limit=_BATCH):
        platform.background.start(_apply(platform, sandbox))


async def _apply(platform: Platform, sandbox: Sandbox) -> None:
    # Its owner sees it in the policy's state; the next turn tries again.
    with contextlib.suppress(ProblemError):
        await egress.apply(platform, sandbox)
