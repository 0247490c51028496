"""The states of a sandbox, every legal move between them with its reason, and the named sets.

`pending` and `lost` belong to the api alone: a node never says them.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class SandboxState(StrEnum):
    """The observed state of a sandbox."""

    PENDING = "pending"
    """Promised by the api, not yet taken by a node."""
    STARTING = "starting"
    """A node runs its hooks."""
    RUNNING = "running"
    """The guest answers."""
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    """Its end is decided; processes are being told."""
    STOPPED = "stopped"
    """Ended as asked or as agreed (deadlines, entrypoint)."""
    FAILED = "failed"
    """Ended by something nobody asked for."""
    LOST = "lost"
    """Its node is out of reach. Not an ending."""


class DesiredState(StrEnum):
    """What the caller asked for."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class ProcessState(StrEnum):
    """The state of one process of a sandbox."""

    RUNNING = "running"
    ENDED = "ended"


class Transition(NamedTuple):
    """One legal move, and why it happens."""

    source: SandboxState
    target: SandboxState
    because: str


_S = SandboxState

TRANSITIONS: Final = (
    Transition(_S.PENDING, _S.STARTING, "a node admitted the sandbox"),
    Transition(_S.PENDING, _S.RUNNING, "a node answered after its hooks were done"),
    Transition(_S.PENDING, _S.STOPPING, "deleted before a node answered"),
    Transition(_S.PENDING, _S.STOPPED, "deleted before a node took it"),
    Transition(_S.PENDING, _S.FAILED, "no node could start it"),
    Transition(_S.PENDING, _S.LOST, "the node fell silent while it was asked"),
    Transition(_S.STARTING, _S.RUNNING, "every hook is done and the guest answers"),
    Transition(_S.STARTING, _S.STOPPING, "deleted, or past its deadline, while starting"),
    Transition(_S.STARTING, _S.STOPPED, "deleted while starting, seen only at its end"),
    Transition(_S.STARTING, _S.FAILED, "a hook failed and was undone"),
    Transition(_S.STARTING, _S.LOST, "its node fell silent"),
    Transition(_S.RUNNING, _S.PAUSING, "a pause was asked for or a deadline says pause"),
    Transition(_S.RUNNING, _S.STOPPING, "a stop was asked for or a deadline passed"),
    Transition(_S.RUNNING, _S.STOPPED, "it stopped, seen only at its end"),
    Transition(_S.RUNNING, _S.FAILED, "memory, guest, runtime or node gave way"),
    Transition(_S.RUNNING, _S.LOST, "its node fell silent"),
    Transition(_S.PAUSING, _S.PAUSED, "its memory is on disk"),
    Transition(_S.PAUSING, _S.RUNNING, "the pause failed; the event says why"),
    Transition(_S.PAUSING, _S.STOPPING, "deleted while pausing"),
    Transition(_S.PAUSING, _S.FAILED, "the sandbox died while pausing"),
    Transition(_S.PAUSING, _S.LOST, "its node fell silent"),
    Transition(_S.PAUSED, _S.RESUMING, "a resume was asked for"),
    Transition(_S.PAUSED, _S.STOPPING, "deleted, or kept longer than its retention"),
    Transition(_S.PAUSED, _S.FAILED, "its snapshot cannot be used any more"),
    Transition(_S.PAUSED, _S.LOST, "its node fell silent"),
    Transition(_S.RESUMING, _S.RUNNING, "the guest answers again"),
    Transition(_S.RESUMING, _S.PAUSED, "the resume failed and may be tried again"),
    Transition(_S.RESUMING, _S.STOPPING, "deleted while resuming"),
    Transition(_S.RESUMING, _S.FAILED, "its snapshot cannot be used any more"),
    Transition(_S.RESUMING, _S.LOST, "its node fell silent"),
    Transition(_S.STOPPING, _S.STOPPED, "everything of it is gone"),
    Transition(_S.STOPPING, _S.FAILED, "it failed before the stop was done"),
    Transition(_S.STOPPING, _S.LOST, "its node fell silent"),
    Transition(_S.LOST, _S.STARTING, "the node is back and it is starting"),
    Transition(_S.LOST, _S.RUNNING, "the node is back and it runs"),
    Transition(_S.LOST, _S.PAUSED, "the node is back and it is paused"),
    Transition(_S.LOST, _S.STOPPING, "the node is back and it is stopping"),
    Transition(_S.LOST, _S.STOPPED, "the node is back and had stopped it"),
    Transition(_S.LOST, _S.FAILED, "the node stayed away longer than the grace, or it had failed"),
)

TERMINAL: Final = frozenset({_S.STOPPED, _S.FAILED})
"""Ended for good; exactly one of these is ever reached."""

SETTLED: Final = frozenset({_S.RUNNING, _S.PAUSED, _S.STOPPED, _S.FAILED, _S.LOST})
"""Nothing is under way; what `wait_for` waits for by default."""

NOT_READY: Final = frozenset({_S.PENDING, _S.STARTING, _S.RESUMING})
"""Data-plane calls wait for these to pass."""

NODE_STATES: Final = frozenset(_S) - {_S.PENDING, _S.LOST}
"""What a node may report."""

_LEGAL: Final = frozenset((row.source, row.target) for row in TRANSITIONS)


class IllegalTransitionError(Exception):
    """A move that no row of TRANSITIONS allows: a bug in the caller."""


def is_legal(source: SandboxState, target: SandboxState) -> bool:
    """Tell whether a sandbox may go from `source` to `target`."""
    return (source, target) in _LEGAL


def require_legal(source: SandboxState, target: SandboxState) -> None:
    """Raise IllegalTransitionError unless a row allows the move."""
    if not is_legal(source, target):
        msg = f"a sandbox cannot go from {source} to {target}"
        raise IllegalTransitionError(msg)
