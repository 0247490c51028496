"""The deadlines: the wall clock's, which counts from the start, and the idle one's, which counts from the last use."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.guest_client.base import GuestError, GuestUnreachableError, Health
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.tools import Tools

STOP_GRACE_SECONDS: Final = 5.0
"""What processes get between SIGTERM and SIGKILL when a deadline ends them, as with a delete."""
_HEALTH_SECONDS: Final = 5.0


async def watch_deadlines(life: Life, tools: Tools) -> Cause:
    """Return when a deadline has passed, whichever and however often they are moved meanwhile."""
    look_at = life.activity.last_active() + (life.record.spec.idle_timeout_seconds or 0)
    while True:
        life.rescheduled.clear()
        wall = life.record.wall_deadline
        idle_seconds = life.record.spec.idle_timeout_seconds
        due = [at for at in (wall, None if idle_seconds is None else look_at) if at is not None]
        if due:
            await _either(tools.clock.sleep_until(min(due)), life.rescheduled.wait())
        else:
            await life.rescheduled.wait()
        now = tools.clock.boottime()
        if life.rescheduled.is_set():
            look_at = life.activity.last_active() + (life.record.spec.idle_timeout_seconds or 0)
        elif wall is not None and now >= wall:
            return Cause(intent=SandboxReason.WALL_TIMEOUT, grace_seconds=STOP_GRACE_SECONDS)
        elif idle_seconds is not None:
            used = await last_use(life, tools)
            if used + idle_seconds <= tools.clock.boottime():
                return Cause(intent=SandboxReason.IDLE_TIMEOUT, grace_seconds=STOP_GRACE_SECONDS)
            look_at = used + idle_seconds


async def last_use(life: Life, tools: Tools) -> float:
    """Return the boot time of the last use, the running processes' included. Asks the guest, if it has a say."""
    now = tools.clock.boottime()
    idle_seconds = life.record.spec.idle_timeout_seconds or 0
    used = life.activity.last_active()
    if used + idle_seconds > now or life.record.spec.idle_ignores_processes:
        return used
    health = await _health(life)
    if health is not None:
        if health.processes_running > 0:
            life.activity.happened(now)
        elif health.last_exit_at_us > 0:
            # The guest's clock and word: it can only claim what keeping a process running would give it as well.
            ago = tools.clock.now().timestamp() - health.last_exit_at_us / 1_000_000
            life.activity.happened(now - max(0.0, ago))
    return life.activity.last_active()


async def _health(life: Life) -> Health | None:
    """Ask the guest; one that does not answer has no say."""
    if life.parts.guest is None:
        return None
    try:
        return await life.parts.guest.health(timeout_seconds=_HEALTH_SECONDS)
    except (GuestError, GuestUnreachableError, ProblemError):
        return None


async def _either(first: Coroutine[Any, Any, object], second: Coroutine[Any, Any, object]) -> None:
    """Return when one of them has; the other is cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = group.create_task(first), group.create_task(second)
        for task, other in (tasks, tasks[::-1]):
            task.add_done_callback(lambda _, other=other: other.cancel())
