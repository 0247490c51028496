"""Sandboxes: the promise, the intent, and what nodes say.

State moves only here, and only along the contract's table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, Row, Update, and_, bindparam, delete, func, insert, or_, select, update

from api.errors import NameTakenError, SandboxNotFoundError
from api.store.tables import SANDBOXES, Sandbox
from sandboxd.contract.messages import SandboxReport
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import NODE_STATES, TERMINAL, DesiredState, SandboxState, is_legal, require_legal

_c = SANDBOXES.c
_MINE: Final = and_(_c.project_id == bindparam("p_project"), _c.id == bindparam("p_id"))
_LIVE: Final = _c.ended_at.is_(None)

_INSERT: Final = insert(SANDBOXES)
_GET: Final = select(SANDBOXES).where(_MINE)
_GET_ANY: Final = select(SANDBOXES).where(_c.id == bindparam("p_id"))
_LIVE_NAME: Final = select(SANDBOXES).where(
    _c.project_id == bindparam("p_project"), _c.name == bindparam("p_name"), _LIVE
)
_DELETE_ANY: Final = delete(SANDBOXES).where(_c.id == bindparam("p_id"))


class Found(NamedTuple):
    """What an insert by name came to."""

    sandbox: Sandbox
    created: bool


def _record(row: Row[Any]) -> Sandbox:
    return Sandbox.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping


def insert_new(connection: Connection, project_id: str, sandbox: Sandbox, *, or_existing: bool) -> Found:
    """Add a sandbox, or return the live one of the same name if `or_existing`. Raises NameTakenError otherwise."""
    if sandbox.name is not None:
        existing = find_named(connection, project_id, sandbox.name)
        if existing is not None and not or_existing:
            raise NameTakenError(sandbox.name, existing.id)
        if existing is not None:
            return Found(existing, created=False)
    connection.execute(_INSERT, {**sandbox.__dict__, "project_id": project_id})
    return Found(sandbox, created=True)


def find_named(connection: Connection, project_id: str, name: str) -> Sandbox | None:
    """Return the live sandbox of a name."""
    row = connection.execute(_LIVE_NAME, {"p_project": project_id, "p_name": name}).first()
    return None if row is None else _record(row)


def find(connection: Connection, project_id: str, sandbox_id: str) -> Sandbox | None:
    row = connection.execute(_GET, {"p_project": project_id, "p_id": sandbox_id}).first()
    return None if row is None else _record(row)


def get(connection: Connection, project_id: str, sandbox_id: str) -> Sandbox:
    """Raises SandboxNotFoundError."""
    sandbox = find(connection, project_id, sandbox_id)
    if sandbox is None:
        raise SandboxNotFoundError(sandbox_id)
    return sandbox


def get_any_project(connection: Connection, sandbox_id: str) -> Sandbox | None:
    row = connection.execute(_GET_ANY, {"p_id": sandbox_id}).first()
    return None if row is None else _record(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a list must match. Empty `states`: all that have not ended."""

    states: tuple[str, ...] = ()
    name: str | None = None
    image_id: str | None = None
    key_id: str | None = None
    metadata: Mapping[str, str]
    created_after: int | None = None
    created_before: int | None = None


def list_page(
    connection: Connection,
    project_id: str,
    wanted: Filter,
    *,
    after: tuple[int, str] | None,
    descending: bool,
    limit: int,
) -> list[Sandbox]:
    """Return up to `limit` sandboxes in order of (created_at, id), beyond the position `after`."""
    conditions = [_c.project_id == project_id, *_conditions(wanted)]
    if after is not None:
        at, last = after
        if descending:
            conditions.append(or_(_c.created_at < at, and_(_c.created_at == at, _c.id < last)))
        else:
            conditions.append(or_(_c.created_at > at, and_(_c.created_at == at, _c.id > last)))
    order = (_c.created_at.desc(), _c.id.desc()) if descending else (_c.created_at.asc(), _c.id.asc())
    rows = connection.execute(select(SANDBOXES).where(*conditions).order_by(*order).limit(limit))
    return [_record(row) for row in rows]


def _conditions(wanted: Filter) -> list[Any]:
    conditions: list[Any] = [_c.state.in_(wanted.states) if wanted.states else _LIVE]
    conditions += [
        column == value
        for column, value in ((_c.name, wanted.name), (_c.image_id, wanted.image_id), (_c.key_id, wanted.key_id))
        if value is not None
    ]
    if wanted.created_after is not None:
        conditions.append(_c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(_c.created_at < wanted.created_before)
    conditions += [_c.labels[key].as_string() == value for key, value in wanted.metadata.items()]
    return conditions


@cache
def _setting(columns: tuple[str, ...]) -> Update:
    """Return the statement that sets these columns. There are few combinations, and building one costs more than it."""
    return (
        update(SANDBOXES)
        .where(
            _c.id == bindparam("p_id"),
            _c.state == bindparam("p_state"),
            _c.generation == bindparam("p_generation"),
        )
        .values({name: bindparam(f"v_{name}") for name in columns})
    )


def _update(connection: Connection, sandbox: Sandbox, changes: Mapping[str, Any]) -> Sandbox:
    """Write `changes` if the row is still as read. The single writer makes that certain; elsewhere it is checked."""
    values: dict[str, Any] = {f"v_{name}": value for name, value in changes.items()}
    values |= {"p_id": sandbox.id, "p_state": sandbox.state, "p_generation": sandbox.generation}
    if connection.execute(_setting(tuple(changes)), values).rowcount != 1:
        raise ProblemError("operation_in_progress", f"Sandbox {sandbox.id} has just changed.", retry_after_seconds=0.1)
    return sandbox.model_copy(update=dict(changes))


def set_columns_any_project(connection: Connection, sandbox: Sandbox, changes: Mapping[str, Any]) -> Sandbox:
    """Write columns that are no part of a sandbox's state, if the row is still as read."""
    return _update(connection, sandbox, changes)


def _moved(sandbox: Sandbox, target: SandboxState, now_us: int) -> dict[str, Any]:
    require_legal(SandboxState(sandbox.state), target)
    changes: dict[str, Any] = {"state": target.value, "updated_at": now_us}
    if sandbox.state == SandboxState.LOST:
        changes["lost_at"] = None
    if target == SandboxState.LOST:
        changes["lost_at"] = now_us
    if target in TERMINAL:
        changes["ended_at"] = now_us
    return changes


def ask_stop(
    connection: Connection, project_id: str, sandbox_id: str, *, now_us: int, match: frozenset[int] | None
) -> Sandbox:
    """Record that it shall stop. Asking again changes nothing. Raises SandboxNotFoundError, `generation_mismatch`."""
    return _ask_stop(connection, get(connection, project_id, sandbox_id), now_us, match)


def ask_stop_matching(
    connection: Connection, project_id: str, wanted: Filter, *, limit: int, now_us: int
) -> list[Sandbox]:
    """Record that up to `limit` live sandboxes that match, and are not asked yet, shall stop; the oldest first."""
    conditions = [_c.project_id == project_id, _LIVE, _c.desired_state != DesiredState.STOPPED.value]
    rows = connection.execute(
        select(SANDBOXES).where(*conditions, *_conditions(wanted)).order_by(_c.created_at, _c.id).limit(limit)
    )
    return [_ask_stop(connection, _record(row), now_us, None) for row in rows]


def matching(connection: Connection, project_id: str, wanted: Filter, *, limit: int) -> tuple[int, list[str]]:
    """Return how many live sandboxes match, and the ids of up to `limit` of them, the oldest first."""
    conditions = [_c.project_id == project_id, _LIVE, *_conditions(wanted)]
    count = connection.execute(select(func.count()).select_from(SANDBOXES).where(*conditions)).scalar_one()
    found = connection.execute(select(_c.id).where(*conditions).order_by(_c.created_at, _c.id).limit(limit))
    return count, list(found.scalars())


def _ask_stop(connection: Connection, sandbox: Sandbox, now_us: int, match: frozenset[int] | None) -> Sandbox:
    require_generation(sandbox, match)
    if sandbox.ended_at is not None or sandbox.desired_state == DesiredState.STOPPED:
        return sandbox
    changes: dict[str, Any] = {
        "desired_state": DesiredState.STOPPED.value,
        "generation": sandbox.generation + 1,
        "updated_at": now_us,
    }
    if is_legal(SandboxState(sandbox.state), SandboxState.STOPPING) and sandbox.state != SandboxState.LOST:
        changes |= _moved(sandbox, SandboxState.STOPPING, now_us)
    return _update(connection, sandbox, changes)


def require_generation(sandbox: Sandbox, match: frozenset[int] | None) -> None:
    """Raise `generation_mismatch` unless the generation is one of `match`, or any will do."""
    if match is not None and sandbox.generation not in match:
        raise ProblemError(
            "generation_mismatch",
            f"Sandbox {sandbox.id} is at generation {sandbox.generation}.",
            hint="GET the sandbox, look at it again, and send its ETag.",
            generation=sandbox.generation,
        )


def change(
    connection: Connection,
    project_id: str,
    sandbox_id: str,
    *,
    generation: int,
    changes: Mapping[str, Any],
    now_us: int,
) -> Sandbox | None:
    """Write what a caller asked to change and raise the generation; None if it is not at `generation` any more.

    Raises SandboxNotFoundError, NameTakenError.
    """
    sandbox = get(connection, project_id, sandbox_id)
    if sandbox.generation != generation or sandbox.ended_at is not None:
        return None
    name = changes.get("name")
    if name is not None and name != sandbox.name:
        existing = find_named(connection, project_id, name)
        if existing is not None:
            raise NameTakenError(name, existing.id)
    return _update(connection, sandbox, {**changes, "generation": generation + 1, "updated_at": now_us})


def move_any_project(connection: Connection, sandbox_id: str, node_id: str, now_us: int) -> Sandbox | None:
    """Promise it to another node; only after the one before refused it. None if it is not pending any more."""
    sandbox = get_any_project(connection, sandbox_id)
    if sandbox is None or sandbox.state != SandboxState.PENDING:
        return None
    return _update(connection, sandbox, {"node_id": node_id, "updated_at": now_us})


def pin_any_project(
    connection: Connection, sandbox_id: str, *, node_id: str, spec: dict[str, Any], start_deadline_at: int, now_us: int
) -> Sandbox | None:
    """Write down what it starts from, and where, now that its image is there. None if nobody wants it any more."""
    sandbox = get_any_project(connection, sandbox_id)
    if sandbox is None or sandbox.state != SandboxState.PENDING or sandbox.desired_state != DesiredState.RUNNING:
        return None
    changes = {"node_id": node_id, "spec": spec, "start_deadline_at": start_deadline_at, "updated_at": now_us}
    return _update(connection, sandbox, changes)


def forget_any_project(connection: Connection, sandbox_id: str) -> None:
    """Remove the record of a sandbox that no node ever took."""
    connection.execute(_DELETE_ANY, {"p_id": sandbox_id})


def end_any_project(
    connection: Connection,
    sandbox_id: str,
    *,
    state: Literal[SandboxState.STOPPED, SandboxState.FAILED],
    reason: SandboxReason,
    message: str | None,
    now_us: int,
    exit_code: int | None = None,
) -> Sandbox | None:
    """End it by the api's own knowledge. What was asked to stop is stopped, whatever else is said. None if unknown."""
    sandbox = get_any_project(connection, sandbox_id)
    if sandbox is None or sandbox.ended_at is not None:
        return sandbox
    target: SandboxState = state
    if sandbox.desired_state == DesiredState.STOPPED and sandbox.state != SandboxState.LOST:
        target, reason, message = SandboxState.STOPPED, SandboxReason.REQUESTED, None
        if sandbox.state not in {SandboxState.STOPPING, SandboxState.PENDING}:
            sandbox = _update(connection, sandbox, _moved(sandbox, SandboxState.STOPPING, now_us))
    if target == SandboxState.STOPPED and not is_legal(SandboxState(sandbox.state), target):
        target, reason = SandboxState.FAILED, SandboxReason.RUNTIME_FAILED
    ending: dict[str, Any] = {"reason": reason.value, "message": message}
    ending |= {} if exit_code is None else {"exit_code": exit_code}
    return _update(connection, sandbox, _moved(sandbox, target, now_us) | ending)


class Applied(NamedTuple):
    """What a report of one sandbox came to."""

    sandbox_id: str
    verdict: Literal["changed", "same", "ended", "bury"]
    """`ended`: its end is recorded and the node may forget it. `bury`: it must not run any more."""
    sandbox: Sandbox | None


def apply_reports_any_project(
    connection: Connection, node_id: str, reports: Sequence[SandboxReport], now_us: int
) -> list[Applied]:
    """Bring rows up to what a node says of them. Late and impossible reports change nothing."""
    return [_apply(connection, node_id, report, now_us) for report in reports]


def _apply(connection: Connection, node_id: str, report: SandboxReport, now_us: int) -> Applied:
    sandbox = get_any_project(connection, report.id)
    ended = report.state in TERMINAL
    if sandbox is None or sandbox.node_id != node_id or sandbox.ended_at is not None:
        return Applied(report.id, "ended" if ended else "bury", sandbox)
    changes = _observed(sandbox, report, now_us)
    if changes is None:
        return Applied(report.id, "same", sandbox)
    changed = _update(connection, sandbox, changes) if changes else sandbox
    verdict = "ended" if ended else "changed" if changes else "same"
    return Applied(report.id, verdict, changed)


def as_reported(sandbox: Sandbox, report: SandboxReport, now_us: int) -> Sandbox | None:
    """Return the record as it is once a report has been applied to it; None where that changes nothing."""
    changes = _observed(sandbox, report, now_us)
    return sandbox.model_copy(update=changes) if changes else None


def _observed(sandbox: Sandbox, report: SandboxReport, now_us: int) -> dict[str, Any] | None:
    """Return what a report changes in the row, or None where it cannot be true any more."""
    state = SandboxState(sandbox.state)
    changes: dict[str, Any] = {}
    if report.state != state:
        if report.state not in NODE_STATES or not is_legal(state, report.state):
            return None
        changes = _moved(sandbox, report.state, now_us)
    seen: dict[str, Any] = {
        "user": report.user,
        "cwd": report.cwd,
        "shell": report.shell,
        "exit_code": report.exit_code,
        "started_at": _us(report.started_at),
        "ended_at": _us(report.ended_at) if report.state in TERMINAL else None,
    }
    changes |= {key: value for key, value in seen.items() if value is not None and value != getattr(sandbox, key)}
    if report.state not in TERMINAL:
        changes |= observed_egress(
            sandbox, applied=report.egress_generation, closed=report.egress_closed, now_us=now_us
        )
    if report.generation >= sandbox.generation and report.state not in TERMINAL:
        changes |= _expiry(sandbox, report)
    if report.entrypoint is not None and sandbox.spec.get("entrypoint") != report.entrypoint:
        changes["spec"] = sandbox.spec | {"entrypoint": report.entrypoint}
    if changes.get("state") is not None or report.message != sandbox.message:
        changes |= {"reason": report.reason.value if report.reason else None, "message": report.message}
    return changes


def observed_egress(sandbox: Sandbox, *, applied: int | None, closed: bool, now_us: int) -> dict[str, Any]:
    """Return what a node's word on a policy changes in the row. What it says of an older one comes late."""
    if applied is not None and applied < sandbox.egress_applied_generation:
        return {}
    changes: dict[str, Any] = {}
    if applied is not None and applied > sandbox.egress_applied_generation:
        changes |= {"egress_applied_generation": applied, "egress_applied_at": now_us}
    if closed != sandbox.egress_closed:
        changes["egress_closed"] = closed
    return changes


_SKEW_US: Final = 1_000_000
"""A deadline that a node renders anew each time wanders by the clock's corrections; smaller moves are not news."""


def _expiry(sandbox: Sandbox, report: SandboxReport) -> dict[str, Any]:
    expires_at = _us(report.expires_at)
    known = sandbox.expires_at
    if expires_at is not None and known is not None and abs(expires_at - known) < _SKEW_US:
        return {}
    return {} if expires_at == known else {"expires_at": expires_at}


def _us(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1_000_000)


_SILENCED: Final = select(SANDBOXES).where(
    _c.node_id == bindparam("p_node"), _LIVE, _c.state != SandboxState.LOST.value
)


def lose_any_project(connection: Connection, node_id: str, now_us: int) -> list[str]:
    """Mark every live sandbox of a silent node `lost`; return their ids."""
    sandboxes = [_record(row) for row in connection.execute(_SILENCED, {"p_node": node_id})]
    for sandbox in sandboxes:
        _update(connection, sandbox, _moved(sandbox, SandboxState.LOST, now_us))
    return [sandbox.id for sandbox in sandboxes]


def bury_lost_any_project(connection: Connection, *, lost_before_us: int, now_us: int) -> list[str]:
    """Fail what has been lost since before `lost_before_us`; return the ids."""
    rows = connection.execute(select(SANDBOXES).where(_c.state == "lost", _c.lost_at <= lost_before_us).limit(1000))
    sandboxes = [_record(row) for row in rows]
    for sandbox in sandboxes:
        message = "Its node stayed silent longer than the grace."
        ending = {"reason": SandboxReason.NODE_LOST.value, "message": message}
        _update(connection, sandbox, _moved(sandbox, SandboxState.FAILED, now_us) | ending)
    return [sandbox.id for sandbox in sandboxes]


_ON_NODE: Final = select(_c.id).where(_c.node_id == bindparam("p_node"), _LIVE, _c.state != SandboxState.PENDING.value)


def taken_by_any_project(connection: Connection, node_id: str) -> list[str]:
    """Return the ids of the live sandboxes that a node has once taken."""
    return list(connection.execute(_ON_NODE, {"p_node": node_id}).scalars())


def unstopped_any_project(connection: Connection, *, asked_before_us: int, limit: int) -> list[Sandbox]:
    """Return what was asked to stop a while ago, has not, and is not out of reach."""
    statement = (
        select(SANDBOXES)
        .where(_LIVE, _c.desired_state == "stopped", _c.state != "lost", _c.updated_at < asked_before_us)
        .limit(limit)
    )
    return [_record(row) for row in connection.execute(statement)]


def overdue_any_project(connection: Connection, *, deadline_before_us: int, limit: int) -> list[Sandbox]:
    """Return what should long have started, and is not out of reach."""
    statement = (
        select(SANDBOXES)
        .where(_LIVE, _c.state.in_(("pending", "starting")), _c.start_deadline_at < deadline_before_us)
        .limit(limit)
    )
    return [_record(row) for row in connection.execute(statement)]


def orphans_any_project(connection: Connection, *, incarnation: str, now_us: int) -> list[Sandbox]:
    """Ask every one-shot sandbox of an earlier start of the api to stop: nobody waits for it any more."""
    rows = connection.execute(
        select(SANDBOXES).where(_LIVE, _c.one_shot, _c.incarnation != incarnation, _c.desired_state != "stopped")
    )
    return [_ask_stop(connection, _record(row), now_us, None) for row in rows]


def adopt(
    connection: Connection, project_id: str, sandbox_id: str, *, incarnation: str, start_deadline_at: int
) -> Sandbox | None:
    """Take over a pending sandbox of an earlier start of the api, whose env the caller has sent again. None: not so."""
    sandbox = get(connection, project_id, sandbox_id)
    if sandbox.state != SandboxState.PENDING or sandbox.incarnation == incarnation:
        return None
    return _update(connection, sandbox, {"incarnation": incarnation, "start_deadline_at": start_deadline_at})


def purge_any_project(connection: Connection, *, ended_before_us: int, limit: int) -> int:
    """Remove records that ended before a time."""
    old = select(_c.id).where(_c.ended_at < ended_before_us).limit(limit)
    return connection.execute(delete(SANDBOXES).where(_c.id.in_(old))).rowcount
