"""The gateway's side of the node: calls of the data plane by token, on a socket of the gateway's own.

What a call may do is decided here, by what its token says, whatever the gateway claims: that program faces everybody,
and one that was taken over must gain no more than the tokens that pass through it.
"""

import os
import pwd
from collections.abc import Iterable
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict
from pydantic import ValidationError

from sandboxd.app.answers import json_answer, problems
from sandboxd.app.server import MAX_BODY_BYTES, only
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import BEARER_PREFIX, MAY_WRITE
from sandboxd.contract.trust import Accepted, GatewayInfo, Trust
from sandboxd.contract.validation import invalid
from sandboxd.trust import TrustStore
from tunnels.routing import PARAMETER
from tunnels.scopes import Need, need_of
from tunnels.tokens import Claims

_log = structlog.get_logger(__name__)
_CALL_AT: Final = 4
"""Of the parts of `/v1/sandboxes/{id}/<call>`."""
_MAX_HELLO_BYTES: Final = 4096
_MAX_TRUST_BYTES: Final = 4 * 1024 * 1024


def allowed_gateway(user: str) -> frozenset[int]:
    """Return who may be the gateway: root, whoever runs this program, and the gateway's user if there is one."""
    peers = {0, os.getuid()}
    try:
        peers.add(pwd.getpwnam(user).pw_uid)
    except KeyError:
        _log.warning("no such user", user=user)
    return frozenset(peers)


def application(peers: Iterable[int], trust: TrustStore, routes: Iterable[web.AbstractRouteDef]) -> web.Application:
    """Make the application of the gateway's socket from the routes of the data plane."""
    middlewares = [only(frozenset(peers), "the gateway"), problems, _by_token(trust)]
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
    app.add_routes(routes)
    app.add_routes([web.put("/gateway/v1/hello", _Hello(trust).take)])
    return app


def trust_routes(trust: TrustStore) -> list[web.AbstractRouteDef]:
    """Return the api's call that says what is to be believed of tokens."""

    async def learn(request: web.Request) -> web.Response:
        try:
            trust.learn(Trust.model_validate_json(await _body(request, _MAX_TRUST_BYTES)))
        except ValidationError as error:
            raise invalid(error) from None
        return json_answer(Accepted(revision=trust.revision))

    return [web.put("/node/v1/trust", learn)]


class _Hello:
    def __init__(self, trust: TrustStore) -> None:
        self._trust = trust

    async def take(self, request: web.Request) -> web.Response:
        """Take note of how the gateway is reached."""
        try:
            self._trust.greet(GatewayInfo.model_validate_json(await _body(request, _MAX_HELLO_BYTES)))
        except ValidationError as error:
            raise invalid(error) from None
        return json_answer(Accepted(revision=self._trust.revision))


async def _body(request: web.Request, most: int) -> bytes:
    if (request.content_length or 0) > most:
        raise ProblemError("body_too_large", f"The body is larger than {most} bytes.", limit_bytes=most)
    return await request.read()


def _by_token(trust: TrustStore) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        sandbox_id = request.match_info.get("sandbox_id")
        if sandbox_id is None:
            return await handler(request)
        parts = request.path.split("/")
        need = need_of(request.method, parts[_CALL_AT]) if len(parts) > _CALL_AT else None
        if need is None:
            raise ProblemError("moved", "This call is the api's.", hint="Send the same request to the api.")
        claims = trust.check(_token_of(request), sandbox_id)
        _require(request, claims, need, "/".join(parts[_CALL_AT:]))

        def end() -> None:
            if request.transport is not None:
                request.transport.abort()

        with trust.hold(claims, end):
            return await handler(_confined(request, claims))

    return check


def _require(request: web.Request, claims: Claims, need: Need, call: str) -> None:
    if not claims.covers(call, request.query.get("port"), request.query.get("path")):
        raise ProblemError("unauthenticated", "The token is for one port or file alone.", reason="wrong_sandbox")
    if PARAMETER in request.query and not claims.is_bound:
        raise ProblemError(
            "unauthenticated",
            "Only a token that is bound to a port or a path may stand in an address.",
            reason="malformed",
        )
    if not claims.may(need.area, write=need.write):
        raise ProblemError("scope_required", f"This needs the scope {need.scope}.", required_scope=need.scope)


def _token_of(request: web.Request) -> str | None:
    """Return the one token of a request, wherever it stands. Raises `unauthenticated` where there are several."""
    found: set[str] = set(request.query.getall(PARAMETER, []))
    for value in request.headers.getall("Authorization", []):
        scheme, _, token = value.partition(" ")
        found.add(token.strip() if scheme.lower() == "bearer" else "")
    found.update(request.headers.getall("X-API-Key", []))
    offered = [word.strip() for word in ",".join(request.headers.getall("Sec-WebSocket-Protocol", [])).split(",")]
    found.update(word.removeprefix(BEARER_PREFIX) for word in offered if word.startswith(BEARER_PREFIX))
    if len(found) > 1:
        raise ProblemError("unauthenticated", "The request carries different credentials.", reason="malformed")
    return found.pop() if found else None


def _confined(request: web.Request, claims: Claims) -> web.Request:
    """Return the request as a call is to see it: without the credential, with what the token allows."""
    headers = CIMultiDict(request.headers)
    for name in ("Authorization", "X-API-Key", MAY_WRITE):
        headers.popall(name, None)
    if claims.may("processes", write=True):
        headers[MAY_WRITE] = "true"
    offered = ",".join(headers.popall("Sec-WebSocket-Protocol", []))
    kept = [word.strip() for word in offered.split(",") if word.strip() and not word.strip().startswith(BEARER_PREFIX)]
    if kept:
        headers["Sec-WebSocket-Protocol"] = ", ".join(kept)
    url = request.rel_url
    if PARAMETER in url.query:
        url = url.without_query_params(PARAMETER)
    return request.clone(headers=headers, rel_url=url)
