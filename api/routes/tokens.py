"""Sandbox tokens: made here; and the keys by which anybody can check them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.routes.answers import REPLAYED, json_answer
from api.routes.calls import Call, platform_of, scoped
from api.routes.operations import IDEMPOTENCY, json_body, json_of, operation
from api.routes.sandboxes import SandboxPath
from api.services import tokens
from api.services.tokens import CreateToken, Token
from sandboxd.contract.processes import Open
from tunnels.tokens import jwk_of

router = APIRouter()


class PublicKeys(Open):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[dict[str, str]]


@router.post(
    "/v1/sandboxes/{sandbox_id}/tokens",
    **operation(
        answers={201: ("The token; it is not shown again.", json_of(Token))},
        codes=[
            "sandbox_not_found",
            "sandbox_ended",
            "body_too_large",
            "unsupported_media_type",
            "idempotency_in_flight",
            "idempotency_mismatch",
        ],
        body=json_body(CreateToken),
        parameters=[IDEMPOTENCY],
        tags=["tunnels"],
    ),
)
async def create_token(
    call: Annotated[Call, Depends(scoped("tunnels", write=True))], sandbox_id: SandboxPath
) -> Response:
    """Make a token for one sandbox, with no more scopes than the key has; only a key can.

    It may be bound to a `port` or a `path`: then it may stand in an address, and lives up to seven days. It ends with
    the key that made it. Sent again with its `Idempotency-Key`, it makes a fresh one that says the same: none is kept.
    """
    call.no_query()
    body, raw = await call.body(CreateToken)
    key = call.idempotency_key("create_token", raw)
    token, replayed = await tokens.create(call.platform, call.caller, sandbox_id, body, key)
    return json_answer(token, 201, {REPLAYED: "true"} if replayed else None)


@router.get(
    "/.well-known/jwks.json",
    **operation(answers={200: ("The keys.", json_of(PublicKeys))}, tags=["service"], public=True),
)
async def get_public_keys(request: Request) -> Response:
    """Return the public keys that verify sandbox tokens."""
    keys = platform_of(request).token_keys.public()
    return json_answer(PublicKeys(keys=[jwk_of(key) for key in keys]))
