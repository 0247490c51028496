"""Processes as clients see them: the same models cross the public API and the node seam."""

import re
import signal
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from sandboxd.contract.ids import ProcessId, SandboxId
from sandboxd.contract.reasons import ProcessReason
from sandboxd.contract.states import ProcessState

_REAL_TIME: Final = re.compile(r"SIGRTM(IN\+|AX-)([0-9]|[12][0-9]|30)")
MAX_ARGUMENT_BYTES: Final = 131_071
MAX_ARGV_BYTES: Final = 2 * 1024 * 1024
DEFAULT_RING_BYTES: Final = 4 * 1024 * 1024
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024
MAX_TIMEOUT_SECONDS: Final = 1_000_000_000
"""Some thirty years: what every clock on the way can count."""


class Strict(BaseModel):
    """Input: an unknown field is an error, nothing is coerced or clamped."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Open(BaseModel):
    """Output: may gain fields."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def render_time(moment: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


Time = Annotated[
    datetime,
    PlainSerializer(render_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A moment of an answer."""


def _no_nul(text: str) -> str:
    if "\0" in text:
        msg = "must not contain NUL"
        raise ValueError(msg)
    return text


def _check_env(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name:
            msg = f"not a variable name: {name!r}"
            raise ValueError(msg)
        _no_nul(name)
        _no_nul(value)
    return env


Argument = Annotated[str, AfterValidator(_no_nul)]
"""What a kernel takes as an argument; its length has a code of its own."""
UserName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00\s/]+$")]
"""A name, or `uid[:gid]`."""
PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_no_nul)]
Tag = Annotated[str, StringConstraints(max_length=128)]


def _known_signal(name: str) -> str:
    if name not in signal.Signals.__members__ and _REAL_TIME.fullmatch(name) is None:
        msg = "is not the name of a signal"
        raise ValueError(msg)
    return name


class TtySize(Strict):
    """A terminal and its size."""

    rows: int = Field(default=24, ge=1, le=1000)
    cols: int = Field(default=80, ge=1, le=1000)


class OutputPolicy(Strict):
    """What happens to output nobody has read yet."""

    mode: Literal["ring", "block"] = "ring"
    ring_bytes: int = Field(default=DEFAULT_RING_BYTES, ge=65_536, le=67_108_864)
    limit_bytes: int | None = Field(default=None, ge=1)


class CommandSpec(Strict):
    """What ProcessSpec and RunSpec share."""

    id: ProcessId | None = None
    argv: list[Argument] | None = Field(default=None, min_length=1)
    shell: Argument | None = None
    env: dict[str, str] = Field(default_factory=dict)
    with_secrets: bool = True
    cwd: PathText | None = None
    user: UserName | None = None
    merge_stderr: bool = False
    kill_grace_seconds: float = Field(default=2, ge=0, le=60)
    tag: Tag | None = None

    @model_validator(mode="after")
    def _one_command(self) -> "CommandSpec":
        if (self.argv is None) == (self.shell is None):
            msg = "give exactly one of argv and shell"
            raise ValueError(msg)
        return self

    @field_validator("argv")
    @classmethod
    def _argv(cls, argv: list[str] | None) -> list[str] | None:
        if argv and not argv[0]:
            msg = "the command is empty"
            raise ValueError(msg)
        return argv

    @field_validator("env")
    @classmethod
    def _env(cls, env: dict[str, str]) -> dict[str, str]:
        return _check_env(env)


class ProcessSpec(CommandSpec):
    """Body of `POST …/processes`."""

    tty: TtySize | None = None
    stdin: bool = False
    timeout_seconds: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_SECONDS)
    output: OutputPolicy = OutputPolicy()


class ResultOptions(Strict):
    """How much of the output a result shows, and how."""

    max_output_bytes: int = Field(default=1_048_576, ge=0, le=MAX_RESULT_BYTES)
    keep: Literal["both", "head", "tail"] = "both"
    output_encoding: Literal["text", "base64"] = "text"


class RunSpec(CommandSpec):
    """Body of `POST …/run`."""

    input: str | None = None
    input_base64: str | None = None
    timeout_seconds: float | None = Field(default=300, gt=0, le=MAX_TIMEOUT_SECONDS)
    wait_seconds: float | None = Field(default=None, ge=0, le=3600)
    max_output_bytes: int = Field(default=1_048_576, ge=0, le=MAX_RESULT_BYTES)
    keep: Literal["both", "head", "tail"] = "both"
    output_encoding: Literal["text", "base64"] = "text"

    @model_validator(mode="after")
    def _one_input(self) -> "RunSpec":
        if self.input is not None and self.input_base64 is not None:
            msg = "give at most one of input and input_base64"
            raise ValueError(msg)
        return self


class SignalSpec(Strict):
    """Body of `POST …/signal`."""

    signal: Annotated[str, StringConstraints(pattern=r"^SIG[A-Z0-9+-]{2,12}$"), AfterValidator(_known_signal)]
    scope: Literal["tree", "process"] = "tree"


class ResizeSpec(Strict):
    """Body of `POST …/resize`."""

    rows: int = Field(ge=1, le=1000)
    cols: int = Field(ge=1, le=1000)


class StartError(Open):
    """Why a process was never started."""

    code: Literal["command_not_found", "permission_denied", "exec_format", "io_error"]
    message: str


class Process(Open):
    """One command run in a sandbox."""

    id: ProcessId
    sandbox_id: SandboxId
    argv: list[str]
    cwd: str
    user: str
    uid: int
    gid: int
    tty: TtySize | None = None
    tag: str | None = None
    pid: int
    state: ProcessState
    exit_code: int | None = None
    signal: str | None = None
    reason: ProcessReason | None = None
    message: str | None = None
    start_error: StartError | None = None
    timeout_seconds: float | None = None
    started_at: Time
    ended_at: Time | None = None
    duration_seconds: float
    cpu_used_seconds: float
    peak_memory_bytes: int
    first_seq: int
    next_seq: int
    stdout_bytes: int
    stderr_bytes: int
    stdin_offset: int
    stdin_closed: bool


class ProcessList(Open):
    """Answer of the process list."""

    items: list[Process]
    next_cursor: str | None = None


class RunResult(Open):
    """What a run did, or has done so far."""

    process_id: ProcessId
    running: bool
    exit_code: int | None = None
    signal: str | None = None
    reason: ProcessReason | None = None
    message: str | None = None
    hint: str | None = None
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    stdout_omitted_bytes: int
    stderr_omitted_bytes: int
    lossy: bool
    next_seq: int
    start_error: StartError | None = None
    egress_denied: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    started_at: Time
    ended_at: Time | None = None
    duration_seconds: float


class StdinResult(Open):
    """How far standard input was written."""

    offset: int
    closed: bool
