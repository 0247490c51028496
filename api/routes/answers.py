"""Answers: JSON, problems, and the headers that go with them."""

from typing import Final

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api.services import tokens
from api.services.identity import Caller
from api.services.platform import Platform
from api.services.views import Sandbox as SandboxView
from api.services.views import render, view
from api.store.tables import Sandbox
from sandboxd.contract.problems import MEDIA_TYPE, ProblemError

REPLAYED: Final = "Idempotency-Replayed"


def json_answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Render a model."""
    return Response(render(model), status, headers, media_type="application/json")


class CreatedSandbox(SandboxView):
    """A sandbox with the way to its node. Null: the caller's scopes open nothing there."""

    access: tokens.Access | None


def sandbox_answer(platform: Platform, row: Sandbox, status: int = 200, *, replayed: bool = False) -> Response:
    """Render a sandbox with its ETag."""
    headers = {"ETag": f'"{row.generation}"'}
    if replayed:
        headers[REPLAYED] = "true"
    seen = platform.fleet.observed.get(row.id)
    node = platform.fleet.report_of(row.node_id)
    return json_answer(view(row, seen, platform.sources.now_us(), node), status, headers)


def created_answer(
    platform: Platform, caller: Caller, row: Sandbox, status: int, *, replayed: bool = False
) -> Response:
    """Render a sandbox as whoever asked for it is to have it: with `access`."""
    headers = {"ETag": f'"{row.generation}"'} | ({REPLAYED: "true"} if replayed else {})
    seen = platform.fleet.observed.get(row.id)
    shown = view(row, seen, platform.sources.now_us())
    created = CreatedSandbox.model_construct(**dict(shown), access=tokens.access(platform, caller, row))
    return json_answer(created, status, headers)


def problem_answer(request: Request, error: ProblemError) -> Response:
    """Render a problem."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    body = error.body(request.scope["sandlot.request_id"], request.headers.get("traceparent", ""))
    return Response(to_json(body), error.status, headers, media_type=MEDIA_TYPE)
