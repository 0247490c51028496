"""Making sandbox tokens, and the `access` that goes with a sandbox."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import AfterValidator, Field

from api.services import idempotency
from api.services.identity import Caller
from api.services.platform import Platform
from api.services.views import ended_problem, time_of
from api.store import idempotency as key_store
from api.store import sandboxes as store
from api.store.idempotency import Key
from api.store.tables import Sandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Open, Strict, Time
from sandboxd.contract.trust import MAX_TOKEN_SECONDS, GatewayInfo
from sandboxd.contract.validation import invalid_field
from tunnels import scopes, tokens
from tunnels.routing import PARAMETER, host_of, path_of
from tunnels.tokens import AUDIENCE, ISSUER, MOST_IDENTITY_BYTES, Claims

ACCESS_SECONDS: Final = 900
_MAX_UNBOUND_SECONDS: Final = 86_400
_JTI_BYTES: Final = 12


def _scope(text: str) -> str:
    if text not in scopes.SCOPES:
        msg = "is no scope that a token can have"
        raise ValueError(msg)
    return text


class CreateToken(Strict):
    """A token to be made."""

    scopes: list[Annotated[str, AfterValidator(_scope)]] = Field(min_length=1, max_length=45)
    expires_in_seconds: int = Field(default=ACCESS_SECONDS, ge=60, le=MAX_TOKEN_SECONDS)
    port: int | None = Field(default=None, ge=1, le=65_535)
    path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")] | None = None
    identity: dict[str, Any] | None = None


class Access(Open):
    """The way to a sandbox's node without the api. Without `url` there is none at the moment."""

    url: str | None
    token: str
    expires_at: Time
    scopes: list[str]


class Token(Open):
    """A token. `url` is what it opens: the tunnel's or the file's address if it is bound, else the node's gateway."""

    token: str
    expires_at: Time
    scopes: list[str]
    url: str | None


@dataclass(frozen=True, slots=True)
class _Made:
    token: str
    expires_at: datetime


def access(platform: Platform, caller: Caller, sandbox: Sandbox) -> Access | None:
    """Return the access that an answer to `create` carries; None for a caller whose scopes open nothing at a node."""
    allowed = scopes.of_access(caller.scopes)
    if not allowed or caller.token is not None or sandbox.ended_at is not None:
        return None
    made = _make(platform, caller, sandbox.id, allowed, ACCESS_SECONDS)
    gateway = _gateway(platform, sandbox)
    url = None if gateway is None else gateway.url
    return Access.model_construct(url=url, token=made.token, expires_at=made.expires_at, scopes=allowed)


async def create(
    platform: Platform, caller: Caller, sandbox_id: str, body: CreateToken, key: Key | None
) -> tuple[Token, bool]:
    """Make a token for one sandbox. Returns it, and whether this was a replay.

    No token is kept, so a replay makes a fresh one with the same claims, as the `access` of a replayed create is.
    """
    if key is None:
        return await _create(platform, caller, sandbox_id, body), False
    claim = await platform.database.write(
        key_store.claim,
        caller.project_id,
        key,
        resource_id=sandbox_id,
        incarnation=platform.incarnation,
        now_us=platform.sources.now_us(),
    )
    if claim.outcome in {"mismatch", "in_flight"}:
        idempotency.refuse(claim)
    try:
        token = await _create(platform, caller, sandbox_id, body)
    except BaseException:
        if claim.outcome == "fresh":
            await platform.database.write(key_store.release, caller.project_id, key)
        raise
    await platform.database.write(key_store.finish, caller.project_id, key, status=201)
    return token, claim.outcome == "done"


async def _create(platform: Platform, caller: Caller, sandbox_id: str, body: CreateToken) -> Token:
    """Nobody grants what they lack, and only a key makes tokens."""
    sandbox = await platform.database.read(store.get, caller.project_id, sandbox_id)
    if sandbox.ended_at is not None:
        raise ended_problem(sandbox)
    _check(caller, body)
    asked = sorted(set(body.scopes))
    made = _make(platform, caller, sandbox.id, asked, body.expires_in_seconds, body)
    gateway = _gateway(platform, sandbox)
    url = None if gateway is None else _url(gateway, sandbox.id, body, made.token)
    return Token.model_construct(token=made.token, expires_at=made.expires_at, scopes=asked, url=url)


def _check(caller: Caller, body: CreateToken) -> None:
    if caller.token is not None:
        raise ProblemError(
            "scope_required", "A token cannot make another.", hint="Use an API key.", required_scope="tunnels:write"
        )
    for scope in body.scopes:
        if not scopes.grants(caller.scopes, scope):
            raise ProblemError(
                "scope_required", f"Your key lacks the scope {scope}.", hint="Use another key.", required_scope=scope
            )
    if body.port is not None and body.path is not None:
        raise invalid_field("/path", "exclusive", "not together with port")
    bound = body.port is not None or body.path is not None
    if not bound and body.expires_in_seconds > _MAX_UNBOUND_SECONDS:
        raise invalid_field(
            "/expires_in_seconds", "less_than_equal", f"at most {_MAX_UNBOUND_SECONDS} without port or path"
        )
    if body.identity is not None and len(tokens.canonical(body.identity)) > MOST_IDENTITY_BYTES:
        raise invalid_field("/identity", "too_long", f"longer than {MOST_IDENTITY_BYTES} bytes")


def _make(
    platform: Platform,
    caller: Caller,
    sandbox_id: str,
    allowed: list[str],
    seconds: int,
    body: CreateToken | None = None,
) -> _Made:
    now_us = platform.sources.now_us()
    now = now_us // 1_000_000
    until = now + seconds
    if caller.expires_at is not None:
        until = min(until, caller.expires_at // 1_000_000)
    claims = Claims(
        iss=ISSUER,
        aud=AUDIENCE,
        sub=caller.project_id,
        key=caller.key_id,
        sbx=sandbox_id,
        scp=allowed,
        port=None if body is None else body.port,
        path=None if body is None else body.path,
        identity=None if body is None else body.identity,
        iat=now,
        exp=until,
        jti=tokens.encode(platform.sources.random_bytes(_JTI_BYTES)),
    )
    expires_at = time_of(until * 1_000_000)
    assert expires_at is not None  # noqa: S101 - it was given
    return _Made(tokens.sign(platform.token_keys.signing(now_us), claims), expires_at)


def _gateway(platform: Platform, sandbox: Sandbox) -> GatewayInfo | None:
    member = platform.fleet.members.get(sandbox.node_id)
    return None if member is None or member.report is None else member.report.gateway


def any_gateway(platform: Platform) -> GatewayInfo | None:
    """Return how the gateway is reached of whichever node has one."""
    for member in platform.fleet.members.values():
        if member.report is not None and member.report.gateway is not None and not member.silent:
            return member.report.gateway
    return None


def _url(gateway: GatewayInfo, sandbox_id: str, body: CreateToken, token: str) -> str | None:
    if body.path is not None:
        return f"{gateway.url}/v1/sandboxes/{sandbox_id}/files?path={quote(body.path, safe='/')}&{PARAMETER}={token}"
    if body.port is None:
        return gateway.url
    if gateway.domain is not None:
        base = host_of(gateway.url, gateway.domain, sandbox_id, body.port) + "/"
    elif gateway.by_path:
        base = gateway.url + path_of(sandbox_id, body.port)
    else:
        return None
    return f"{base}?{PARAMETER}={token}"
