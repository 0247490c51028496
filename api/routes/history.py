"""What is kept of a sandbox, also after its end: its log, and samples of its meters."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from yarl import URL

from api.routes.calls import Call, scoped
from api.routes.following import CURSOR, accepted, goes_on
from api.routes.operations import header, json_of, operation, query
from api.routes.relay import EVENT_STREAM, NDJSON, Relay, Render, as_ndjson, as_server_events
from api.routes.sandboxes import SandboxPath
from api.services import history, sandboxes
from api.store.tables import Sandbox
from sandboxd.contract.history import SampleList
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field

router = APIRouter()

_CODES: Final = ("sandbox_not_found", "node_unreachable", "sandbox_lost", "too_many_streams")
_TEXT: Final = {"schema": {"type": "string"}}
_NOT_READY_SECONDS: Final = 30.0


@router.get(
    "/v1/sandboxes/{sandbox_id}/logs",
    **operation(
        answers={
            200: ("What its processes wrote.", {NDJSON: _TEXT, EVENT_STREAM: _TEXT}),
            204: ("The stream of events was read to its end.", None),
        },
        codes=[*_CODES, "sandbox_ended", "sandbox_not_ready", "invalid_cursor", "not_acceptable"],
        parameters=[
            query("after", {"type": "string", "maxLength": 256}, "The `cursor` of the last row seen."),
            query("process_id", {"type": "string", "pattern": "^prc[a-z2-7]{20}$"}, "Only of this process."),
            query("follow", {"type": "boolean", "default": False}, "Go on until the sandbox has ended."),
            header("Last-Event-ID", {"type": "string", "pattern": "^[A-Za-z0-9_=-]{1,256}$"}, "Overrides `after`."),
        ],
        tags=["processes"],
    ),
)
async def read_logs(
    call: Annotated[Call, Depends(scoped("processes", write=False))], sandbox_id: SandboxPath
) -> Response:
    """Read what all processes of a sandbox wrote, oldest first, as NDJSON or server-sent events.

    It is kept until 7 days after the end. A log holds the newest 64 MiB. What is missing, because it was too much or
    came too fast, is a row `lost`.
    """
    asked = call.query
    after = asked.text("after", CURSOR)
    process_id = asked.text("process_id", "prc[a-z2-7]{20}")
    follow = asked.choice("follow", "false", ("true", "false")) == "true"
    asked.check()
    kind = accepted(call.request, NDJSON, EVENT_STREAM)
    after, was_read = goes_on(call.request, kind, after)
    if was_read:
        return Response(status_code=204)
    platform, caller = call.platform, call.caller
    sandbox = await history.find(platform, caller, sandbox_id)
    history.require_logs_kept(platform, sandbox)
    sealed = history.LogCursors(platform, caller, sandbox_id, process_id)
    position = 0 if after is None else sealed.unseal(after)
    if follow:
        sandbox = await history.begun(platform, sandbox, wait_seconds=_NOT_READY_SECONDS)
    target = {"after": str(position), "follow": "true" if follow else "false"}
    target |= {} if process_id is None else {"process_id": process_id}
    render = as_server_events(sealed, after, follow=follow) if kind == EVENT_STREAM else as_ndjson(sealed)
    return _relay(call, sandbox, "logs", target, (kind, render))


@router.get(
    "/v1/sandboxes/{sandbox_id}/metrics",
    **operation(
        answers={200: ("Samples, oldest first.", json_of(SampleList))},
        codes=_CODES,
        parameters=[
            query("start", {"type": "string", "format": "date-time"}, "Default: five minutes before `end`."),
            query("end", {"type": "string", "format": "date-time"}, "Default: now, or the end of the sandbox."),
            query("step_seconds", {"type": "integer", "minimum": 5, "maximum": 3600, "default": 5}),
        ],
        tags=["sandboxes"],
    ),
)
async def read_metrics(
    call: Annotated[Call, Depends(scoped("sandboxes", write=False))], sandbox_id: SandboxPath
) -> Response:
    """Read samples of a sandbox's meters, at most one a step; kept for 7 days, also after its end.

    They are taken every 5 s, every 60 s of a sandbox that does nothing. Samples older than an hour are a minute apart,
    those older than a day five.
    """
    asked = call.query
    start, end = asked.time("start"), asked.time("end")
    step_seconds = asked.integer("step_seconds", 5, 5, 3600)
    asked.check()
    sandbox = await history.find(call.platform, call.caller, sandbox_id)
    begin_ms, end_ms = history.metrics_span(call.platform, sandbox, start, end)
    if begin_ms > end_ms:
        raise invalid_field("query:start", "range", "must not be later than end")
    target = {"start_ms": str(begin_ms), "end_ms": str(end_ms), "step_seconds": str(step_seconds)}
    return _relay(call, sandbox, "metrics", target)


def _relay(
    call: Call, sandbox: Sandbox, name: str, target: dict[str, str], render: tuple[str, Render] | None = None
) -> Response:
    platform = call.platform
    address = history.address_of(platform, sandbox)

    async def explain() -> ProblemError:
        return sandboxes.node_unreachable(sandbox)

    url = URL(f"http://node/node/v1/sandboxes/{sandbox.id}/{name}").with_query(target)
    return Relay(call, platform.nodes.session(address), explain, url, render)
