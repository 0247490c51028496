"""What is kept of a sandbox that failed on the node's side, before its end takes it away: for whoever looks into it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from sandboxd.contract.reasons import SandboxReason
from sandboxd.runner.life import Cause, Life
from sandboxd.runtime.base import Runtime, RuntimeEnd, RuntimeFailedError

_log = structlog.get_logger(__name__)

KEPT: Final = frozenset(
    {
        SandboxReason.RUNTIME_FAILED,
        SandboxReason.START_FAILED,
        SandboxReason.GUEST_FAILED,
        SandboxReason.IMAGE_UNAVAILABLE,
    }
)
"""Ends that somebody may have to look into: the others say it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What was seen of it. No secret: nothing of its env, input or output is known here."""

    sandbox_id: str
    reason: SandboxReason
    message: str
    error: str
    """What our own code met, in its words; empty when it died by itself."""
    runtime_log: str
    """What the runtime's command logged that failed."""
    panic_log: str
    end: RuntimeEnd
    oom_kills: int


KeepFailure = Callable[[Failure], None]
"""Writes a failure down; may block, and may raise OSError."""


def keep_nothing(_failure: Failure) -> None:
    """Keep nothing."""


async def keep(life: Life, runtime: Runtime, write: KeepFailure, cause: Cause) -> None:
    """Keep what was seen of an end that is worth a look. Never raises: it is no part of the end."""
    verdict = life.verdict
    if verdict is None or verdict.reason not in KEPT:
        return
    error = cause.error
    try:
        failure = Failure(
            sandbox_id=life.id,
            reason=verdict.reason,
            message=verdict.message,
            error=f"{type(error).__name__}: {error}" if error else "",
            runtime_log=error.log if isinstance(error, RuntimeFailedError) else "",
            panic_log=runtime.panic_log(life.handle),
            end=cause.end or RuntimeEnd(),
            oom_kills=life.usage.oom_kills if life.usage else 0,
        )
        await asyncio.to_thread(write, failure)
    except Exception as failed:  # noqa: BLE001 - the end goes on, whatever could not be kept of it
        _log.warning("failure not kept", sandbox_id=life.id, error=f"{type(failed).__name__}: {failed}")
