"""Processes: served by the node, passed through unchanged."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response

from api.routes.calls import Call, scoped
from api.routes.data_plane import SANDBOX_CODES, pass_on
from api.routes.operations import IDEMPOTENCY, WAIT, Schema, bytes_body, header, json_body, json_of, operation, query
from api.routes.sandboxes import SandboxPath
from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.processes import (
    MAX_RESULT_BYTES,
    Process,
    ProcessList,
    ProcessSpec,
    ResizeSpec,
    RunResult,
    RunSpec,
    SignalSpec,
    StdinResult,
)

router = APIRouter()

ProcessPath = Annotated[str, Path(json_schema_extra={"pattern": "^prc[a-z2-7]{20}$"})]
Read = Annotated[Call, Depends(scoped("processes", write=False))]
Write = Annotated[Call, Depends(scoped("processes", write=True))]

_START_CODES: Final = (
    *SANDBOX_CODES,
    "body_too_large",
    "unsupported_media_type",
    "argument_too_long",
    "user_not_found",
    "cwd_not_found",
    "no_shell",
    "idempotency_mismatch",
    "idempotency_in_flight",
    "too_many_streams",
    "disk_full",
)
_PROCESS_CODES: Final = (*SANDBOX_CODES, "process_not_found", "too_many_streams")
_TEXT: Final[Schema] = {"type": "string"}
_EVENTS: Final[Schema] = {"application/x-ndjson": {"schema": _TEXT}}
_OUTPUT: Final[Schema] = _EVENTS | {
    "text/event-stream": {"schema": _TEXT},
    FRAMES: {"schema": {"type": "string", "format": "binary"}},
}
_RESULT_QUERY: Final = (
    query("wait_seconds", {"type": "number", "minimum": 0, "maximum": 3600, "default": 0}),
    query("max_output_bytes", {"type": "integer", "minimum": 0, "maximum": MAX_RESULT_BYTES, "default": 1_048_576}),
    query("keep", {"type": "string", "enum": ["both", "head", "tail"], "default": "both"}),
    query("output_encoding", {"type": "string", "enum": ["text", "base64"], "default": "text"}),
)


def _described(**description: Any) -> dict[str, Any]:
    return operation(**description, tags=["processes"])


@router.post(
    "/v1/sandboxes/{sandbox_id}/run",
    **_described(
        answers={200: ("What it did.", json_of(RunResult) | _EVENTS)},
        codes=_START_CODES,
        body=json_body(RunSpec),
        parameters=[IDEMPOTENCY],
    ),
)
async def run(call: Write, sandbox_id: SandboxPath) -> Response:
    """Run a command and answer when it has ended, or `wait_seconds` are over."""
    return await pass_on(call, sandbox_id)


@router.post(
    "/v1/sandboxes/{sandbox_id}/processes",
    **_described(
        answers={201: ("It was started.", json_of(Process)), 200: ("It was there already.", json_of(Process))},
        codes=_START_CODES,
        body=json_body(ProcessSpec),
        parameters=[IDEMPOTENCY],
    ),
)
async def start_process(call: Write, sandbox_id: SandboxPath) -> Response:
    """Start a process, or join the one of the same `id`."""
    return await pass_on(call, sandbox_id)


@router.get(
    "/v1/sandboxes/{sandbox_id}/processes",
    **_described(
        answers={200: ("The processes.", json_of(ProcessList))},
        codes=[*SANDBOX_CODES, "invalid_cursor"],
        parameters=[
            query("state", {"type": "string", "enum": ["running", "ended"]}),
            query("tag", {"type": "string", "maxLength": 128, "pattern": "^[ -~]*$"}),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            query("cursor", {"type": "string", "maxLength": 512}),
            query("order", {"type": "string", "enum": ["desc", "asc"], "default": "desc"}),
        ],
    ),
)
async def list_processes(call: Read, sandbox_id: SandboxPath) -> Response:
    """List processes, ended ones too."""
    return await pass_on(call, sandbox_id)


@router.get(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}",
    **_described(
        answers={200: ("The process.", json_of(Process))},
        codes=_PROCESS_CODES,
        parameters=[
            WAIT,
            query("wait_for", {"type": "string", "pattern": "^(running|ended)(,(running|ended))?$"}, "States."),
        ],
    ),
)
async def get_process(call: Read, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Get a process."""
    return await pass_on(call, sandbox_id, process_id)


@router.get(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/result",
    **_described(
        answers={200: ("What it did, or has done so far.", json_of(RunResult))},
        codes=_PROCESS_CODES,
        parameters=_RESULT_QUERY,
    ),
)
async def get_result(call: Read, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Get the result of a process, of a running one too."""
    return await pass_on(call, sandbox_id, process_id)


@router.get(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/output",
    **_described(
        answers={200: ("Its output.", _OUTPUT), 204: ("The stream of events was read to its end.", None)},
        codes=[*_PROCESS_CODES, "seq_out_of_range"],
        parameters=[
            query("after", {"type": "integer", "minimum": 0, "default": 0}, "Go on from this position."),
            query("tail_bytes", {"type": "integer", "minimum": 0}, "Not together with `after`."),
            query("follow", {"type": "boolean", "default": False}),
            query("keepalive_seconds", {"type": "integer", "minimum": 5, "maximum": 60, "default": 15}),
            header("Last-Event-ID", {"type": "string", "pattern": "^[0-9]{1,18}(:end)?$"}, "Overrides `after`."),
        ],
    ),
)
async def read_output(call: Read, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Read output from any position, as NDJSON, server-sent events or binary frames by `Accept`."""
    return await pass_on(call, sandbox_id, process_id)


@router.post(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/stdin",
    **_described(
        answers={200: ("How far it was written.", json_of(StdinResult))},
        codes=[*_PROCESS_CODES, "stdin_closed", "stdin_gap", "process_ended"],
        body=bytes_body(),
        parameters=[
            query("offset", {"type": "integer", "minimum": 0}, "Null: append, not safe to retry."),
            query("close", {"type": "boolean", "default": False}),
        ],
    ),
)
async def write_stdin(call: Write, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Write to standard input; bytes below `offset` that are written already are skipped."""
    return await pass_on(call, sandbox_id, process_id)


@router.post(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/signal",
    **_described(
        answers={204: ("It was sent.", None)},
        codes=[*_PROCESS_CODES, "process_ended", "body_too_large", "unsupported_media_type"],
        body=json_body(SignalSpec),
        parameters=[IDEMPOTENCY],
    ),
)
async def signal_process(call: Write, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Send a signal to a process or its whole tree."""
    return await pass_on(call, sandbox_id, process_id)


@router.post(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/resize",
    **_described(
        answers={204: ("It was resized.", None)},
        codes=[*_PROCESS_CODES, "process_ended", "body_too_large", "unsupported_media_type"],
        body=json_body(ResizeSpec),
    ),
)
async def resize_terminal(call: Write, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Resize a process's terminal."""
    return await pass_on(call, sandbox_id, process_id)
