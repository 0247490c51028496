"""Who is calling: keys, callers, scopes; and the root project with its key at first start."""

import dataclasses
import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from api.services import keys
from api.services.keys import KeyKind
from api.store import identity as store
from api.store.db import Connection, Database
from api.store.tables import ApiKey, Project
from sandboxd.contract.ids import RandomBytes, new_id
from sandboxd.contract.problems import ProblemError
from tunnels.scopes import may
from tunnels.tokens import Claims, TokenError, Verifier, looks_like_token

CACHE_SECONDS: Final = 1.0
"""How long a revoked key may go on working."""
_CACHE_SIZE: Final = 4096
_HINT: Final = "Send the header Authorization: Bearer <API key>."
ROOT_SCOPES: Final = ("admin",)
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated request's origin: one key, or a token of it, acting in one project."""

    key_id: str
    key_name: str
    kind: KeyKind
    project_id: str
    project_name: str
    scopes: frozenset[str]
    defaults: dict[str, Any]
    expires_at: int | None
    token: Claims | None = None
    """What the credential says, if it is a token: it is good for one sandbox."""

    def may(self, area: str, *, write: bool) -> bool:
        """Tell whether the scopes allow reading, or writing, an area such as `sandboxes`."""
        return may(self.scopes, area, write=write)

    def require(self, area: str, *, write: bool) -> None:
        """Raise `scope_required`."""
        if not self.may(area, write=write):
            needed = f"{area}:{'write' if write else 'read'}"
            raise ProblemError(
                "scope_required",
                f"This needs the scope {needed}.",
                hint="Use a key that has it.",
                required_scope=needed,
            )


def unauthenticated(reason: str, detail: str) -> ProblemError:
    return ProblemError("unauthenticated", detail, reason=reason, hint=_HINT)


class Callers:
    """Looks callers up, and remembers them for a second, by a hash of what they sent."""

    def __init__(self, tokens: Verifier) -> None:
        self._tokens = tokens
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def authenticate(self, database: Database, credential: str, *, now_us: int, monotonic: float) -> Caller:
        """Return the caller of a credential. Raises `unauthenticated`: malformed, unknown, expired, revoked."""
        mark = hashlib.sha256(credential.encode()).digest()
        known = self._known.get(mark)
        if known is None or monotonic - known[0] > CACHE_SECONDS:
            known = (monotonic, await self._look_up(database, credential, now_us))
            self._remember(mark, known)
        _require_unexpired(known[1], now_us)
        return known[1]

    async def recheck(self, database: Database, caller: Caller, *, now_us: int, monotonic: float) -> None:
        """Raise `unauthenticated` once the key behind a caller is good no longer.

        A token is checked when something is opened with it: that outlives the token, and ends with the token's key.
        """
        mark = caller.key_id.encode()
        known = self._known.get(mark)
        if known is None or monotonic - known[0] > CACHE_SECONDS:
            holder = await database.read(store.key_by_id_any_project, caller.key_id)
            known = (monotonic, _caller(_good(holder)))
            self._remember(mark, known)
        _require_unexpired(known[1], now_us)

    async def _look_up(self, database: Database, credential: str, now_us: int) -> Caller:
        if not looks_like_token(credential):
            return await _look_up(database, credential)
        try:
            claims = self._tokens.check(credential, now_seconds=now_us / 1e6)
        except TokenError as error:
            raise unauthenticated(error.reason, error.detail) from None
        holder = await database.read(store.key_by_id_any_project, claims.key)
        return _caller_of_token(claims, _good(holder))

    def _remember(self, mark: bytes, known: tuple[float, Caller]) -> None:
        self._known[mark] = known
        self._known.move_to_end(mark)
        if len(self._known) > _CACHE_SIZE:
            self._known.popitem(last=False)


def _require_unexpired(caller: Caller, now_us: int) -> None:
    if caller.expires_at is not None and caller.expires_at <= now_us:
        raise unauthenticated("expired", "The credential has expired.")


async def _look_up(database: Database, credential: str) -> Caller:
    parsed = keys.parse(credential)
    if parsed is None:
        raise unauthenticated("malformed", "The credential is not an API key, or has a typing error.")
    holder = await database.read(store.key_by_hash_any_project, parsed.digest)
    if holder is not None and holder.key.kind != parsed.kind:
        holder = None
    return _caller(_good(holder))


def _good(holder: store.KeyHolder | None) -> store.KeyHolder:
    if holder is None:
        raise unauthenticated("unknown", "There is no such key.")
    if holder.key.revoked_at is not None:
        raise unauthenticated("revoked", "The key has been revoked.")
    return holder


def _caller_of_token(claims: Claims, holder: store.KeyHolder) -> Caller:
    """Return who a token speaks for: its key, in its project, with the scopes it was given."""
    caller = _caller(holder)
    expires_at = claims.exp * 1_000_000
    return dataclasses.replace(
        caller,
        scopes=frozenset(claims.scp),
        expires_at=expires_at if caller.expires_at is None else min(expires_at, caller.expires_at),
        token=claims,
    )


def _caller(holder: store.KeyHolder) -> Caller:
    key, project = holder
    return Caller(
        key_id=key.id,
        key_name=key.name,
        kind="operator" if key.kind == "operator" else "project",
        project_id=project.id,
        project_name=project.name,
        scopes=frozenset(key.scopes),
        defaults=project.defaults,
        expires_at=key.expires_at,
    )


def new_key_record(
    key: bytes, *, project_id: str, name: str, kind: KeyKind, scopes: tuple[str, ...], now_us: int, key_id: str
) -> ApiKey:
    """Return what is stored of a key."""
    return ApiKey(
        id=key_id,
        project_id=project_id,
        name=name,
        kind=kind,
        hash=keys.digest_of(key),
        prefix=keys.prefix_of(kind, key),
        scopes=list(scopes),
        created_at=now_us,
    )


async def ensure_root(
    database: Database, private_dir: Path, *, default_egress: str, now_us: int, random_bytes: RandomBytes
) -> None:
    """Make the root project, and a key for it in `<private_dir>/root-key`, unless that file holds one that works.

    The file is written first: a crash in between leaves a file whose key the next start adopts, never a key nobody has.
    """
    path = private_dir / "root-key"
    key = _read_key(path)
    if key is None:
        key = keys.new_key(random_bytes)
        write_private(path, keys.render("project", key).encode() + b"\n")
    await database.write(_ensure_root, key, default_egress, now_us, random_bytes)


def _ensure_root(
    connection: Connection, key: bytes, default_egress: str, now_us: int, random_bytes: RandomBytes
) -> None:
    project_id = store.root_any_project(connection)
    if project_id is None:
        project_id = new_id("prj", random_bytes)
        defaults = {"egress": {"mode": default_egress}}
        project = Project(id=project_id, name="root", defaults=defaults, created_at=now_us)
        store.insert_project_any_project(connection, project)
    if not store.key_exists_any_project(connection, keys.digest_of(key)):
        record = new_key_record(
            key,
            project_id=project_id,
            name="root",
            kind="project",
            scopes=ROOT_SCOPES,
            now_us=now_us,
            key_id=new_id("key", random_bytes),
        )
        store.insert_key(connection, project_id, record)


def _read_key(path: Path) -> bytes | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return None if keys.parse(text) is None else keys.decode(text)


def installation_secret(private_dir: Path, random_bytes: RandomBytes) -> bytes:
    """Return the secret of this installation, made at first start."""
    path = private_dir / "secret"
    if path.exists() and len(secret := path.read_bytes()) == SECRET_BYTES:
        return secret
    secret = random_bytes(SECRET_BYTES)
    write_private(path, secret)
    return secret


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read; whole, or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
