"""What the calls of processes take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict

from sandlot.document.shared import StartError


class OutputPolicy(TypedDict, total=False):
    mode: str
    ring_bytes: int
    limit_bytes: int | None


class Port(TypedDict, total=False):
    port: int
    protocol: str
    address: str
    pid: int | None


class PortList(TypedDict, total=False):
    items: list[Port]


class TtySize(TypedDict, total=False):
    rows: int
    cols: int


class Process(TypedDict, total=False):
    id: str
    sandbox_id: str
    argv: list[str]
    cwd: str
    user: str
    uid: int
    gid: int
    tty: TtySize | None
    tag: str | None
    pid: int
    state: str
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    start_error: StartError | None
    timeout_seconds: float | None
    started_at: str
    ended_at: str | None
    duration_seconds: float
    cpu_used_seconds: float
    peak_memory_bytes: int
    first_seq: int
    next_seq: int
    stdout_bytes: int
    stderr_bytes: int
    stdin_offset: int
    stdin_closed: bool


class ProcessList(TypedDict, total=False):
    items: list[Process]
    next_cursor: str | None


class ProcessSpec(TypedDict, total=False):
    id: str | None
    argv: list[str] | None
    shell: str | None
    env: dict[str, str]
    with_secrets: bool
    cwd: str | None
    user: str | None
    merge_stderr: bool
    kill_grace_seconds: float
    tag: str | None
    tty: TtySize | None
    stdin: bool
    timeout_seconds: float | None
    output: OutputPolicy


class ResizeSpec(TypedDict, total=False):
    rows: int
    cols: int


class RunResult(TypedDict, total=False):
    process_id: str
    running: bool
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    hint: str | None
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    stdout_omitted_bytes: int
    stderr_omitted_bytes: int
    lossy: bool
    next_seq: int
    start_error: StartError | None
    egress_denied: list[dict[str, Any]]
    started_at: str
    ended_at: str | None
    duration_seconds: float


class SignalSpec(TypedDict, total=False):
    signal: str
    scope: str


class StdinResult(TypedDict, total=False):
    offset: int
    closed: bool
