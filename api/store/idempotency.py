"""Idempotency keys: that a request was made, what it was (a keyed hash), and which resource it made."""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from api.store.tables import IDEMPOTENCY_KEYS

KEPT_US: Final = 24 * 3600 * 1_000_000
_c = IDEMPOTENCY_KEYS.c
_MINE: Final = and_(_c.project_id == bindparam("p_project"), _c.key == bindparam("p_key"))
_GET: Final = select(
    _c.fingerprint, _c.operation, _c.resource_id, _c.state, _c.status, _c.incarnation, _c.created_at
).where(_MINE)
_INSERT: Final = insert(IDEMPOTENCY_KEYS)
_FINISH: Final = update(IDEMPOTENCY_KEYS).where(_MINE).values(state="done", status=bindparam("p_status"))
_MEANT: Final = update(IDEMPOTENCY_KEYS).where(_MINE).values(resource_id=bindparam("p_resource"))
_RELEASE: Final = delete(IDEMPOTENCY_KEYS).where(_MINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A request that came with a key."""

    value: str
    fingerprint: bytes
    operation: str


class Claim(NamedTuple):
    """What a key stands for."""

    outcome: Literal["fresh", "mismatch", "in_flight", "done"]
    resource_id: str
    status: int = 0
    abandoned: bool = False
    """The api that carried it out has ended: what it promised is in the resource."""


def look(connection: Connection, project_id: str, key: Key, *, incarnation: str, now_us: int) -> Claim | None:
    """Say what the key was used for within the last 24 hours; None: nothing."""
    row: Any = connection.execute(_GET, {"p_project": project_id, "p_key": key.value}).first()
    if row is None or row.created_at <= now_us - KEPT_US:
        return None
    if row.fingerprint != key.fingerprint or row.operation != key.operation:
        return Claim("mismatch", row.resource_id)
    abandoned = row.state == "in_flight" and row.incarnation != incarnation
    if row.state == "done" or abandoned:
        return Claim("done", row.resource_id, row.status or 0, abandoned)
    return Claim("in_flight", row.resource_id)


def claim(
    connection: Connection, project_id: str, key: Key, *, resource_id: str, incarnation: str, now_us: int
) -> Claim:
    """Reserve the key for this request, or say what it was used for."""
    known = look(connection, project_id, key, incarnation=incarnation, now_us=now_us)
    if known is not None:
        return known
    release(connection, project_id, key)
    values = {
        "project_id": project_id,
        "key": key.value,
        "fingerprint": key.fingerprint,
        "operation": key.operation,
        "resource_id": resource_id,
        "state": "in_flight",
        "status": None,
        "incarnation": incarnation,
        "created_at": now_us,
    }
    connection.execute(_INSERT, values)
    return Claim("fresh", resource_id)


def finish(connection: Connection, project_id: str, key: Key, *, status: int) -> None:
    """Record that the request was answered with a success."""
    connection.execute(_FINISH, {"p_project": project_id, "p_key": key.value, "p_status": status})


def stand_for(connection: Connection, project_id: str, key: Key, *, resource_id: str) -> None:
    """Let the key stand for another resource than the one it was reserved for."""
    connection.execute(_MEANT, {"p_project": project_id, "p_key": key.value, "p_resource": resource_id})


def release(connection: Connection, project_id: str, key: Key) -> None:
    """Forget the key: the request failed and had no lasting effect."""
    connection.execute(_RELEASE, {"p_project": project_id, "p_key": key.value})


def purge_any_project(connection: Connection, *, now_us: int) -> int:
    """Remove keys older than 24 hours."""
    return connection.execute(delete(IDEMPOTENCY_KEYS).where(_c.created_at <= now_us - KEPT_US)).rowcount
