"""What a sandbox may reach: read, replaced while it runs, explained."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response

from api.routes.answers import json_answer
from api.routes.calls import Call, scoped
from api.routes.operations import IF_MATCH, json_body, json_of, operation
from api.routes.sandboxes import SandboxPath
from api.services import egress
from api.services.policies import ChangedEgress, Egress, EgressExplanation, EgressPolicy, ExplainEgress

router = APIRouter()

Read = Annotated[Call, Depends(scoped("egress", write=False))]
Write = Annotated[Call, Depends(scoped("egress", write=True))]
_TAGS: Final = ("egress",)
_HEADERS: Final = {
    "ETag": {"schema": {"type": "string"}, "description": "The policy's generation, quoted."},
}


def _answer(model: Egress) -> Response:
    return json_answer(model, headers={"ETag": f'"{model.generation}"'})


@router.get(
    "/v1/sandboxes/{sandbox_id}/egress",
    **operation(
        answers={200: ("The policy.", json_of(Egress))},
        codes=["sandbox_not_found"],
        headers=_HEADERS,
        tags=_TAGS,
    ),
)
async def get_egress(call: Read, sandbox_id: SandboxPath) -> Response:
    """Get a sandbox's policy in canonical form, and whether it is in force. Ended ones too."""
    call.no_query()
    return _answer(egress.view(await egress.get(call.platform, call.caller, sandbox_id)))


@router.put(
    "/v1/sandboxes/{sandbox_id}/egress",
    **operation(
        answers={200: ("It is in force.", json_of(ChangedEgress))},
        codes=[
            "sandbox_not_found",
            "invalid_state",
            "sandbox_not_ready",
            "operation_in_progress",
            "stale_generation",
            "sandbox_ended",
            "generation_mismatch",
            "body_too_large",
            "unsupported_media_type",
            "invalid_policy",
            "node_unreachable",
            "sandbox_lost",
            "egress_not_applied",
            "disk_full",
        ],
        body=json_body(EgressPolicy),
        parameters=[IF_MATCH],
        headers=_HEADERS,
        tags=_TAGS,
    ),
)
async def put_egress(call: Write, sandbox_id: SandboxPath) -> Response:
    """Replace a sandbox's policy while it runs.

    Answers once every connection that the new policy forbids is dead; connections that it allows go on. When that
    cannot be done it is 503 `egress_not_applied`, and the sandbox reaches nothing until a change succeeds.
    """
    call.no_query()
    body, _ = await call.body(EgressPolicy)
    changed = await egress.put(call.platform, call.caller, sandbox_id, body, call.if_match())
    return _answer(egress.changed_view(changed))


@router.post(
    "/v1/sandboxes/{sandbox_id}/egress/explain",
    **operation(
        answers={200: ("What the policy says.", json_of(EgressExplanation))},
        codes=["sandbox_not_found", "body_too_large", "unsupported_media_type", "invalid_policy"],
        body=json_body(ExplainEgress),
        tags=_TAGS,
    ),
)
async def explain_egress(call: Read, sandbox_id: SandboxPath) -> Response:
    """Say whether a policy allows a destination, and which rule says so. Nothing is sent or changed."""
    call.no_query()
    body, _ = await call.body(ExplainEgress)
    return json_answer(await egress.explain(call.platform, call.caller, sandbox_id, body))
