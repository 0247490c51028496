"""What was decided about a sandbox's traffic: listed, or followed as lines or server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from yarl import URL

from api.routes.calls import Call, scoped
from api.routes.following import CURSOR, accepted, goes_on
from api.routes.operations import header, json_of, operation, query
from api.routes.relay import EVENT_STREAM, NDJSON, Relay, Render, node_lines
from api.routes.sandboxes import SandboxPath
from api.services import history, sandboxes
from api.services.decisions import DecisionCursors
from sandboxd.contract.decisions import DecisionList
from sandboxd.contract.problems import ProblemError

router = APIRouter()

_JSON: Final = "application/json"
_TEXT: Final = {"schema": {"type": "string"}}
_VERDICTS: Final = ("allow", "deny")
_KEEPALIVE: Final = b'{"kind":"keepalive"'


@router.get(
    "/v1/sandboxes/{sandbox_id}/egress/decisions",
    **operation(
        answers={
            200: (
                "Decisions, oldest first.",
                {**json_of(DecisionList), NDJSON: _TEXT, EVENT_STREAM: _TEXT},
            ),
            204: ("The stream of events was read to its end.", None),
        },
        codes=[
            "sandbox_not_found", "node_unreachable", "sandbox_lost", "too_many_streams", "invalid_cursor",
            "not_acceptable",
        ],
        parameters=[
            query("after", {"type": "string", "maxLength": 256}, "The `cursor` of the last one seen."),
            query("verdict", {"type": "string", "enum": list(_VERDICTS)}, "Only these."),
            query("since", {"type": "string", "format": "date-time"}, "Only those that happened then or later."),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Of a list."),
            header("Last-Event-ID", {"type": "string", "pattern": "^[A-Za-z0-9_=-]{1,256}$"}, "Overrides `after`."),
        ],
        tags=["egress"],
    ),
)  # fmt: skip
async def list_decisions(
    call: Annotated[Call, Depends(scoped("egress", write=False))], sandbox_id: SandboxPath
) -> Response:
    """List what was decided about a sandbox's traffic, also after its end; equal decisions within 10 s are one.

    Accepted as NDJSON or server-sent events it is followed until the sandbox has ended: each decision is told when it
    is made first; what its count becomes is in the list. Kept for 7 days, the newest 10,000 of a sandbox.
    """
    asked = call.query
    after = asked.text("after", CURSOR)
    verdict = asked.text("verdict", "allow|deny")
    since = asked.time("since")
    limit = asked.integer("limit", 100, 1, 1000)
    asked.check()
    kind = accepted(call.request, _JSON, NDJSON, EVENT_STREAM)
    after, was_read = goes_on(call.request, kind, after)
    if was_read:
        return Response(status_code=204)
    platform, caller = call.platform, call.caller
    sandbox = await history.find(platform, caller, sandbox_id)
    sealed = DecisionCursors(platform, caller, sandbox_id, verdict)
    target = {"after": str(0 if after is None else sealed.unseal(after))}
    target |= {} if verdict is None else {"verdict": verdict}
    target |= {} if since is None else {"since_ms": str(since // 1000)}
    target |= {"limit": str(limit)} if kind == _JSON else {"follow": "true"}
    renders = {_JSON: _as_list(sealed, limit), NDJSON: _as_lines(sealed), EVENT_STREAM: _as_events(sealed, after)}
    address = history.address_of(platform, sandbox)

    async def explain() -> ProblemError:
        return sandboxes.node_unreachable(sandbox)

    url = URL(f"http://node/node/v1/sandboxes/{sandbox.id}/decisions").with_query(target)
    return Relay(call, platform.nodes.session(address), explain, url, (kind, renders[kind]))


def _shown(cursor: bytes, row: bytes) -> bytes:
    return b'{"cursor":"%b",%b' % (cursor, row[1:])


def _as_list(sealed: DecisionCursors, limit: int) -> Render:
    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        count, cursor = 0, b""
        yield b'{"items":['
        async for some in node_lines(content):
            for position, row in some:
                cursor = sealed.seal(position)
                yield (b"," if count else b"") + _shown(cursor, row)
                count += 1
        yield b'],"next_cursor":%b}' % (b'"%b"' % cursor if count >= limit else b"null")

    return render


def _as_lines(sealed: DecisionCursors) -> Render:
    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for some in node_lines(content):
            yield b"".join(_shown(sealed.seal(position), row) + b"\n" for position, row in some)

    return render


def _as_events(sealed: DecisionCursors, after: str | None) -> Render:
    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        cursor = (after or "").encode()
        yield b"retry: 1000\n" + (b"id: %b\n" % cursor if cursor else b"") + b"data:\n\n"
        async for some in node_lines(content):
            events: list[bytes] = []
            for position, row in some:
                if row.startswith(_KEEPALIVE):
                    events.append(b": keepalive\n\n")
                    continue
                cursor = sealed.seal(position)
                events.append(b"event: decision\nid: %b\ndata: %b\n\n" % (cursor, _shown(cursor, row)))
            yield b"".join(events)
        yield b"event: end\nid: %b:end\ndata: {}\n\n" % cursor

    return render
