"""Secrets: kept sealed, told to no caller, and handed only to where they may go."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from api.services.authorities import authority_of
from api.services.identity import Caller
from api.services.platform import Platform
from api.services.secret_hosts import covers
from api.services.secret_requests import PutSecret, SecretView
from api.services.vault import UnreadableError, Vault
from api.services.views import time_of
from api.store import secrets as store
from api.store.db import Connection
from api.store.secret_tables import Secret
from netpolicy.credentials import Credentials
from sandboxd.contract.messages import CredentialsSpec, EgressSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field

_log = structlog.get_logger()

MAX_ENV_BYTES: Final = 256 * 1024
"""Of all secret variables of a sandbox or a build: they are in the environment of each process of it."""
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list."""

    items: list[Secret]
    next_cursor: str | None


async def put(platform: Platform, caller: Caller, name: str, body: PutSecret) -> store.Put:
    """Have a secret be this. The same again changes nothing, not the version."""
    text, hosts = body.text(), body.canonical_hosts()
    for _ in range(_ATTEMPTS):
        known = await platform.database.read(store.find, caller.project_id, name)
        if known is not None and _is_same(platform.vault, known, text, body.env, hosts):
            return store.Put(known, created=False)
        now_us = platform.sources.now_us()
        before = 0 if known is None else known.version
        row = Secret(
            project_id=caller.project_id,
            name=name,
            version=before + 1,
            env=body.env,
            hosts=hosts,
            sealed=platform.vault.seal(text.encode(), _of(caller.project_id, name, before + 1)),
            created_at=now_us,
            updated_at=now_us,
        )
        most = platform.settings.max_secrets
        done = await platform.database.write(store.put, caller.project_id, row, before=before, most=most)
        if done is not None:
            for sandbox_id in done.told:
                platform.changes.notify(sandbox_id)
            return done
    raise ProblemError("operation_in_progress", f"Secret {name} is being changed by others.", retry_after_seconds=1)


async def get(platform: Platform, caller: Caller, name: str) -> Secret:
    """Raises `secret_not_found`."""
    return await platform.database.read(store.get, caller.project_id, name)


async def list_page(platform: Platform, caller: Caller, *, after: str | None, limit: int) -> Page:
    """Return a page of the project's secrets, by name; a cursor is the last name seen."""
    rows = await platform.database.read(store.list_page, caller.project_id, after=after, limit=limit + 1)
    return Page(rows[:limit], rows[limit - 1].name if len(rows) > limit else None)


async def remove(platform: Platform, caller: Caller, name: str) -> None:
    """Remove a secret. Raises `secret_not_found`, and `in_use` while a live sandbox uses it."""
    await platform.database.write(store.remove, caller.project_id, name)


def view(row: Secret) -> SecretView:
    """Render a secret without its value."""
    return SecretView.model_construct(
        name=row.name,
        version=row.version,
        env=row.env,
        hosts=row.hosts,
        created_at=time_of(row.created_at),
        updated_at=time_of(row.updated_at),
    )


# Handing them out


async def env_values(
    platform: Platform, caller: Caller, asked: Mapping[str, str], at: tuple[str, ...]
) -> dict[str, str]:
    """Return the value of each variable of a `secret_env`. `at`: where that stands.

    Raises `scope_required`, `secret_not_found`, and `invalid_request` for a secret that may not be handed out so.
    """
    if not asked:
        return {}
    caller.require("secrets", write=False)
    return await stored_env(platform, caller.project_id, asked, at)


def _values_of(
    platform: Platform, found: Mapping[str, Secret], asked: Mapping[str, str], at: tuple[str, ...]
) -> dict[str, str]:
    opened = {name: open_value(platform.vault, found[name]) for name in set(asked.values())}
    values = {variable: opened[name] for variable, name in asked.items()}
    if sum(len(variable.encode()) + len(value.encode()) for variable, value in values.items()) > MAX_ENV_BYTES:
        raise invalid_field("/" + "/".join(at), "too_long", f"longer than {MAX_ENV_BYTES} bytes in all")
    return values


async def stored_env(
    platform: Platform, project_id: str, asked: Mapping[str, str], at: tuple[str, ...] = ("secret_env",)
) -> dict[str, str]:
    """Return the values of a `secret_env` that was allowed when it was asked for. ProblemError where that has ended."""
    if not asked:
        return {}
    found = await platform.database.read(store.get_all, project_id, set(asked.values()))
    for variable, name in asked.items():
        if name not in found:
            raise store.secret_not_found(name)
        if not found[name].env:
            raise _not_for_env(at, variable, name)
    return _values_of(platform, found, asked, at)


async def value_for_host(platform: Platform, project_id: str, name: str, host: str, at: str) -> str:
    """Return a secret that is sent to one host. Raises `secret_not_found`, `invalid_request` where it may not."""
    row = await platform.database.read(store.get, project_id, name)
    if not covers(row.hosts, host):
        raise invalid_field(at, "secret_host", f"secret {name} may not go to {host}: its `hosts` do not say so")
    return open_value(platform.vault, row)


def use_in_env(connection: Connection, project_id: str, sandbox_id: str, asked: Mapping[str, str]) -> None:
    """Write down the secrets that a new sandbox is made with; none of them can go meanwhile."""
    if not asked:
        return
    may = {row.name: row.env for row in store.use(connection, project_id, sandbox_id, "env", set(asked.values()))}
    for variable, name in asked.items():
        if not may[name]:
            raise _not_for_env(("secret_env",), variable, name)


def use_in_policy(
    connection: Connection, project_id: str, sandbox_id: str, egress: EgressSpec, at: tuple[str, ...]
) -> None:
    """Write down the secrets that a sandbox's policy injects, instead of those of the one before.

    Raises `secret_not_found`, and `invalid_policy` for one that may not go to its host.
    """
    rows = store.use(connection, project_id, sandbox_id, "inject", names_of(egress))
    hosts = {row.name: row.hosts for row in rows}
    for place, entry in enumerate(egress.inject):
        name = entry.value_from["secret"]
        if not covers(hosts[name], entry.host):
            path = "/" + "/".join((*at, "inject", str(place), "host"))
            message = f"secret {name} may not go to {entry.host}: its `hosts` do not say so"
            raise ProblemError(
                "invalid_policy",
                f"{path}: {message}",
                hint=f"PUT /v1/secrets/{name} with `hosts` that cover it.",
                errors=[{"path": path, "code": "secret_host", "message": message}],
            )


def names_of(egress: EgressSpec) -> set[str]:
    """Return the secrets that a policy names."""
    return {entry.value_from["secret"] for entry in egress.inject}


def require_for_policy(caller: Caller, egress: EgressSpec) -> None:
    """Raise `scope_required` where a policy names secrets and the caller may not."""
    if egress.inject:
        caller.require("secrets", write=False)


async def credentials_of(platform: Platform, project_id: str, egress: EgressSpec) -> CredentialsSpec | None:
    """Return what a node needs to carry a policy out; None where it injects nothing.

    A secret that is gone, may not go to one of its hosts any more, or cannot be opened is left out: the node keeps
    such hosts closed.
    """
    names = names_of(egress)
    if not names:
        return None
    rows = await platform.database.read(store.get_all, project_id, names)
    try:
        certificate, key = await authority_of(platform, project_id)
    except UnreadableError:
        _log.error("a project's authority cannot be opened", project=project_id)
        return None
    values = {name: _usable(platform.vault, row, egress) for name, row in rows.items()}
    made = Credentials(
        ca_certificate=certificate,
        ca_key=key,
        values={name: value for name, value in values.items() if value is not None},
    )
    return CredentialsSpec.model_validate(made.to_json())


def _usable(vault: Vault, row: Secret, egress: EgressSpec) -> str | None:
    if not all(covers(row.hosts, entry.host) for entry in egress.inject if entry.value_from["secret"] == row.name):
        return None
    try:
        return _opened(vault, row)
    except UnreadableError:
        _log.error("a secret cannot be opened", project=row.project_id, secret=row.name)
        return None


def open_value(vault: Vault, row: Secret) -> str:
    """Return a secret's value. `store_unavailable` where its key is not here."""
    try:
        return _opened(vault, row)
    except UnreadableError as error:
        raise ProblemError(
            "store_unavailable",
            f"The value of secret {row.name} cannot be opened: {error}.",
            hint="PUT its value again, or restore the file of keys.",
        ) from error


def seal_again(vault: Vault, connection: Connection) -> int:
    """Put what an older key has sealed under the newest one; returns how many could not be opened."""
    failed = 0
    for row in store.sealed_otherwise_any_project(connection, vault.head):
        try:
            text = _opened(vault, row)
        except UnreadableError:
            failed += 1
            continue
        sealed = vault.seal(text.encode(), _of(row.project_id, row.name, row.version))
        store.seal_again_any_project(connection, row, sealed)
    return failed


def _opened(vault: Vault, row: Secret) -> str:
    return vault.open(row.sealed, _of(row.project_id, row.name, row.version)).decode()


def _of(project_id: str, name: str, version: int) -> tuple[str, ...]:
    return ("secret", project_id, name, str(version))


def _is_same(vault: Vault, row: Secret, text: str, env: bool, hosts: list[str]) -> bool:
    if (row.env, row.hosts) != (env, hosts):
        return False
    try:
        return hmac.compare_digest(_opened(vault, row).encode(), text.encode())
    except UnreadableError:
        return False


def _not_for_env(at: tuple[str, ...], variable: str, name: str) -> ProblemError:
    path = "/" + "/".join((*at, variable.replace("~", "~0").replace("/", "~1")[:256]))
    return invalid_field(path, "secret_env", f"secret {name} may not be handed out as a variable: its `env` is false")
