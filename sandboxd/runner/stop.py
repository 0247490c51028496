"""The end: written down, told to the guest, made certain, judged, and undone backwards."""

import asyncio
import contextlib
from typing import Final

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import ROW_OF
from sandboxd.contract.states import SandboxState
from sandboxd.errors import LedgerError, SandboxDiedError
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.history.threads import in_thread
from sandboxd.hooks.base import Parts, unless_dead
from sandboxd.ledger.base import Phase, Record
from sandboxd.runner.evidence import judge
from sandboxd.runner.failure import keep
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

STEPS: Final = ("stop.shutdown", "stop.drain", "stop.kill", "stop.judge", "stop.end")
"""What an end reaches beside the hooks' own steps."""
_SHUTDOWN_MARGIN_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 2.0
"""How long what its processes wrote last may take to be read into its log."""
_TRIES: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.05


async def end(life: Life, tools: Tools, cause: Cause, *, same_boot: bool = True) -> None:
    """Take a sandbox from wherever it is to its terminal state. Never raises but for cancellation.

    Cancelled, it leaves everything as it is: the ledger says enough for the next agent to finish.
    """
    life.begin_end(cause)
    cause = life.cause or cause
    if cause.intent is not None:
        await _announce(life, tools, cause)
    if cause.grace_seconds is not None and life.record.phase is Phase.RUNNING:
        await _tell_guest(life, tools, cause.grace_seconds)
        await _kill(life, tools)
    await _judge(life, tools, cause, same_boot=same_boot)
    life.leftover = not await undo_patiently(life.parts, tools)
    await _finish(life, tools)


async def _announce(life: Life, tools: Tools, cause: Cause) -> None:
    life.move(SandboxState.STOPPING)
    await _write(tools, life.write(intent=cause.intent, message=cause.message))
    tools.changed(life.id)


async def _tell_guest(life: Life, tools: Tools, grace_seconds: float) -> None:
    """Let the processes end by themselves, then let open streams read their last bytes."""
    guest = life.parts.guest
    if guest is None:
        return
    try:
        await tools.points.reach("stop.shutdown")
        await unless_dead(tools.runtime, life.handle, _shutdown(guest, grace_seconds))
        await tools.points.reach("stop.drain")
        async with asyncio.timeout(_LOG_SECONDS):
            await unless_dead(tools.runtime, life.handle, tools.keeper.drain(life))
        async with asyncio.timeout(tools.drain_seconds):
            await unless_dead(tools.runtime, life.handle, life.activity.quiet())
    except (GuestError, GuestUnreachableError, ProblemError, SandboxDiedError, TimeoutError) as error:
        _log.info("graceful stop cut short", sandbox_id=life.id, error=f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - grace is a courtesy: the end comes, whatever stands in its way
        _log.exception("graceful stop failed", sandbox_id=life.id)


async def _shutdown(guest: Guest, grace_seconds: float) -> None:
    async with asyncio.timeout(grace_seconds + _SHUTDOWN_MARGIN_SECONDS):
        await guest.shutdown(grace_seconds)


async def _judge(life: Life, tools: Tools, cause: Cause, *, same_boot: bool) -> None:
    """Decide the reason and write it down: what it stands on is about to be deleted."""
    await _reach(tools, "stop.judge")
    life.verdict = judge(life, tools, cause, same_boot=same_boot)
    await keep(life, tools.runtime, tools.keep_failure, cause)
    if life.record.intent is not life.verdict.reason:
        await _write(tools, life.write(intent=life.verdict.reason, message=life.verdict.message))
    life.ended.set()
    await _close_history(life, tools)


async def _close_history(life: Life, tools: Tools) -> None:
    """Finish what is kept of it. That it could not be kept must not keep it from ending."""
    try:
        if tools.sampler.tracks(life.id):  # else it has not lived long enough to have samples
            await in_thread(tools.sampler.last, life.sampled(tools.keeper.processes(life.id)))
        await tools.keeper.close(life, f"The sandbox has ended: {life.verdict.reason if life.verdict else None}.")
    except Exception:  # noqa: BLE001 - what is kept is a courtesy
        _log.exception("history not finished", sandbox_id=life.id)


async def _finish(life: Life, tools: Tools) -> None:
    await _reach(tools, "stop.end")
    report = life.last_word()
    life.move(report.state)
    await _write(tools, life.write(phase=Phase.ENDED, report=report))
    life.settled.set()
    life.over.set()
    tools.changed(life.id)
    tools.counts.ends[report.state, report.reason or ""] += 1
    _log.info(
        "sandbox ended",
        sandbox_id=life.id,
        state=report.state,
        reason=report.reason,
        billed=bool(report.reason and ROW_OF[report.reason].billed),
    )


async def undo_patiently(parts: Parts, tools: Tools) -> bool:
    """Undo every hook, some times over if need be; tells whether nothing is left."""
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(pause)
            pause *= 4
        errors = await undo(parts, tools)
        if not errors:
            return True
        for error in errors:
            _log.warning("cleanup failed", sandbox_id=parts.sandbox_id, attempt=attempt, error=f"{error}")
    return False


async def undo(parts: Parts, tools: Tools) -> list[str]:
    """Undo every hook backwards, each however the others fare; return what failed.

    A hook is held back only while one that must go first is still there.
    """
    errors: list[str] = []
    standing: set[str] = set()
    for hook in reversed(tools.hooks):
        if hook.safe_after & standing:
            standing.add(hook.name)
            errors.append(f"{hook.name}: held back")
            continue
        try:
            await hook.cleanup(parts)
        except Exception as error:  # noqa: BLE001 - the others are undone all the same
            standing.add(hook.name)
            tools.counts.cleanup_errors += 1
            errors.append(f"{hook.name}: {type(error).__name__}: {error}")
    return errors


async def _write(tools: Tools, record: Record) -> None:
    """Write a record if that is possible: a full disk must not keep a sandbox from ending."""
    try:
        await tools.ledger.put(record)
    except LedgerError as error:
        _log.error("ledger not written", sandbox_id=record.sandbox_id, error=str(error))


async def _kill(life: Life, tools: Tools) -> None:
    try:
        await tools.points.reach("stop.kill")
        await tools.runtime.kill(life.handle)
    except Exception:  # noqa: BLE001 - the launch hook kills again when it cleans up
        _log.exception("kill failed", sandbox_id=life.id)


async def _reach(tools: Tools, step: str) -> None:
    """Reach a step that has nothing of its own to fail."""
    with contextlib.suppress(Exception):
        await tools.points.reach(step)
