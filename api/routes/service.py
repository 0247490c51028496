"""The service about itself: me, health, readiness, metrics, documents."""

import html
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.config import VERSION
from api.routes.answers import json_answer
from api.routes.calls import BODY_BYTES, LARGE_BODY_BYTES, Call, authenticated, platform_of
from api.routes.operations import json_of, operation
from api.services import health, tokens
from api.services.platform import Platform
from api.services.requests import MAX_FILES_BYTES, MAX_METADATA, MAX_METADATA_BYTES, MAX_WAIT_SECONDS
from api.services.views import time_of
from sandboxd.contract.next_steps import NEXT_STEPS
from sandboxd.contract.problems import CODES, ProblemError
from sandboxd.contract.processes import MAX_ARGUMENT_BYTES, MAX_TIMEOUT_SECONDS, Open, Time

router = APIRouter()
internal = APIRouter()
"""Also served on the internal socket and the metrics listener, where no key is asked for."""

FEATURES: Final = (
    "egress",
    "egress.allowlist",
    "egress.blocked",
    "egress.open",
    "entrypoint",
    "logs",
    "metrics",
    "ports",
    "processes",
    "run",
    "sandboxes",
    "tokens",
)
_PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sandlot API</title>
<style>body{{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}code{{background:#eee}}</style>
<h1>Sandlot API {version}</h1><p>The document: <a href="/openapi.json">openapi.json</a>.</p><dl>{rows}</dl></html>"""


class Party(Open):
    """Who or what is meant."""

    id: str
    name: str


class CallerView(Party):
    """The credential in use."""

    kind: str


class Gateway(Open):
    """The way to nodes without the api, and to what listens in sandboxes. Null: no gateway is there at the moment."""

    domain: str | None = None
    url: str | None = None


class Me(Open):
    """Who is calling, and what this server offers."""

    caller: CallerView
    project: Party
    scopes: list[str]
    restrictions: dict[str, Any]
    features: list[str]
    limits: dict[str, int]
    gateway: Gateway
    version: str
    at: Time


class Status(Open):
    """It lives."""

    status: str


class Readiness(Open):
    """What has been checked."""

    checks: dict[str, bool]


class ErrorPage(Open):
    """What an error code means."""

    code: str
    status: int
    title: str
    retryable: bool
    hint: str


@router.get("/v1/me", **operation(answers={200: ("You.", json_of(Me))}, tags=["service"]))
async def get_me(call: Annotated[Call, Depends(authenticated)]) -> Response:
    """Say who is calling, in which project, with which scopes and limits."""
    call.no_query()
    caller = call.caller
    me = Me.model_construct(
        caller=CallerView(kind="key" if caller.token is None else "token", id=caller.key_id, name=caller.key_name),
        project=Party(id=caller.project_id, name=caller.project_name),
        scopes=sorted(caller.scopes),
        restrictions={},
        features=list(FEATURES),
        limits={
            "body_bytes": BODY_BYTES,
            "large_body_bytes": LARGE_BODY_BYTES,
            "files_bytes": MAX_FILES_BYTES,
            "argument_bytes": MAX_ARGUMENT_BYTES,
            "metadata_entries": MAX_METADATA,
            "metadata_bytes": MAX_METADATA_BYTES,
            "timeout_seconds": MAX_TIMEOUT_SECONDS,
            "create_wait_seconds": MAX_WAIT_SECONDS,
        },
        gateway=_gateway(call.platform),
        version=VERSION,
        at=time_of(call.platform.sources.now_us()),
    )
    return json_answer(me)


def _gateway(platform: Platform) -> Gateway:
    found = tokens.any_gateway(platform)
    return Gateway() if found is None else Gateway(domain=found.domain, url=found.url)


@router.get("/healthz", **operation(answers={200: ("It lives.", json_of(Status))}, tags=["service"], public=True))
async def get_health() -> Response:
    """Answer, if nothing else."""
    return json_answer(Status(status="ok"))


@router.get(
    "/readyz",
    **operation(
        answers={200: ("Ready.", json_of(Readiness)), 503: ("Not ready.", json_of(Readiness))},
        tags=["service"],
        public=True,
    ),
)
async def get_readiness(request: Request) -> Response:
    """Say whether sandboxes can be created: the database answers, and a node has reported lately."""
    checks = await health.checks(platform_of(request))
    return json_answer(Readiness(checks=checks), 200 if all(checks.values()) else 503)


def _metrics(request: Request) -> Response:
    platform = platform_of(request)
    health.observe(platform)
    return Response(platform.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get(
    "/metrics",
    **operation(answers={200: ("Metrics.", {"text/plain": {"schema": {"type": "string"}}})}, tags=["service"]),
)
async def get_metrics(call: Annotated[Call, Depends(authenticated)]) -> Response:
    """Return metrics for Prometheus. Needs an operator key; the metrics listener asks for none."""
    if call.caller.kind != "operator":
        raise ProblemError("scope_required", "This needs an operator key.", required_scope="operator")
    return _metrics(call.request)


@internal.get("/metrics", response_class=Response, response_model=None)
async def get_internal_metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    return _metrics(request)


@router.get(
    "/errors/{code}",
    **operation(
        answers={200: ("What it means.", json_of(ErrorPage))}, codes=["route_not_found"], tags=["service"], public=True
    ),
)
async def get_error(code: str) -> Response:
    """Explain an error code: what `type` of a problem points to."""
    row = CODES.get(code)
    if row is None:
        raise ProblemError("route_not_found", f"There is no error code {code[:64]!r}.")
    page = ErrorPage(code=code, status=row.status, title=row.title, retryable=row.retryable, hint=NEXT_STEPS[code])
    return json_answer(page)


@router.get("/docs", include_in_schema=False, response_class=Response, response_model=None)
async def get_docs(request: Request) -> Response:
    """List the operations for a person; needs nothing from elsewhere."""
    document: dict[str, Any] = request.app.openapi()
    rows = [
        f"<dt><code>{method.upper()} {html.escape(path)}</code><dd>{html.escape(about.get('description', ''))}"
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    page = _PAGE.format(version=html.escape(VERSION), rows="".join(rows))
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(page, headers=headers, media_type="text/html")
