"""What sandboxes may reach: the policy asked for, and the one that a node has made true."""

from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, select

from api.store.sandboxes import get, get_any_project, observed_egress, set_columns_any_project
from api.store.tables import SANDBOXES, Sandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import DesiredState, SandboxState

_c = SANDBOXES.c
_UNAPPLIED: Final = (
    select(SANDBOXES)
    .where(
        and_(
            _c.ended_at.is_(None),
            _c.state == SandboxState.RUNNING.value,
            _c.desired_state == DesiredState.RUNNING.value,
            _c.egress_applied_generation < _c.egress_generation,
            _c.egress_asked_at < bindparam("p_before"),
        )
    )
    .limit(bindparam("p_limit"))
)


def ask(
    connection: Connection,
    project_id: str,
    sandbox_id: str,
    *,
    policy: dict[str, Any],
    match: frozenset[int] | None,
    now_us: int,
) -> Sandbox:
    """Record the policy that is to be, under the next number; the same again keeps its number.

    `policy` is a canonical document without a generation. Raises SandboxNotFoundError, `generation_mismatch`.
    """
    sandbox = get(connection, project_id, sandbox_id)
    if match is not None and sandbox.egress_generation not in match:
        raise ProblemError(
            "generation_mismatch",
            f"The egress policy of sandbox {sandbox_id} is at generation {sandbox.egress_generation}.",
            hint="GET the policy, look at it again, and send its ETag.",
            generation=sandbox.egress_generation,
        )
    present = sandbox.spec["egress"]
    if {name: value for name, value in present.items() if name != "generation"} == policy:
        return sandbox
    generation = sandbox.egress_generation + 1
    changes: dict[str, Any] = {
        "spec": sandbox.spec | {"egress": policy | {"generation": generation}},
        "egress_mode": policy["mode"],
        "egress_generation": generation,
        "egress_asked_at": now_us,
        "updated_at": now_us,
    }
    return set_columns_any_project(connection, sandbox, changes)


def ask_again_any_project(connection: Connection, sandbox_id: str, *, now_us: int) -> None:
    """Give the policy a new number, so that its node is told of it again, with what is put into requests now."""
    sandbox = get_any_project(connection, sandbox_id)
    if sandbox is None or sandbox.ended_at is not None:
        return
    generation = sandbox.egress_generation + 1
    changes: dict[str, Any] = {
        "spec": sandbox.spec | {"egress": sandbox.spec["egress"] | {"generation": generation}},
        "egress_generation": generation,
        "egress_asked_at": now_us,
        "updated_at": now_us,
    }
    set_columns_any_project(connection, sandbox, changes)


def note_any_project(
    connection: Connection, sandbox_id: str, *, applied: int | None, closed: bool, now_us: int
) -> Sandbox | None:
    """Record what a node has made of a policy: true, or closed. None if the sandbox is not there any more."""
    sandbox = get_any_project(connection, sandbox_id)
    if sandbox is None or sandbox.ended_at is not None:
        return sandbox
    changes = observed_egress(sandbox, applied=applied, closed=closed, now_us=now_us)
    return set_columns_any_project(connection, sandbox, changes) if changes else sandbox


def unapplied_any_project(connection: Connection, *, asked_before_us: int, limit: int) -> list[Sandbox]:
    """Return running sandboxes whose policy was asked for a while ago and is not true."""
    rows = connection.execute(_UNAPPLIED, {"p_before": asked_before_us, "p_limit": limit})
    return [Sandbox.model_construct(**dict(row._mapping)) for row in rows]  # noqa: SLF001 - the documented name
