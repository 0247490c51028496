"""Watches for the end of a sandbox's entrypoint, which is the sandbox's end."""

import asyncio
from typing import Final

import structlog

from sandboxd.contract.ids import entrypoint_process_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Process
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import ProcessState
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.processes.trust import check_process
from sandboxd.runner.deadlines import STOP_GRACE_SECONDS
from sandboxd.runner.life import Cause, Life

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 600.0
"""One question to the guest waits so long: its answer comes when the process ends."""
_PAUSE_SECONDS: Final = 1.0
"""After a question that got no answer. Whether the sandbox is still there is for others to find out."""


def has_entrypoint(life: Life) -> bool:
    """Tell whether the sandbox was started with one."""
    return life.record.spec.entrypoint is not None


async def watch_entrypoint(life: Life) -> Cause:
    """Return when the entrypoint has ended, with its exit code in the record."""
    while True:
        try:
            process = await _look(life)
        except ProblemError as error:
            if error.code == "process_not_found":  # it ended so long ago that the guest has forgotten it
                return _cause(None)
            await asyncio.sleep(_PAUSE_SECONDS)
        except GuestError as error:
            _log.warning("guest failed a call", sandbox_id=life.id, error=str(error))
            life.guest_misbehaved = True
            await asyncio.sleep(_PAUSE_SECONDS)
        except GuestUnreachableError:
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            if process.state is ProcessState.ENDED:
                life.write(exit_code=process.exit_code)
                return _cause(process)


async def _look(life: Life) -> Process:
    if life.parts.guest is None:
        raise GuestUnreachableError("no guest")
    process_id = entrypoint_process_id(life.id)
    began = asyncio.get_running_loop().time()
    process = check_process(await life.parts.guest.process(process_id, _LOOK_SECONDS), life.id, process_id)
    if process.state is ProcessState.RUNNING and asyncio.get_running_loop().time() - began < _PAUSE_SECONDS:
        await asyncio.sleep(_PAUSE_SECONDS)  # a guest that answers at once is not to keep the node busy
    return process


def _cause(process: Process | None) -> Cause:
    message = "Its entrypoint ended."
    if process is not None:
        message = f"Its entrypoint ended with exit code {process.exit_code} ({process.reason})."
    return Cause(intent=SandboxReason.ENTRYPOINT_EXITED, message=message, grace_seconds=STOP_GRACE_SECONDS)
