"""Why sandboxes and processes end: stable codes, the evidence for each, and the one function that decides."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from sandboxd.contract.states import SandboxState


class SandboxReason(StrEnum):
    """Why a sandbox is in its state; kept after its end."""

    REQUESTED = "requested"
    WALL_TIMEOUT = "wall_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    NODE_DISK_FULL = "node_disk_full"
    ENTRYPOINT_EXITED = "entrypoint_exited"
    IMAGE_UNAVAILABLE = "image_unavailable"
    START_FAILED = "start_failed"
    GUEST_FAILED = "guest_failed"
    RUNTIME_FAILED = "runtime_failed"
    NODE_LOST = "node_lost"
    NODE_RESTARTED = "node_restarted"
    NODE_DRAINED = "node_drained"
    EVICTED = "evicted"
    OPERATOR_STOPPED = "operator_stopped"
    QUOTA_EXCEEDED = "quota_exceeded"
    NO_CAPACITY = "no_capacity"
    PROJECT_SUSPENDED = "project_suspended"
    PROJECT_DELETED = "project_deleted"
    PAUSED_EXPIRED = "paused_expired"
    SNAPSHOT_UNUSABLE = "snapshot_unusable"


class ProcessReason(StrEnum):
    """Why a process ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    OUTPUT_LIMIT = "output_limit"
    KILLED = "killed"
    SANDBOX_STOPPED = "sandbox_stopped"
    NOT_STARTED = "not_started"


class ReasonRow(NamedTuple):
    """What a sandbox's reason stands on and what follows from it."""

    reason: SandboxReason
    ends_as: SandboxState
    evidence: str
    retryable: bool
    """Whether creating the same sandbox again can help."""
    billed: bool
    """Whether its running time is billed up to the end."""


_R = SandboxReason
_STOPPED = SandboxState.STOPPED
_FAILED = SandboxState.FAILED

REASONS: Final = (
    ReasonRow(_R.REQUESTED, _STOPPED, "intent in the ledger: a delete", retryable=True, billed=True),
    ReasonRow(_R.WALL_TIMEOUT, _STOPPED, "intent: the wall deadline passed", retryable=True, billed=True),
    ReasonRow(_R.IDLE_TIMEOUT, _STOPPED, "intent: the idle deadline passed", retryable=True, billed=True),
    ReasonRow(_R.OUT_OF_MEMORY, _FAILED, "the cgroup's oom_kill counter rose", retryable=False, billed=True),
    ReasonRow(_R.NODE_DISK_FULL, _FAILED, "the node's disk was full when it died", retryable=True, billed=False),
    ReasonRow(
        _R.ENTRYPOINT_EXITED, _STOPPED, "intent: the guest said the entrypoint exited", retryable=False, billed=True
    ),
    ReasonRow(_R.IMAGE_UNAVAILABLE, _FAILED, "the image could not be opened or verified", retryable=True, billed=False),
    ReasonRow(
        _R.START_FAILED,
        _FAILED,
        "a hook failed before it ran, or its entrypoint could not be executed",
        retryable=True,
        billed=False,
    ),
    ReasonRow(
        _R.GUEST_FAILED, _FAILED, "PID 1 ended, or lies, while the sentry was well", retryable=False, billed=True
    ),
    ReasonRow(
        _R.RUNTIME_FAILED, _FAILED, "the sentry or gofer died, or left a panic log", retryable=True, billed=False
    ),
    ReasonRow(_R.NODE_LOST, _FAILED, "the node stayed silent longer than the grace", retryable=True, billed=False),
    ReasonRow(
        _R.NODE_RESTARTED, _FAILED, "the host's boot id changed under a live sandbox", retryable=True, billed=False
    ),
    ReasonRow(_R.NODE_DRAINED, _STOPPED, "intent: the node was drained", retryable=True, billed=True),
    ReasonRow(_R.EVICTED, _FAILED, "intent: the node needed its resources", retryable=True, billed=False),
    ReasonRow(_R.OPERATOR_STOPPED, _STOPPED, "intent: an operator stopped it", retryable=True, billed=True),
    ReasonRow(_R.QUOTA_EXCEEDED, _STOPPED, "intent: the project's quota", retryable=False, billed=True),
    ReasonRow(_R.NO_CAPACITY, _FAILED, "no node admitted it in time", retryable=True, billed=False),
    ReasonRow(_R.PROJECT_SUSPENDED, _STOPPED, "intent: the project was suspended", retryable=False, billed=True),
    ReasonRow(_R.PROJECT_DELETED, _STOPPED, "intent: the project was deleted", retryable=False, billed=True),
    ReasonRow(_R.PAUSED_EXPIRED, _STOPPED, "intent: paused longer than its retention", retryable=False, billed=True),
    ReasonRow(_R.SNAPSHOT_UNUSABLE, _FAILED, "its memory image cannot be restored", retryable=False, billed=False),
)

ROW_OF: Final = {row.reason: row for row in REASONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about a sandbox at its end. Defaults mean "not seen"."""

    intent: SandboxReason | None = None
    """Why the node itself set out to stop it; written to the ledger before the act."""
    same_boot: bool = True
    """False when the host was rebooted since the sandbox was started."""
    guest_answered: bool = True
    """Whether the guest's init was ever acknowledged."""
    oom_kills: int = 0
    """Rise of the memory cgroup's oom_kill counter, read before anything is deleted."""
    image_error: bool = False
    """The image was missing or failed verification."""
    disk_full: bool = False
    """The node's file system had no space left when the death was seen."""
    panic_log: bool = False
    """The sentry wrote a panic log."""
    sentry_exit_code: int | None = None
    """How the sentry ended by itself: PID 1 inside ended. None if unknown."""
    sentry_signal: int | None = None
    """The signal that ended the sentry from outside. None if unknown."""
    gofer_died_first: bool = False
    """The gofer ended while the sentry lived."""
    guest_misbehaved: bool = False
    """The guest broke its protocol or stopped answering while its sentry lived."""


def decide_reason(evidence: Evidence) -> SandboxReason:  # noqa: PLR0911 - one return a row of the table is the point
    """Say why a sandbox ended. Deterministic; the order of the tests is the order of certainty.

    An intent was written before the act, so it wins over whatever is seen afterwards: a sandbox that runs out of
    memory while it is being stopped was stopped.
    """
    if evidence.intent is not None:
        return evidence.intent
    if not evidence.same_boot:
        return SandboxReason.NODE_RESTARTED
    if evidence.oom_kills > 0:
        return SandboxReason.OUT_OF_MEMORY
    if evidence.image_error:
        return SandboxReason.IMAGE_UNAVAILABLE
    if evidence.disk_full:
        return SandboxReason.NODE_DISK_FULL
    if not evidence.guest_answered:
        return SandboxReason.START_FAILED
    if evidence.panic_log or evidence.gofer_died_first:
        return SandboxReason.RUNTIME_FAILED
    if evidence.guest_misbehaved or evidence.sentry_exit_code is not None:
        return SandboxReason.GUEST_FAILED
    return SandboxReason.RUNTIME_FAILED


def after_end(reason: SandboxReason | None, memory_mib: int) -> str:
    """Return what to do about a sandbox that has ended: the hint of `sandbox_ended`."""
    match reason:
        case SandboxReason.OUT_OF_MEMORY:
            return f"Create a sandbox with resources.memory_mib above {memory_mib}."
        case SandboxReason.WALL_TIMEOUT:
            return "Create a sandbox with a longer timeout_seconds, or extend it in time."
        case SandboxReason.IDLE_TIMEOUT:
            return "Create a sandbox with a longer idle_timeout_seconds, or none."
        case _:
            return "Create another sandbox with POST /v1/sandboxes."
