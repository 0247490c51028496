"""The verdict on an end: what is seen, read before anything is deleted, and the words for it."""

from typing import Final

import structlog

from sandboxd.contract.messages import SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import Evidence, SandboxReason, decide_reason
from sandboxd.errors import SandboxDiedError
from sandboxd.guest_client.base import GuestError
from sandboxd.images.base import ImageDamagedError, ImageMissingError
from sandboxd.ledger.base import Phase
from sandboxd.runner.life import Cause, Life, Verdict
from sandboxd.runner.tools import Tools
from sandboxd.runtime.base import ImageUnreadableError, RuntimeEnd, RuntimeFailedError, RuntimeUsage

_log = structlog.get_logger(__name__)

_SENTENCES: Final = {
    SandboxReason.REQUESTED: "It was deleted.",
    SandboxReason.WALL_TIMEOUT: "Its time was up.",
    SandboxReason.IDLE_TIMEOUT: "Nothing used it for {idle_seconds} seconds.",
    SandboxReason.OUT_OF_MEMORY: "It needed more than its {memory_mib} MiB of memory.",
    SandboxReason.NODE_DISK_FULL: "The node's disk was full.",
    SandboxReason.ENTRYPOINT_EXITED: "Its entrypoint ended.",
    SandboxReason.IMAGE_UNAVAILABLE: "Image {image} cannot be read on the node.",
    SandboxReason.START_FAILED: "It could not be started.",
    SandboxReason.GUEST_FAILED: "Its first process, the guest agent, ended.",
    SandboxReason.RUNTIME_FAILED: "The program that ran it died.",
    SandboxReason.NODE_RESTARTED: "The node was restarted.",
}

IMAGE_ERRORS: Final = (ImageMissingError, ImageDamagedError, ImageUnreadableError)


def judge(life: Life, tools: Tools, cause: Cause, *, same_boot: bool = True) -> Verdict:
    """Decide why it ended. The host's meters must still be there."""
    usage = _usage(life, tools)
    end = cause.end or RuntimeEnd()
    reason = decide_reason(
        Evidence(
            intent=cause.intent or life.record.intent,
            same_boot=same_boot,
            guest_answered=life.record.phase is Phase.RUNNING,
            oom_kills=usage.oom_kills if usage else 0,
            image_error=isinstance(cause.error, IMAGE_ERRORS),
            disk_full=tools.disk_full(),
            panic_log=_panicked(life, tools),
            sentry_exit_code=end.exit_code,
            sentry_signal=end.signal,
            gofer_died_first=end.gofer_died_first,
            guest_misbehaved=life.guest_misbehaved or isinstance(cause.error, GuestError),
        )
    )
    message = cause.message or life.record.message or describe(reason, life.record.spec)
    return Verdict(reason=reason, message=message, at=tools.clock.now())


def describe(reason: SandboxReason, spec: SandboxSpec) -> str:
    """Say a reason in a sentence."""
    sentence = _SENTENCES.get(reason, "It was stopped: {reason}.")
    return sentence.format(
        reason=reason,
        idle_seconds=spec.idle_timeout_seconds,
        memory_mib=spec.resources.memory_mib,
        image=spec.image.reference,
    )


def start_problem(error: Exception, life: Life) -> ProblemError:
    """Say to the caller why a sandbox could not be started. Details that name the host stay in the log."""
    sandbox_id = life.id
    reference = life.record.spec.image.reference
    match error:
        case ProblemError():
            error.members.setdefault("sandbox_id", sandbox_id)
            return error
        case ImageMissingError():
            return ProblemError("image_not_found", f"The node has no image {reference}.", sandbox_id=sandbox_id)
        case ImageDamagedError() | ImageUnreadableError():
            return ProblemError(
                "image_unavailable",
                f"Image {reference} cannot be read on the node.",
                reason=SandboxReason.IMAGE_UNAVAILABLE,
                sandbox_id=sandbox_id,
            )
        case _:
            _log.error("start failed", sandbox_id=sandbox_id, error=f"{type(error).__name__}: {error}")
            return ProblemError(
                "start_failed",
                f"Sandbox {sandbox_id} could not be started: {_step(error)}.",
                hint="Create it again.",
                reason=SandboxReason.START_FAILED,
                sandbox_id=sandbox_id,
            )


def _step(error: Exception) -> str:
    match error:
        case SandboxDiedError():
            return "it died before its guest agent answered"
        case GuestError():
            return "its guest agent broke its protocol"
        case RuntimeFailedError():
            return "the runtime failed"
        case OSError():
            return "the node could not write what it needs"
        case _:
            return f"{type(error).__name__.removesuffix('Error')} failed on the node"


def _usage(life: Life, tools: Tools) -> RuntimeUsage | None:
    try:
        life.usage = tools.runtime.usage(life.handle) or life.usage
    except (OSError, RuntimeFailedError) as error:
        _log.warning("meters cannot be read", sandbox_id=life.id, error=str(error))
    return life.usage


def _panicked(life: Life, tools: Tools) -> bool:
    try:
        return tools.runtime.panicked(life.handle)
    except (OSError, RuntimeFailedError) as error:
        _log.warning("panic log cannot be read", sandbox_id=life.id, error=str(error))
        return False
