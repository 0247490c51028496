"""What the API answers, as plain data. Unknown fields and values are kept in `raw` and otherwise ignored.

Ids are strings; an unknown `state` or `reason` is text like a known one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from sandlot import document
from sandlot.errors import ProcessFailedError, ProtocolError

TERMINAL_STATES: Final = frozenset({"stopped", "failed"})
SETTLED_STATES: Final = frozenset({"running", "paused", "stopped", "failed", "lost"})
STARTING_STATES: Final = frozenset({"pending", "starting", "resuming"})


def parse_time(value: object) -> datetime | None:
    """Read an RFC 3339 time; None for anything else.

    >>> parse_time("2026-11-22T10:59:01.123Z").isoformat()
    '2026-11-22T10:59:01.123000+00:00'
    """
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None


@dataclass(frozen=True)
class Resources:
    """What a sandbox may use. What is None is the server's default."""

    cpus: float | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    max_processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that were set.

        >>> Resources(memory_mib=512).to_json()
        {'memory_mib': 512}
        """
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox as the API described it at one moment."""

    id: str
    state: str
    reason: str | None
    message: str | None
    name: str | None
    image: str | None
    metadata: dict[str, str]
    created_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    raw: document.Sandbox = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "SandboxInfo":
        """Read a Sandbox. ProtocolError if it is none."""
        raw = as_object(value)
        image = raw.get("image")
        return cls(
            id=required(raw, "id"),
            state=required(raw, "state"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            name=text(raw, "name"),
            image=text(cast("dict[str, Any]", image), "reference") if isinstance(image, dict) else None,
            metadata=raw.get("metadata") or {},
            created_at=parse_time(raw.get("created_at")),
            ended_at=parse_time(raw.get("ended_at")),
            expires_at=parse_time(raw.get("expires_at")),
            raw=cast("document.Sandbox", raw),
        )

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_starting(self) -> bool:
        return self.state in STARTING_STATES


@dataclass(frozen=True)
class StartError:
    """Why a command was never started."""

    code: str
    message: str

    @classmethod
    def parse(cls, value: object) -> "StartError | None":
        if not isinstance(value, dict):
            return None
        raw = cast("dict[str, Any]", value)
        return cls(text(raw, "code") or "io_error", text(raw, "message") or "")


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended: the last thing its output says."""

    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    start_error: StartError | None
    duration_seconds: float | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ProcessExit":
        return cls(
            exit_code=integer(raw, "exit_code"),
            signal=text(raw, "signal"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            start_error=StartError.parse(raw.get("start_error")),
            duration_seconds=number(raw, "duration_seconds"),
        )


@dataclass(frozen=True)
class Frame:
    """One item of a process's output."""

    kind: str
    """`stdout`, `stderr`, `terminal`; `lost` for output that was dropped unread; `exit`, always the last."""
    seq: int
    """The number of output bytes of the process, all channels, before this frame."""
    next: int
    """Where to resume to get what follows."""
    data: bytes = b""
    at: datetime | None = None
    lost_bytes: int = 0
    exit: ProcessExit | None = None

    @property
    def text(self) -> str:
        """The bytes as text. A character cut by a frame's border shows as U+FFFD; decode the joined bytes to avoid it.

        >>> Frame("stdout", 0, 3, b"hi!").text
        'hi!'
        """
        return self.data.decode(errors="replace")

    def after(self, position: int) -> "Frame":
        """Return the part of the frame that lies at or after `position`."""
        overlap = max(0, min(position, self.next) - self.seq)
        if overlap == 0:
            return self
        return Frame(
            self.kind,
            self.seq + overlap,
            self.next,
            self.data[overlap:],
            self.at,
            max(0, self.lost_bytes - overlap),
            self.exit,
        )


@dataclass(frozen=True)
class ProcessInfo:
    """A process as the API described it at one moment."""

    id: str
    argv: list[str]
    state: str
    tty: bool
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    start_error: StartError | None
    pid: int | None
    tag: str | None
    next_seq: int
    stdin_offset: int
    stdin_closed: bool
    started_at: datetime | None
    ended_at: datetime | None
    raw: document.Process = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "ProcessInfo":
        """Read a Process. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(
            id=required(raw, "id"),
            argv=raw.get("argv") or [],
            state=required(raw, "state"),
            tty=raw.get("tty") is not None,
            exit_code=integer(raw, "exit_code"),
            signal=text(raw, "signal"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            start_error=StartError.parse(raw.get("start_error")),
            pid=integer(raw, "pid"),
            tag=text(raw, "tag"),
            next_seq=integer(raw, "next_seq") or 0,
            stdin_offset=integer(raw, "stdin_offset") or 0,
            stdin_closed=raw.get("stdin_closed") is True,
            started_at=parse_time(raw.get("started_at")),
            ended_at=parse_time(raw.get("ended_at")),
            raw=cast("document.Process", raw),
        )

    @classmethod
    def of_result(cls, result: "RunResult") -> "ProcessInfo":
        """Return what a result says of its process; the rest is as if it had just been started."""
        state = "running" if result.running else "ended"
        described = {"id": result.process_id, "state": state, "next_seq": result.next_seq, "stdin_closed": True}
        told = ("exit_code", "signal", "reason", "message", "start_error", "started_at", "ended_at")
        return cls.parse(described | {name: result.raw.get(name) for name in told})


@dataclass(frozen=True)
class RunResult:
    """What a command did, or has done so far."""

    process_id: str
    running: bool
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    hint: str | None
    stdout: str
    stderr: str
    truncated: bool
    """Whether output was left out of `stdout` or `stderr`; `Process.output` has what the sandbox still holds."""
    lossy: bool
    """Whether bytes that are not UTF-8 are shown as U+FFFD."""
    next_seq: int
    start_error: StartError | None
    egress_denied: list[dict[str, Any]]
    """What the sandbox was refused meanwhile, the latest 20: often why a command failed."""
    duration_seconds: float | None
    raw: document.RunResult = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "RunResult":
        """Read a RunResult. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(
            process_id=required(raw, "process_id"),
            running=raw.get("running") is True,
            exit_code=integer(raw, "exit_code"),
            signal=text(raw, "signal"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            hint=text(raw, "hint"),
            stdout=text(raw, "stdout") or "",
            stderr=text(raw, "stderr") or "",
            truncated=raw.get("truncated") is True,
            lossy=raw.get("lossy") is True,
            next_seq=integer(raw, "next_seq") or 0,
            start_error=StartError.parse(raw.get("start_error")),
            egress_denied=as_objects(raw.get("egress_denied")),
            duration_seconds=number(raw, "duration_seconds"),
            raw=cast("document.RunResult", raw),
        )

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return not self.running and self.exit_code == 0

    def check(self) -> "RunResult":
        """Return self if `ok`; else raise ProcessFailedError with the exit code, the reason and the end of stderr."""
        if self.ok:
            return self
        what = "is still running" if self.running else f"ended with exit code {self.exit_code} ({self.reason})"
        tail = self.stderr[-2000:].strip()
        message = f"process {self.process_id} {what}" + (f": {tail}" if tail else "")
        raise ProcessFailedError(message, exit_code=self.exit_code, reason=self.reason, stderr=self.stderr)


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object as such. ProtocolError if it is none."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    raise ProtocolError("the answer is not a JSON object", hint="Check that the URL is that of a Sandlot API.")


def as_objects(value: object) -> list[dict[str, Any]]:
    """Return a JSON array of objects as such; an absent one is empty. ProtocolError if it is none."""
    if value is None:
        return []
    if isinstance(value, list):
        return [as_object(item) for item in cast("list[Any]", value)]
    raise ProtocolError("the answer is not a JSON array", hint="Check that the URL is that of a Sandlot API.")


def texts(value: object) -> tuple[str, ...]:
    """Return the texts of a JSON array; an absent one is empty. ProtocolError if it is none."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(str(item) for item in cast("list[object]", value))
    raise ProtocolError("the answer is not a JSON array", hint="Check that the URL is that of a Sandlot API.")


def required(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if isinstance(value, str):
        return value
    raise ProtocolError(f"the answer lacks {name!r}", hint="Check that the URL is that of a Sandlot API.")


def text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    return value if isinstance(value, str) else None


def integer(raw: Mapping[str, Any], name: str) -> int | None:
    value = raw.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(raw: Mapping[str, Any], name: str) -> float | None:
    value = raw.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
