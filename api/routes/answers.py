"""Answers: JSON, problems, and the headers that go with them."""

from typing import Final

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api.services import tokens
from api.services.identity import Caller
from api.services.image_views import waiting_message
from api.services.platform import Platform
from api.services.views import Sandbox as SandboxView
from api.services.views import render, view
from api.store.tables import Sandbox
from sandboxd.contract.problems import MEDIA_TYPE, ProblemError
from sandboxd.contract.states import SandboxState

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
    return json_answer(_shown(platform, row), status, headers)


def created_answer(
    platform: Platform, caller: Caller, row: Sandbox, status: int, *, replayed: bool = False
) -> Response:
    """Render a sandbox as whoever asked for it is to have it: with `access`."""
    headers = {"ETag": f'"{row.generation}"'} | ({REPLAYED: "true"} if replayed else {})
    access = tokens.access(platform, caller, row)
    created = CreatedSandbox.model_construct(**dict(_shown(platform, row)), access=access)
    return json_answer(created, status, headers)


def _shown(platform: Platform, row: Sandbox) -> SandboxView:
    seen = platform.fleet.observed.get(row.id)
    node = platform.fleet.report_of(row.node_id)
    coming = None
    if row.state == SandboxState.PENDING and not row.node_id:
        coming = f"Its image is being fetched. {waiting_message(platform.images.jobs.get(row.image_id))}"
    return view(row, seen, platform.sources.now_us(), node, coming=coming)


def problem_answer(request: Request, error: ProblemError) -> Response:
    """Render a problem."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    body = error.body(request.scope["sandlot.request_id"], request.headers.get("traceparent", ""))
    return Response(to_json(body), error.status, headers, media_type=MEDIA_TYPE)
