"""Projects and their keys."""

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from api.store.tables import API_KEYS, PROJECTS, ApiKey, Project


class KeyHolder(NamedTuple):
    """A key with the project it acts in."""

    key: ApiKey
    project: Project


_BY_HASH: Final = select(API_KEYS).where(API_KEYS.c.hash == bindparam("p_hash"))
_BY_ID: Final = select(API_KEYS).where(API_KEYS.c.id == bindparam("p_key"))
_PROJECT: Final = select(PROJECTS).where(PROJECTS.c.id == bindparam("p_id"))


def key_by_hash_any_project(connection: Connection, digest: bytes) -> KeyHolder | None:
    """Find the key of a digest; before this nobody knows which project is asking."""
    return _holder(connection, connection.execute(_BY_HASH, {"p_hash": digest}).first())


def key_by_id_any_project(connection: Connection, key_id: str) -> KeyHolder | None:
    """Find the key that a token was made with."""
    return _holder(connection, connection.execute(_BY_ID, {"p_key": key_id}).first())


def revoked_since_any_project(connection: Connection, since_us: int, limit: int) -> list[str]:
    """List the keys that were revoked since, the latest first."""
    chosen = select(API_KEYS.c.id).where(API_KEYS.c.revoked_at >= since_us)
    return list(connection.execute(chosen.order_by(API_KEYS.c.revoked_at.desc()).limit(limit)).scalars())


def _holder(connection: Connection, row: Any) -> KeyHolder | None:
    if row is None:
        return None
    key = ApiKey.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping
    project: Any = connection.execute(_PROJECT, {"p_id": key.project_id}).one()
    return KeyHolder(key, Project.model_construct(**dict(project._mapping)))  # noqa: SLF001 - the same


def insert_project_any_project(connection: Connection, project: Project) -> None:
    connection.execute(insert(PROJECTS), dict(project.__dict__))


def insert_key(connection: Connection, project_id: str, key: ApiKey) -> None:
    connection.execute(insert(API_KEYS), {**key.__dict__, "project_id": project_id})


def root_any_project(connection: Connection) -> str | None:
    """Return the id of the root project, if there is one."""
    return connection.execute(select(PROJECTS.c.id).where(PROJECTS.c.parent_id.is_(None))).scalar()


def key_exists_any_project(connection: Connection, digest: bytes) -> bool:
    return connection.execute(_BY_HASH, {"p_hash": digest}).first() is not None


def revoke_named(connection: Connection, project_id: str, name: str, now_us: int) -> int:
    """Revoke a project's keys of that name; return how many there were."""
    named = (API_KEYS.c.project_id == project_id) & (API_KEYS.c.name == name) & API_KEYS.c.revoked_at.is_(None)
    return connection.execute(update(API_KEYS).where(named).values(revoked_at=now_us)).rowcount
