"""The claim: a sandbox of the ready pool becomes the one that was asked for, or is given up for a cold start."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.hooks.base import Parts
from sandboxd.ledger.base import Phase
from sandboxd.runner.life import Life
from sandboxd.runner.line import Line
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

STEPS: Final = ("claim.write", "claim.written")
"""What a claim reaches beside the hooks' own steps."""
CLAIM_SECONDS: Final = 5.0
"""A claim takes some milliseconds; one that takes this long has met a sandbox that is none any more."""
_SAME_COLD: Final = frozenset({"user_not_found", "cwd_not_found", "start_failed"})
"""Refusals of a guest that come of the image and of what was asked: a cold start would only say them later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cold:
    """What a start goes on with when its claim failed."""

    nonce: str
    parts: Parts
    turn: Line
    """Many claims at once only make each slower; the time one may take begins with its turn."""
    discard: Callable[[Parts], None]
    """Takes over what was claimed: somebody's name is on it, so it is nobody else's any more."""


async def claim(life: Life, tools: Tools, cold: Cold) -> bool:
    """Make the ready sandbox in the life's parts its own. False: it was given up, and nothing has begun yet.

    Raises what a cold start would refuse as well.
    """
    try:
        async with cold.turn, asyncio.timeout(CLAIM_SECONDS):
            await tools.points.reach("claim.write")
            used = tools.runtime.cpu_used_seconds(life.handle)
            # Ahead of the acts, but not waited for: until the row says `running`, a restart buries it whatever it says.
            tools.ledger.put_soon(life.write(cpu_before_seconds=used or 0))
            await tools.points.reach("claim.written")
            await _claim_all(life.parts, tools)
    except Exception as error:
        if isinstance(error, ProblemError) and error.code in _SAME_COLD:
            raise
        _log.warning("claim failed", sandbox_id=life.id, handle=life.handle, error=f"{type(error).__name__}: {error}")
        give_up(life, cold)
        return False
    return True


async def _claim_all(parts: Parts, tools: Tools) -> None:
    """Have all hooks claim it, at once but for those that come after others: what each changes is its own."""
    waiting = list(tools.hooks)
    done: set[str] = set()
    while waiting:
        now = [hook for hook in waiting if hook.claims_after <= done] or waiting
        try:
            async with asyncio.TaskGroup() as group:
                for hook in now:
                    group.create_task(hook.claim(parts))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        done.update(hook.name for hook in now)
        waiting = [hook for hook in waiting if hook not in now]


def give_up(life: Life, cold: Cold) -> None:
    """Let go of what was claimed, and be as if nothing had been."""
    claimed = life.parts
    life.parts = cold.parts
    life.write(
        handle=cold.parts.handle,
        nonce=cold.nonce,
        phase=Phase.ADMITTED,
        slot_index=None,
        incarnation=None,
        address=None,
        cpu_before_seconds=0,
    )
    cold.discard(claimed)
