"""`POST /v1/run`: one command in a sandbox of its own."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.routes.answers import REPLAYED, problem_answer
from api.routes.calls import LARGE_BODY_BYTES, Call, scoped
from api.routes.operations import IDEMPOTENCY, json_body, json_of, operation
from api.routes.sandboxes import CREATE_CODES
from api.services import runs
from api.services.requests import RunOnce
from api.store.idempotency import Key
from sandboxd.contract.ids import SandboxId
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import RunResult
from sandboxd.contract.reasons import SandboxReason

router = APIRouter()

_SPACE_SECONDS: Final = 15.0
_CODES: Final = frozenset(CREATE_CODES) - {"name_taken"} | {
    "argument_too_long",
    "no_shell",
    "invalid_path",
    "permission_denied",
    "file_not_found",
    "is_directory",
    "not_a_directory",
    "disk_full",
    "node_unreachable",
    "sandbox_lost",
    "invalid_state",
    "sandbox_not_ready",
}


class RunOnceResult(RunResult):
    """What a run did, and how its sandbox ended."""

    sandbox_id: SandboxId
    sandbox_reason: SandboxReason | None


@router.post(
    "/v1/run",
    **operation(
        answers={200: ("What it did.", json_of(RunOnceResult))},
        codes=sorted(_CODES),
        body=json_body(RunOnce),
        parameters=[IDEMPOTENCY],
        tags=["sandboxes"],
    ),
)
async def run_once(call: Annotated[Call, Depends(scoped("sandboxes", write=True))]) -> Response:
    """Create a sandbox, put files, run one command, delete the sandbox whatever happened.

    A caller that disconnects ends it, unless an `Idempotency-Key` says that it will ask again.
    """
    call.caller.require("processes", write=True)
    call.no_query()
    body, raw = await call.body(RunOnce, limit=LARGE_BODY_BYTES)
    return _Run(call, body, call.idempotency_key("run_once", raw))


class _Run(Response):
    """Answers when the run has ended; one space every 15 s until then, so that nothing on the way cuts the silence."""

    def __init__(self, call: Call, body: RunOnce, key: Key | None) -> None:
        super().__init__()
        self._call = call
        self._body = body
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._call.platform.background.start(self._run())
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._cancel_when_gone(receive, work))
            try:
                await self._answer(work, scope, receive, send)
            finally:
                watch.cancel()

    async def _run(self) -> tuple[bytes, bool] | ProblemError:
        try:
            return await runs.run_once(self._call.platform, self._call.caller, self._body, self._key)
        except ProblemError as error:
            return error

    async def _cancel_when_gone(self, receive: Receive, work: asyncio.Task[object]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._key is None:
            work.cancel()

    async def _answer(
        self, work: asyncio.Task[tuple[bytes, bool] | ProblemError | None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        begun = False
        while not (await asyncio.wait({work}, timeout=_SPACE_SECONDS))[0]:
            if not begun:
                begun = True
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
        result = None if work.cancelled() else work.result()
        if isinstance(result, tuple):
            rendered, replayed = result
            if not begun:
                replay_header = {REPLAYED: "true"} if replayed else None
                answer = Response(rendered, headers=replay_header, media_type="application/json")
                await answer(scope, receive, send)
            else:
                await send({"type": "http.response.body", "body": rendered})
        elif not begun:
            problem = result or ProblemError("internal", "The run failed in an unforeseen way.")
            await problem_answer(Request(scope), problem)(scope, receive, send)
        # An error after spaces were sent leaves the answer unfinished: a broken connection, not a false result.
