"""Secrets by project and name, sealed; which sandboxes use them; each project's certificate authority."""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, select, update

from api.store.egress import ask_again_any_project
from api.store.secret_tables import AUTHORITIES, SECRET_USES, SECRETS, Authority, Secret, Use
from api.store.tables import SANDBOXES
from sandboxd.contract.problems import ProblemError

_c = SECRETS.c
_u = SECRET_USES.c
_MINE: Final = and_(_c.project_id == bindparam("p_project"), _c.name == bindparam("p_name"))
_GET: Final = select(SECRETS).where(_MINE)
_GET_HELD: Final = _GET.with_for_update()
"""Nobody else changes it until the transaction is over; where there is one writer, that is so anyway."""
_COUNT: Final = select(func.count()).select_from(SECRETS).where(_c.project_id == bindparam("p_project"))
_INSERT: Final = insert(SECRETS)
_DELETE: Final = delete(SECRETS).where(_MINE)
_USE: Final = insert(SECRET_USES)
_USED: Final = (
    select(_u.sandbox_id)
    .join(SANDBOXES, SANDBOXES.c.id == _u.sandbox_id)
    .where(
        _u.project_id == bindparam("p_project"),
        _u.name == bindparam("p_name"),
        _u.use.in_(bindparam("p_uses", expanding=True)),
        SANDBOXES.c.ended_at.is_(None),
    )
    .order_by(_u.sandbox_id)
)
_FORGET_USES: Final = delete(SECRET_USES).where(_u.project_id == bindparam("p_project"), _u.name == bindparam("p_name"))
_AUTHORITY: Final = select(AUTHORITIES).where(AUTHORITIES.c.project_id == bindparam("p_project"))


class Put(NamedTuple):
    """What a put came to."""

    secret: Secret
    created: bool
    told: Sequence[str] = ()
    """Sandboxes whose policy injects it: their nodes are to be told anew."""


def find(connection: Connection, project_id: str, name: str) -> Secret | None:
    row = connection.execute(_GET, {"p_project": project_id, "p_name": name}).first()
    return None if row is None else _record(row)


def get(connection: Connection, project_id: str, name: str) -> Secret:
    """Raises `secret_not_found`."""
    secret = find(connection, project_id, name)
    if secret is None:
        raise secret_not_found(name)
    return secret


def get_all(connection: Connection, project_id: str, names: Collection[str]) -> dict[str, Secret]:
    """Return those of the names that there are."""
    rows = connection.execute(select(SECRETS).where(_c.project_id == project_id, _c.name.in_(names)))
    return {row.name: _record(row) for row in rows}


def list_page(connection: Connection, project_id: str, *, after: str | None, limit: int) -> list[Secret]:
    """Return the project's secrets in order of their names."""
    conditions = [_c.project_id == project_id, *([] if after is None else [_c.name > after])]
    return [
        _record(row) for row in connection.execute(select(SECRETS).where(*conditions).order_by(_c.name).limit(limit))
    ]


def put(connection: Connection, project_id: str, secret: Secret, *, before: int, most: int) -> Put | None:
    """Write a secret whose version follows `before` (0: there is none yet); None if another has been written since.

    Sandboxes whose policies inject it get a new generation of the policy, which is how their nodes come to be told.
    Raises `quota_exceeded`.
    """
    keys = {"p_project": project_id, "p_name": secret.name}
    row = connection.execute(_GET_HELD, keys).first()
    if (0 if row is None else row.version) != before:
        return None
    if row is None:
        count = connection.execute(_COUNT, {"p_project": project_id}).scalar_one()
        if count >= most:
            raise _too_many(project_id, count, most)
        connection.execute(_INSERT, {**secret.__dict__, "project_id": project_id})
        return Put(secret, created=True)
    kept = secret.model_copy(update={"created_at": row.created_at})
    values = {name: kept.__dict__[name] for name in ("version", "env", "hosts", "sealed", "updated_at")}
    connection.execute(update(SECRETS).where(_c.project_id == project_id, _c.name == secret.name).values(values))
    told = _used(connection, project_id, secret.name, ("inject",))
    for sandbox_id in told:
        ask_again_any_project(connection, sandbox_id, now_us=secret.updated_at)
    return Put(kept, created=False, told=told)


def seal_again_any_project(connection: Connection, secret: Secret, sealed: bytes) -> None:
    """Put the same value under another seal, unless it was changed since."""
    connection.execute(
        update(SECRETS)
        .where(_c.project_id == secret.project_id, _c.name == secret.name, _c.version == secret.version)
        .values(sealed=sealed)
    )


def sealed_otherwise_any_project(connection: Connection, head: bytes) -> list[Secret]:
    """Return what is sealed and does not begin like this."""
    rows = connection.execute(select(SECRETS).where(func.substr(_c.sealed, 1, len(head)) != head))
    return [_record(row) for row in rows]


def remove(connection: Connection, project_id: str, name: str) -> None:
    """Remove a secret. Raises `secret_not_found`, and `in_use` while a live sandbox uses it."""
    keys = {"p_project": project_id, "p_name": name}
    if connection.execute(_GET_HELD, keys).first() is None:
        raise secret_not_found(name)
    users = _used(connection, project_id, name, ("env", "inject"))
    if users:
        raise ProblemError(
            "in_use",
            f"Secret {name} is used by {len(users)} live sandboxes.",
            hint="Delete them, or change their policies, first.",
            sandbox_ids=users[:16],
        )
    connection.execute(_FORGET_USES, keys)
    connection.execute(_DELETE, keys)


def use(connection: Connection, project_id: str, sandbox_id: str, use: Use, names: Collection[str]) -> list[Secret]:
    """Write down which secrets a sandbox uses in one way, instead of what was known of it; returns them.

    Raises `secret_not_found`. From then on none of them can be removed while it lives.
    """
    connection.execute(delete(SECRET_USES).where(_u.sandbox_id == sandbox_id, _u.use == use))
    found: list[Secret] = []
    for name in sorted(names):
        row = connection.execute(_GET_HELD, {"p_project": project_id, "p_name": name}).first()
        if row is None:
            raise secret_not_found(name)
        found.append(_record(row))
        connection.execute(_USE, {"project_id": project_id, "sandbox_id": sandbox_id, "use": use, "name": name})
    return found


def _used(connection: Connection, project_id: str, name: str, uses: tuple[Use, ...]) -> list[str]:
    keys = {"p_project": project_id, "p_name": name, "p_uses": list(uses)}
    return list(connection.execute(_USED, keys).scalars())


def authority(connection: Connection, project_id: str) -> Authority | None:
    row = connection.execute(_AUTHORITY, {"p_project": project_id}).first()
    return None if row is None else Authority.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name


def keep_authority(connection: Connection, project_id: str, made: Authority) -> Authority:
    """Keep a project's first authority; returns the one that it has."""
    known = authority(connection, project_id)
    if known is not None:
        return known
    connection.execute(insert(AUTHORITIES), {**made.__dict__, "project_id": project_id})
    return made


def authorities_sealed_otherwise_any_project(connection: Connection, head: bytes) -> list[Authority]:
    rows = connection.execute(select(AUTHORITIES).where(func.substr(AUTHORITIES.c.sealed_key, 1, len(head)) != head))
    return [Authority.model_construct(**dict(row._mapping)) for row in rows]  # noqa: SLF001 - the documented name


def seal_authority_again_any_project(connection: Connection, known: Authority, sealed_key: bytes) -> None:
    """Put the same key under another seal."""
    connection.execute(
        update(AUTHORITIES).where(AUTHORITIES.c.project_id == known.project_id).values(sealed_key=sealed_key)
    )


def secret_not_found(name: str) -> ProblemError:
    return ProblemError("secret_not_found", f"There is no secret {name[:64]!r}.", hint="GET /v1/secrets.")


def _too_many(project_id: str, count: int, most: int) -> ProblemError:
    return ProblemError(
        "quota_exceeded",
        f"The project has {count} secrets, and may have {most}.",
        hint="Delete one first.",
        quota="secrets",
        limit=most,
        current=count,
        requested=1,
        project_id=project_id,
    )


def _record(row: Row[Any]) -> Secret:
    return Secret.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping
