"""What the node agent raises of its own.

ProblemError (contract)   expected, with a stable code: passed on to the client; made by the functions below
LedgerError               the ledger could not be read or written
SandboxDiedError          the sandbox's host processes ended while it was being started
"""

from sandboxd.contract.messages import Resources, SandboxReport
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import after_end
from sandboxd.contract.states import SandboxState


class LedgerError(Exception):
    """The ledger could not be read or written; says which and SQLite's words."""


class SandboxDiedError(Exception):
    """The sandbox's host processes ended while it was being started."""


def ended_problem(report: SandboxReport, resources: Resources) -> ProblemError:
    """Say that a sandbox has ended, why, and what to do about it."""
    return ProblemError(
        "sandbox_ended",
        f"Sandbox {report.id} has ended: {report.message or report.reason}",
        hint=after_end(report.reason, resources.memory_mib),
        reason=report.reason,
        sandbox_id=report.id,
        state=report.state,
        ended_at=None if report.ended_at is None else report.ended_at.isoformat(timespec="milliseconds"),
    )


def not_here(sandbox_id: str) -> ProblemError:
    """Say that this node does not have a sandbox: it may never have had it, or have forgotten its end."""
    return ProblemError(
        "moved", f"Sandbox {sandbox_id} is not on this node.", hint="Ask the api where it is.", sandbox_id=sandbox_id
    )


def not_found(sandbox_id: str) -> ProblemError:
    """Say that this node does not know a sandbox, to somebody who asks for its report."""
    return ProblemError("sandbox_not_found", f"No sandbox {sandbox_id} on this node.", sandbox_id=sandbox_id)


def not_ready(sandbox_id: str, state: SandboxState) -> ProblemError:
    """Say that a sandbox is on its way."""
    return ProblemError(
        "sandbox_not_ready",
        f"Sandbox {sandbox_id} is still {state}.",
        hint="Try again in a second.",
        retry_after_seconds=1,
        sandbox_id=sandbox_id,
        state=state,
    )


def stopping(sandbox_id: str) -> ProblemError:
    """Say that a sandbox is ending."""
    return ProblemError(
        "invalid_state",
        f"Sandbox {sandbox_id} is stopping.",
        hint="Create another sandbox.",
        sandbox_id=sandbox_id,
        state=SandboxState.STOPPING,
        allowed=[SandboxState.RUNNING],
    )


def stale_generation(sandbox_id: str, *, given: int, known: int) -> ProblemError:
    """Say that a request is older than one already carried out."""
    return ProblemError(
        "stale_generation",
        f"Generation {given} of sandbox {sandbox_id} is older than {known}, which was carried out.",
        sandbox_id=sandbox_id,
        generation=known,
    )


def stale_epoch(*, given: int, known: int) -> ProblemError:
    """Say that a request comes from an api that has been replaced."""
    return ProblemError("stale_generation", f"Epoch {given} is older than {known}.", epoch=known)


def shutting_down() -> ProblemError:
    """Say that the agent is about to exit."""
    return ProblemError(
        "shutting_down", "The node agent is restarting.", hint="Try again in a second.", retry_after_seconds=1
    )
