"""What a handler is given: the platform, who calls, and readers for what was sent."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from api.routes.query import Query
from api.services import idempotency
from api.services.identity import Caller, unauthenticated
from api.services.platform import Platform
from api.store.idempotency import Key
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid, invalid_field
from tunnels.tokens import Claims

BODY_BYTES: Final = 1024 * 1024
LARGE_BODY_BYTES: Final = 8 * 1024 * 1024
_JSON: Final = frozenset({"application/json"})
MERGE_PATCH: Final = frozenset({"application/json", "application/merge-patch+json"})
_KEY: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_TAG: Final = re.compile(r'"([0-9]{1,18})"')

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request."""

    request: Request
    platform: Platform
    caller: Caller

    @property
    def query(self) -> Query:
        return Query(self.request.scope["query_string"])

    def no_query(self) -> None:
        """Refuse every query parameter."""
        self.query.check()

    async def body(
        self, model: type[ModelT], *, limit: int = BODY_BYTES, kinds: frozenset[str] = _JSON
    ) -> tuple[ModelT, bytes]:
        """Read a JSON body strictly; an empty one is an empty object. Returns the raw bytes too."""
        given = self.request.headers.get("content-type")
        if given is not None and given.partition(";")[0].strip().lower() not in kinds:
            raise ProblemError(
                "unsupported_media_type", f"The body is {given[:100]!r}.", hint="Send Content-Type: application/json."
            )
        if self.request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ProblemError("unsupported_media_type", "This body cannot be sent compressed.", hint="Send it plain.")
        raw = await self._read(limit) or b"{}"
        try:
            return model.model_validate_json(raw), raw
        except ValidationError as error:
            raise invalid(error) from None

    async def _read(self, limit: int) -> bytes:
        declared = self.request.headers.get("content-length", "0")
        chunks: list[bytes] = []
        size = int(declared) if declared.isdecimal() else 0
        if size <= limit:
            size = 0
            async for chunk in self.request.stream():
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
        if size > limit:
            raise ProblemError(
                "body_too_large",
                f"The body is larger than {limit} bytes.",
                hint="Stream large input with POST /v1/sandboxes/{id}/processes/{process_id}/stdin.",
                limit_bytes=limit,
            )
        return b"".join(chunks)

    def idempotency_key(self, operation: str, raw: bytes) -> Key | None:
        """Return the request's `Idempotency-Key`, if it has one."""
        value = self.request.headers.get("idempotency-key")
        if value is None:
            return None
        if _KEY.fullmatch(value) is None:
            raise invalid_field("header:Idempotency-Key", "pattern", "must be 1 to 255 printable ASCII characters")
        return idempotency.key_of(
            self.platform.secret, value, operation=operation, path=self.request.url.path, body=from_json(raw)
        )

    async def recheck(self) -> None:
        """Raise `unauthenticated` once what this call opened may go on no longer: its key is good no more."""
        sources = self.platform.sources
        await self.platform.callers.recheck(
            self.platform.database, self.caller, now_us=sources.now_us(), monotonic=sources.monotonic()
        )

    def if_match(self) -> frozenset[int] | None:
        """Return the generations `If-Match` allows; None: any."""
        value = self.request.headers.get("if-match")
        if value is None or value.strip() == "*":
            return None
        return frozenset(int(tag) for tag in _TAG.findall(value))


def platform_of(request: Request) -> Platform:
    """Return the platform this app was built on."""
    return cast("Platform", request.app.state.platform)


def credential_of(request: Request) -> str:
    """Return the credential in a request's headers."""
    key = request.headers.get("x-api-key")
    authorization = request.headers.get("authorization")
    bearer = None
    if authorization is not None:
        scheme, _, bearer = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthenticated("malformed", "The Authorization header is not a Bearer token.")
        bearer = bearer.strip()
    if key is not None and bearer is not None and key != bearer:
        raise unauthenticated("malformed", "Authorization and X-API-Key are two different credentials.")
    found = bearer if bearer is not None else key
    if found is None:
        raise unauthenticated("missing", "There is no credential.")
    return found


async def authenticated(request: Request) -> Call:
    """Return the call of a valid credential, of whatever scopes."""
    return await call_of(request, credential_of(request))


async def call_of(request: Request, credential: str) -> Call:
    """Return the call of a credential that a request brought in whatever way."""
    platform = platform_of(request)
    sources = platform.sources
    caller = await platform.callers.authenticate(
        platform.database, credential, now_us=sources.now_us(), monotonic=sources.monotonic()
    )
    asked = request.headers.get("sandlot-project")
    if asked is not None and asked != caller.project_id:
        raise ProblemError("project_not_found", f"There is no project {asked[:64]!r}.")
    if caller.token is not None:
        _confine(request, caller.token)
    return Call(request, platform, caller)


def _confine(request: Request, token: Claims) -> None:
    """Raise `unauthenticated` for a token at anything but calls on its own sandbox, and /v1/me."""
    parts = request.scope["path"].split("/")
    if parts[1:] == ["v1", "me"]:
        return
    if parts[1:3] != ["v1", "sandboxes"] or parts[3:4] != [token.sbx]:
        raise unauthenticated("wrong_sandbox", "The token is for another sandbox, and for nothing besides.")
    asked = request.query_params
    if token.is_bound and not token.covers("/".join(parts[4:]), asked.get("port"), asked.get("path")):
        raise unauthenticated("wrong_sandbox", "The token is for one port or one file alone.")


def scoped(area: str, *, write: bool) -> Callable[[Request], Awaitable[Call]]:
    """Return a dependency that demands a scope."""

    async def dependency(request: Request) -> Call:
        call = await authenticated(request)
        call.caller.require(area, write=write)
        return call

    return dependency
