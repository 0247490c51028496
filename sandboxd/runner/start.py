"""The start: a claim, or hooks in order, within the deadline, until the guest has acknowledged who it is."""

import asyncio

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.ledger.base import Phase
from sandboxd.runner.claim import Cold, claim, give_up
from sandboxd.runner.evidence import start_problem
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.line import Line
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)


async def start(
    life: Life, tools: Tools, line: Line, deadline_seconds: float, cold: Cold | None = None
) -> Cause | None:
    """Bring it to `running`; or say what its end begins with, leaving the undoing to the caller.

    Cut off by the deadline, and when its end begins. `line` bounds how many start at once. With `cold`, the life's
    parts are those of a ready sandbox, to be claimed first.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    scope = asyncio.timeout(deadline_seconds)
    try:
        async with scope:
            life.cut = lambda: scope.reschedule(loop.time())
            if life.cause is not None:
                life.cut()
            if cold is None or not await _claimed(life, tools, cold):
                await tools.ledger.put(life.record)
                async with line:
                    await _prepare(life, tools)
    except Exception as error:  # noqa: BLE001 - whatever fails, the start is undone and answered
        tools.counts.starts["failed" if life.cause is None else "overtaken"] += 1
        return _cause(life, error, deadline_seconds, expired=scope.expired())
    finally:
        life.cut = None
    # From here on it is a running sandbox, also if its end was asked for while the last write was under way.
    life.move(SandboxState.RUNNING)
    life.settled.set()
    tools.counts.starts["running"] += 1
    if not life.awaiting:
        tools.changed(life.id)  # else it would be said twice; should the answer get lost, the next full report says it
    _log.info("sandbox running", sandbox_id=life.id, seconds=round(loop.time() - began, 3))
    return None


async def _claimed(life: Life, tools: Tools, cold: Cold) -> bool:
    if not await claim(life, tools, cold):
        return False
    try:
        await _acknowledge(life, tools)
    except Exception as error:  # noqa: BLE001 - as long as it is nobody's in the ledger, a cold start does without it
        _log.warning("claim not written", sandbox_id=life.id, error=f"{type(error).__name__}: {error}")
        give_up(life, cold)
        return False
    return True


async def _prepare(life: Life, tools: Tools) -> None:
    for hook in tools.hooks:
        await hook.prepare(life.parts)
        if life.absorb():
            tools.ledger.put_soon(life.record)
    await _acknowledge(life, tools)


async def _acknowledge(life: Life, tools: Tools) -> None:
    now = tools.clock.boottime()
    life.activity.happened(now)
    init = life.parts.init
    life.write(
        phase=Phase.RUNNING,
        started_at=tools.clock.now(),
        wall_deadline=life.parts.wall_deadline,
        last_active=now,
        user=init.user if init else None,
        cwd=init.cwd if init else None,
        shell=init.shell if init else None,
        spec=life.parts.spec,
    )
    await tools.points.reach("start.acknowledge")
    await tools.ledger.put(life.record)
    await tools.points.reach("start.acknowledged")


def _cause(life: Life, error: Exception, deadline_seconds: float, *, expired: bool) -> Cause:
    life.write(
        phase=Phase.ADMITTED, exit_code=life.parts.exit_code
    )  # whatever was on its way into the ledger: it never ran
    if not expired:
        life.start_problem = start_problem(error, life)
        return Cause(error=error, message=life.start_problem.detail)
    if life.cause is not None:
        return life.cause
    life.start_problem = ProblemError(
        "deadline_exceeded",
        f"Sandbox {life.id} was not running within {deadline_seconds:g} seconds; everything of it was undone.",
        hint="Create it again, or allow it more time.",
        reason=SandboxReason.START_FAILED,
        sandbox_id=life.id,
    )
    return Cause(error=error, message=f"It was not running within {deadline_seconds:g} seconds.")
