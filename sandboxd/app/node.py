"""The calls of the api on a node: ensure, get, patch, stop, report."""

from typing import Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from sandboxd.app.answers import json_answer
from sandboxd.app.query import Query
from sandboxd.contract.ids import is_id
from sandboxd.contract.messages import EnsureSandbox, ExplainOnNode, PatchSandbox, PutEgress
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.validation import invalid
from sandboxd.errors import not_found
from sandboxd.manager.manager import Manager, StopRequest
from sandboxd.manager.reports import Reporter

M = TypeVar("M", bound=BaseModel)

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""An environment, and what a policy puts into requests."""
STOP_REASONS: Final = (
    SandboxReason.REQUESTED,
    SandboxReason.OPERATOR_STOPPED,
    SandboxReason.NODE_DRAINED,
    SandboxReason.EVICTED,
    SandboxReason.QUOTA_EXCEEDED,
    SandboxReason.PROJECT_SUSPENDED,
    SandboxReason.PROJECT_DELETED,
)
"""Why the api may end a sandbox; the other reasons are found out by the node."""
_MOST: Final = 2**53


def routes(manager: Manager, reporter: Reporter) -> list[web.AbstractRouteDef]:
    """Return the routes under `/node/v1`."""
    calls = _NodeCalls(manager, reporter)
    return [
        web.put("/node/v1/sandboxes/{sandbox_id}", calls.ensure),
        web.get("/node/v1/sandboxes/{sandbox_id}", calls.get, allow_head=False),
        web.patch("/node/v1/sandboxes/{sandbox_id}", calls.patch),
        web.delete("/node/v1/sandboxes/{sandbox_id}", calls.stop),
        web.put("/node/v1/sandboxes/{sandbox_id}/egress", calls.put_egress),
        web.post("/node/v1/sandboxes/{sandbox_id}/egress/explain", calls.explain_egress),
        web.get("/node/v1/report", calls.report, allow_head=False),
    ]


class _NodeCalls:
    def __init__(self, manager: Manager, reporter: Reporter) -> None:
        self._manager = manager
        self._reporter = reporter

    async def ensure(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        Query(request).check()
        return json_answer(await self._manager.ensure(sandbox_id, await _body(request, EnsureSandbox)))

    async def get(self, request: web.Request) -> web.Response:
        Query(request).check()
        return json_answer(self._manager.get(_sandbox_id(request)))

    async def patch(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        Query(request).check()
        return json_answer(await self._manager.patch(sandbox_id, await _body(request, PatchSandbox)))

    async def put_egress(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        Query(request).check()
        return json_answer(await self._manager.change_egress(sandbox_id, await _body(request, PutEgress)))

    async def explain_egress(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        Query(request).check()
        return json_answer(self._manager.explain_egress(sandbox_id, await _body(request, ExplainOnNode)))

    async def stop(self, request: web.Request) -> web.Response:
        query = Query(request)
        grace_seconds = query.number("grace_seconds", 5, 0, 60)
        wait_seconds = query.number("wait_seconds", 30, 0, 120)
        reason = query.choice("reason", [reason.value for reason in STOP_REASONS])
        generation = query.optional_integer("generation", 1, _MOST)
        epoch = query.optional_integer("epoch", 0, _MOST)
        query.check()
        stop = StopRequest(
            generation=generation,
            epoch=self._manager.epoch if epoch is None else epoch,
            grace_seconds=grace_seconds,
            wait_seconds=wait_seconds,
            reason=SandboxReason(reason or SandboxReason.REQUESTED),
        )
        return json_answer(await self._manager.stop(_sandbox_id(request), stop))

    async def report(self, request: web.Request) -> web.Response:
        Query(request).check()
        return json_answer(await self._reporter.full())


def _sandbox_id(request: web.Request) -> str:
    sandbox_id = request.match_info["sandbox_id"]
    if not is_id("sbx", sandbox_id):
        raise not_found(sandbox_id[:64])
    return sandbox_id


async def _body(request: web.Request, model: type[M]) -> M:
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    body = await request.read()
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def _too_large() -> ProblemError:
    return ProblemError(
        "body_too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.", limit_bytes=MAX_BODY_BYTES
    )
