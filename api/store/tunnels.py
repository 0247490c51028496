"""Tunnels that were asked for, by sandbox."""

from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, select, update

from api.store.tables import TUNNELS, Sandbox, Tunnel
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import MAX_TUNNELS, NodeTunnel, TunnelSpec

_c = TUNNELS.c
_IN_SANDBOX: Final = and_(_c.project_id == bindparam("p_project"), _c.sandbox_id == bindparam("p_sandbox"))
_MINE: Final = and_(_IN_SANDBOX, _c.id == bindparam("p_id"))
_INSERT: Final = insert(TUNNELS)
_GET: Final = select(TUNNELS).where(_MINE)
_LIST: Final = select(TUNNELS).where(_IN_SANDBOX).order_by(_c.created_at, _c.id)
_COUNT: Final = select(func.count()).select_from(TUNNELS).where(_IN_SANDBOX)
_SAME: Final = select(TUNNELS).where(_IN_SANDBOX, _c.kind == bindparam("p_kind"), _c.port == bindparam("p_port"))
_DELETE: Final = delete(TUNNELS).where(_MINE)
_CHANGE: Final = (
    update(TUNNELS).where(_MINE).values(visibility=bindparam("v_visibility"), allow_cidrs=bindparam("v_allow_cidrs"))
)


def spec_of(tunnel: Tunnel) -> TunnelSpec:
    """Return what was asked for."""
    return TunnelSpec(
        port=tunnel.port or None,
        kind=tunnel.kind,  # pyright: ignore[reportArgumentType] - the table holds no other
        visibility=tunnel.visibility,  # pyright: ignore[reportArgumentType] - the same
        allow_cidrs=tunnel.allow_cidrs,
        server_name=tunnel.server_name,
    )


def row_of(sandbox: Sandbox, tunnel_id: str, spec: TunnelSpec, now_us: int) -> Tunnel:
    """Return the record of a tunnel."""
    return Tunnel(
        id=tunnel_id,
        sandbox_id=sandbox.id,
        project_id=sandbox.project_id,
        port=spec.port or 0,
        kind=spec.kind,
        visibility=spec.visibility,
        allow_cidrs=list(spec.allow_cidrs),
        server_name=spec.server_name,
        created_at=now_us,
    )


def insert_all(connection: Connection, project_id: str, sandbox: Sandbox) -> None:
    """Add the tunnels that a new sandbox was asked for with."""
    for each in sandbox.spec.get("tunnels") or ():
        tunnel = NodeTunnel(**each)
        row = row_of(sandbox, tunnel.id, tunnel.spec(), tunnel.created_at_us)
        connection.execute(_INSERT, {**row.__dict__, "project_id": project_id})


def insert_new(connection: Connection, project_id: str, tunnel: Tunnel) -> tuple[Tunnel, bool]:
    """Add a tunnel, or return the one that is there with the same settings; tells whether it was added.

    Raises `already_exists` where it is there with other ones, `invalid_request` where a sandbox has too many.
    """
    keys = {"p_project": project_id, "p_sandbox": tunnel.sandbox_id}
    row = connection.execute(_SAME, keys | {"p_kind": tunnel.kind, "p_port": tunnel.port}).first()
    if row is not None:
        known = _record(row)
        if spec_of(known) != spec_of(tunnel):
            raise ProblemError(
                "already_exists",
                f"Tunnel {known.id} leads there already, with other settings.",
                hint=f"PATCH /v1/sandboxes/{known.sandbox_id}/tunnels/{known.id}, or close it first.",
                tunnel_id=known.id,
            )
        return known, False
    if connection.execute(_COUNT, keys).scalar_one() >= MAX_TUNNELS:
        raise ProblemError("invalid_request", f"A sandbox has at most {MAX_TUNNELS} tunnels.", hint="Close one first.")
    connection.execute(_INSERT, {**tunnel.__dict__, "project_id": project_id})
    return tunnel, True


def get(connection: Connection, project_id: str, sandbox_id: str, tunnel_id: str) -> Tunnel:
    """Raises `tunnel_not_found`."""
    row = connection.execute(_GET, {"p_project": project_id, "p_sandbox": sandbox_id, "p_id": tunnel_id}).first()
    if row is None:
        raise ProblemError(
            "tunnel_not_found",
            f"Sandbox {sandbox_id} has no tunnel {tunnel_id[:64]!r}.",
            hint=f"GET /v1/sandboxes/{sandbox_id}/tunnels.",
        )
    return _record(row)


def of_sandbox(connection: Connection, project_id: str, sandbox_id: str) -> list[Tunnel]:
    """Return a sandbox's tunnels, the oldest first."""
    rows = connection.execute(_LIST, {"p_project": project_id, "p_sandbox": sandbox_id})
    return [_record(row) for row in rows]


def change(connection: Connection, project_id: str, tunnel: Tunnel, spec: TunnelSpec) -> Tunnel:
    """Write what may change of a tunnel."""
    changes = {"visibility": spec.visibility, "allow_cidrs": list(spec.allow_cidrs)}
    connection.execute(_CHANGE, _keys(project_id, tunnel) | {f"v_{name}": value for name, value in changes.items()})
    return tunnel.model_copy(update=changes)


def remove(connection: Connection, project_id: str, tunnel: Tunnel) -> None:
    """Remove one. Idempotent."""
    connection.execute(_DELETE, _keys(project_id, tunnel))


def _keys(project_id: str, tunnel: Tunnel) -> dict[str, Any]:
    return {"p_project": project_id, "p_sandbox": tunnel.sandbox_id, "p_id": tunnel.id}


def _record(row: Row[Any]) -> Tunnel:
    return Tunnel.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping
