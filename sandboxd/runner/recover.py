"""Recovery: taking over a sandbox that an earlier node agent started, or saying with what its end goes on."""

import structlog

from sandboxd.contract.reasons import SandboxReason
from sandboxd.errors import SandboxDiedError
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)


async def recover(life: Life, tools: Tools) -> Cause | None:
    """Make every hook take over what is there. None: it runs on."""
    problem: Cause | None = None
    for hook in tools.hooks:
        try:
            await hook.recover(life.parts)
        except SandboxDiedError as error:
            problem = problem or _died(life, tools, error)
        except Exception as error:  # noqa: BLE001 - what cannot be taken over is ended, whatever the cause
            _log.warning("sandbox cannot be taken over", sandbox_id=life.id, hook=hook.name, error=str(error))
            problem = problem or Cause(error=error, message="It could not be taken over after a restart of the agent.")
    if life.record.intent is not None:
        # Its end was under way; the processes have had their grace, or died with the agent's last words.
        return Cause(intent=life.record.intent, message=life.record.message, grace_seconds=None if problem else 0)
    return problem


def _died(life: Life, tools: Tools, error: SandboxDiedError) -> Cause:
    deadline = life.record.wall_deadline
    if deadline is not None and tools.clock.boottime() >= deadline:
        # The guest's backstop did what the agent was not there to do.
        return Cause(intent=SandboxReason.WALL_TIMEOUT, error=error)
    return Cause(error=error)
