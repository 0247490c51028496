"""Sandboxes: create, list, get, patch, extend, delete."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Response

from api.routes.answers import CreatedSandbox, created_answer, json_answer, sandbox_answer
from api.routes.calls import MERGE_PATCH, Call, scoped
from api.routes.operations import IDEMPOTENCY, IF_MATCH, SANDBOX_HEADERS, WAIT, json_body, json_of, operation, query
from api.routes.query import parse_time
from api.services import creation, sandboxes, stopping
from api.services.requests import CreateSandbox, DeleteSandboxes, ExtendSandbox, PatchSandboxRequest
from api.services.views import Sandbox, SandboxList, view
from api.store.sandboxes import Filter
from sandboxd.contract.ids import SandboxId
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Open
from sandboxd.contract.states import SETTLED, SandboxState
from sandboxd.contract.validation import invalid_field

router = APIRouter()

SandboxPath = Annotated[str, Path(json_schema_extra={"pattern": "^sbx[a-z2-7]{20}$"})]
_STATES: Final = tuple(state.value for state in SandboxState)
_STATE_SCHEMA: Final = {"type": "string", "enum": list(_STATES)}
_SETTLED: Final = frozenset(state.value for state in SETTLED)
_TAGS: Final = ("sandboxes",)
_NAME: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_IMAGE: Final = r"img[a-z2-7]{20}"
_KEY: Final = r"key[a-z2-7]{20}"
_SANDBOX: Final = json_of(Sandbox)
_CREATED: Final = json_of(CreatedSandbox)

CREATE_CODES: Final = (
    "quota_exceeded",
    "image_not_found",
    "idempotency_in_flight",
    "name_taken",
    "sandbox_ended",
    "body_too_large",
    "unsupported_media_type",
    "idempotency_mismatch",
    "impossible_resources",
    "image_refused",
    "image_unauthorized",
    "registry_unavailable",
    "user_not_found",
    "cwd_not_found",
    "argument_too_long",
    "guest_failed",
    "no_capacity",
    "start_failed",
    "image_unavailable",
    "invalid_policy",
    "egress_not_applied",
    "deadline_exceeded",
)


class DeletedSandboxes(Open):
    """What a bulk delete matched; at most 1000 of the ids are named."""

    matched: int
    sandbox_ids: list[SandboxId]


Read = Annotated[Call, Depends(scoped("sandboxes", write=False))]
Write = Annotated[Call, Depends(scoped("sandboxes", write=True))]


@router.post(
    "/v1/sandboxes",
    **operation(
        answers={201: ("It runs, or is promised.", _CREATED), 200: ("It was there, by name or by key.", _CREATED)},
        codes=CREATE_CODES,
        body=json_body(CreateSandbox),
        parameters=[IDEMPOTENCY],
        headers=SANDBOX_HEADERS,
        tags=_TAGS,
    ),
)
async def create_sandbox(call: Write) -> Response:
    """Create a sandbox.

    Answers once it runs. When `wait_seconds` runs out before, it is 201 all the same, with `state` `pending` or
    `starting`: GET it with `wait_for=running`.
    """
    call.no_query()
    body, raw = await call.body(CreateSandbox)
    key = call.idempotency_key("create_sandbox", raw)
    created = await creation.create(call.platform, call.caller, body, key)
    return created_answer(call.platform, call.caller, created.sandbox, created.status, replayed=created.replayed)


@router.get(
    "/v1/sandboxes",
    **operation(
        answers={200: ("A page.", json_of(SandboxList))},
        codes=["invalid_cursor"],
        parameters=[
            query("state", {"type": "array", "items": _STATE_SCHEMA}, "Default: all that have not ended."),
            query("name", {"type": "string", "pattern": f"^{_NAME}$"}),
            query("image_id", {"type": "string", "pattern": f"^{_IMAGE}$"}),
            query("key_id", {"type": "string", "pattern": f"^{_KEY}$"}),
            query("created_after", {"type": "string", "format": "date-time"}),
            query("created_before", {"type": "string", "format": "date-time"}),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            query("cursor", {"type": "string"}, "`next_cursor` of the page before."),
            query("order", {"type": "string", "enum": ["desc", "asc"], "default": "desc"}),
        ],
        tags=_TAGS,
    ),
)
async def list_sandboxes(call: Read) -> Response:
    """List sandboxes in order of creation.

    `metadata.<key>=<value>` may be given for any key; all must match. What exists during the whole walk appears
    exactly once.
    """
    asked = call.query
    wanted = Filter(
        states=asked.choices("state", _STATES),
        name=asked.text("name", _NAME),
        image_id=asked.text("image_id", _IMAGE),
        key_id=asked.text("key_id", _KEY),
        created_after=asked.time("created_after"),
        created_before=asked.time("created_before"),
        metadata=asked.metadata(),
    )
    limit = asked.integer("limit", 100, 1, 1000)
    cursor = asked.text("cursor", r".{0,512}")
    order = asked.choice("order", "desc", ("desc", "asc"))
    asked.check()
    page = await sandboxes.list_page(
        call.platform, call.caller, wanted, cursor=cursor, descending=order == "desc", limit=limit
    )
    now_us = call.platform.sources.now_us()
    fleet = call.platform.fleet
    items = [view(row, fleet.observed.get(row.id), now_us, fleet.report_of(row.node_id)) for row in page.items]
    return json_answer(SandboxList.model_construct(items=items, next_cursor=page.next_cursor))


@router.get(
    "/v1/sandboxes/{sandbox_id}",
    **operation(
        answers={200: ("The sandbox.", _SANDBOX)},
        codes=["sandbox_not_found"],
        parameters=[
            WAIT,
            query(
                "wait_for",
                {"type": "array", "items": _STATE_SCHEMA, "minItems": 1},
                "States to wait for, comma-separated; default: any settled one.",
            )
            | {"style": "form", "explode": False},
        ],
        headers=SANDBOX_HEADERS,
        tags=_TAGS,
    ),
)
async def get_sandbox(call: Read, sandbox_id: SandboxPath) -> Response:
    """Get a sandbox, ended ones too. Elapsed waiting is not an error."""
    asked = call.query
    wait_for = asked.comma_choices("wait_for", _STATES)
    wait_seconds = asked.number("wait_seconds", 0, 0, 60)
    asked.check()
    states = frozenset(wait_for) or _SETTLED
    row = await sandboxes.get(call.platform, call.caller, sandbox_id, wait_for=states, wait_seconds=wait_seconds)
    return sandbox_answer(call.platform, row)


_CHANGE_CODES: Final = (
    "sandbox_not_found",
    "invalid_state",
    "sandbox_not_ready",
    "operation_in_progress",
    "stale_generation",
    "sandbox_ended",
    "body_too_large",
    "unsupported_media_type",
    "node_unreachable",
    "sandbox_lost",
)


@router.patch(
    "/v1/sandboxes/{sandbox_id}",
    **operation(
        answers={200: ("The sandbox as changed.", _SANDBOX)},
        codes=[*_CHANGE_CODES, "name_taken", "generation_mismatch"],
        body=json_body(PatchSandboxRequest, "application/json", "application/merge-patch+json"),
        parameters=[IF_MATCH],
        headers=SANDBOX_HEADERS,
        tags=_TAGS,
    ),
)
async def patch_sandbox(call: Write, sandbox_id: SandboxPath) -> Response:
    """Change a sandbox by JSON merge patch. `timeout_seconds` counts from now and may shorten."""
    call.no_query()
    body, _ = await call.body(PatchSandboxRequest, kinds=MERGE_PATCH)
    row = await sandboxes.patch(call.platform, call.caller, sandbox_id, body, call.if_match())
    return sandbox_answer(call.platform, row)


@router.delete(
    "/v1/sandboxes/{sandbox_id}",
    **operation(
        answers={200: ("It is stopped, or stopping.", _SANDBOX)},
        codes=["sandbox_not_found", "generation_mismatch", "operation_in_progress"],
        parameters=[
            IF_MATCH,
            query("grace_seconds", {"type": "number", "minimum": 0, "maximum": 60, "default": 5}),
            query("wait_seconds", {"type": "number", "minimum": 0, "maximum": 60, "default": 30}),
        ],
        headers=SANDBOX_HEADERS,
        tags=_TAGS,
    ),
)
async def delete_sandbox(call: Write, sandbox_id: SandboxPath) -> Response:
    """Stop a sandbox for good. `grace_seconds` lie between SIGTERM and SIGKILL. Again: the same answer."""
    asked = call.query
    grace_seconds = asked.number("grace_seconds", 5, 0, 60)
    wait_seconds = asked.number("wait_seconds", 30, 0, 60)
    asked.check()
    row = await stopping.delete(
        call.platform,
        call.caller,
        sandbox_id,
        grace_seconds=grace_seconds,
        wait_seconds=wait_seconds,
        match=call.if_match(),
    )
    return sandbox_answer(call.platform, row)


@router.post(
    "/v1/sandboxes/delete",
    **operation(
        answers={202: ("They are stopping, or would be.", json_of(DeletedSandboxes))},
        codes=["filter_required", "body_too_large", "unsupported_media_type"],
        body=json_body(DeleteSandboxes),
        tags=_TAGS,
    ),
)
async def delete_sandboxes(call: Write) -> Response:
    """Stop all live sandboxes that match a filter. Safe to send again; at most 1000 ids are named."""
    call.no_query()
    body, _ = await call.body(DeleteSandboxes)
    given = body.filter
    if given.is_empty():
        raise ProblemError("filter_required", "An empty filter would match every sandbox of the project.")
    before = None if given.created_before is None else parse_time(given.created_before)
    if given.created_before is not None and before is None:
        raise invalid_field("/filter/created_before", "time", "must be an RFC 3339 time such as 2026-01-31T12:00:00Z")
    wanted = Filter(
        states=tuple(given.state or ()),
        image_id=given.image_id,
        metadata=given.metadata or {},
        created_before=before,
    )
    matched, named = await stopping.delete_matching(call.platform, call.caller, wanted, dry_run=body.dry_run)
    return json_answer(DeletedSandboxes.model_construct(matched=matched, sandbox_ids=named), 202)


@router.post(
    "/v1/sandboxes/{sandbox_id}/extend",
    **operation(
        answers={200: ("The sandbox as changed.", _SANDBOX)},
        codes=[*_CHANGE_CODES, "idempotency_in_flight", "idempotency_mismatch"],
        body=json_body(ExtendSandbox),
        parameters=[IDEMPOTENCY],
        headers=SANDBOX_HEADERS,
        tags=_TAGS,
    ),
)
async def extend_sandbox(call: Write, sandbox_id: SandboxPath) -> Response:
    """Move the deadline away: the later of the old one and now plus `timeout_seconds`."""
    call.no_query()
    body, raw = await call.body(ExtendSandbox)
    key = call.idempotency_key("extend_sandbox", raw)
    row, replayed = await sandboxes.extend(call.platform, call.caller, sandbox_id, body, key)
    return sandbox_answer(call.platform, row, replayed=replayed)
