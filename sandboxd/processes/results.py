"""The result of a process: the first and last bytes of each channel within a budget, and what was left out. Pure."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sandboxd.contract.frames import Batch, FrameKind
from sandboxd.contract.processes import Process, ResultOptions, RunResult
from sandboxd.processes.rendering import text_begin, text_end
from sandboxd.processes.trust import Event, Exit, Lost

Keep = Literal["both", "head", "tail"]

_NEAR_BYTES: Final = 1024
"""A cut moves to a line's end when one is within this, and within a quarter of what is shown."""

_TRIM_BYTES: Final = 262_144


@dataclass(frozen=True, slots=True)
class Shown:
    """What a result shows of one channel."""

    data: bytes
    omitted_bytes: int


class Channel:
    """Keeps the first and last bytes of one channel. Memory stays near the budget, however much comes."""

    def __init__(self, keep: Keep, max_bytes: int) -> None:
        self._keep = keep
        self._head_room = {"both": max_bytes // 2, "head": max_bytes, "tail": 0}[keep]
        self._tail_room = max_bytes - self._head_room
        self._head = bytearray()
        self._tail = bytearray()
        self.seen = 0
        self._first_gap: int | None = None
        self._last_gap = 0

    def add(self, data: memoryview | bytes) -> None:
        """Take the next bytes."""
        size = len(data)
        self.seen += size
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += data[:room]
            if size <= room:
                return
            data = data[room:]
        if self._tail_room:
            self._tail += data[-self._tail_room :]
            if len(self._tail) > self._tail_room + _TRIM_BYTES:
                del self._tail[: -self._tail_room]

    def gap(self) -> None:
        """Note that bytes may be missing here."""
        if self._first_gap is None:
            self._first_gap = self.seen
        self._last_gap = self.seen

    def show(self, total_bytes: int) -> Shown:
        """Return what is shown of the `total_bytes` that were produced."""
        total = max(total_bytes, self.seen) if self._first_gap is not None else self.seen
        head = bytes(self._head)
        tail = bytes(self._tail[-self._tail_room :]) if self._tail_room else b""
        if total > self.seen and self._first_gap is not None:
            tail = tail[max(0, self._last_gap - (self.seen - len(tail))) :]
            if self._tail_room and self._last_gap < len(head) == self.seen - len(tail):
                # What stands in the head but came after the gap, and runs on into the tail, belongs there.
                tail = head[self._last_gap :] + tail
            head = head[: self._first_gap]
        elif len(head) + len(tail) == self.seen:
            return Shown(head + tail, 0)
        return self._cut(head, tail, total)

    def _cut(self, head: bytes, tail: bytes, total: int) -> Shown:
        if self._head_room:
            head = head[: _line_end(head)]
        if self._tail_room:
            tail = tail[_line_begin(tail) :]
        omitted = total - len(head) - len(tail)
        if self._keep != "both" or not (head or tail):
            return Shown(head + tail, omitted)
        line = f"[… {omitted} bytes omitted …]\n".encode()
        if head and not head.endswith(b"\n"):
            line = b"\n" + line
        return Shown(head + line + tail, omitted)


def _line_end(head: bytes) -> int:
    """Return where to cut a head: behind a line's end if near, else between characters."""
    near = min(_NEAR_BYTES, len(head) // 4)
    found = head.rfind(b"\n", len(head) - near)
    return found + 1 if found >= 0 and near else text_end(head)


def _line_begin(tail: bytes) -> int:
    near = min(_NEAR_BYTES, len(tail) // 4)
    found = tail.find(b"\n", 0, near)
    return found + 1 if found >= 0 else text_begin(tail)


class Collector:
    """Takes the events of one process and makes its result."""

    def __init__(self, options: ResultOptions | None, base: Process | None = None) -> None:
        """`options` None: nothing is kept, everything was shown elsewhere. `base`: counts up to its `next_seq`."""
        self._options = options
        kept = ResultOptions(max_output_bytes=0) if options is None else options
        self.stdout = Channel(kept.keep, kept.max_output_bytes)
        self.stderr = Channel(kept.keep, kept.max_output_bytes)
        self._base_seq = 0 if base is None else base.next_seq
        self._stdout_bytes = 0 if base is None else base.stdout_bytes
        self._stderr_bytes = 0 if base is None else base.stderr_bytes
        self.next_seq = 0
        self.lost = False
        self.exit: Exit | None = None

    def add(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Batch():
                for head in event.heads:
                    self.add_output(head.kind, head.seq, event.payload(head))
            case Lost():
                self.lost = True
                self._mark_gap()
                self._count(FrameKind.STDOUT, event.seq, event.lost_bytes)
                self.next_seq = event.seq + event.lost_bytes
            case Exit():
                self.exit = event
                self.next_seq = event.seq
            case _:
                pass

    def add_output(self, kind: int, seq: int, data: memoryview | bytes) -> None:
        """Take output at its position; what lies between the last one and this is missing."""
        if seq > self.next_seq:
            self._mark_gap()
        channel = self.stderr if kind == FrameKind.STDERR else self.stdout
        channel.add(data)
        self._count(kind, seq, len(data))
        self.next_seq = seq + len(data)

    def _mark_gap(self) -> None:
        self.stdout.gap()
        self.stderr.gap()

    def _count(self, kind: int, seq: int, length: int) -> None:
        new = min(length, seq + length - self._base_seq)
        if new <= 0:
            return
        if kind == FrameKind.STDERR:
            self._stderr_bytes += new
        else:
            self._stdout_bytes += new

    def result(self, process: Process, now: datetime, *, running: bool = False) -> RunResult:
        """Return the result. `process`: the latest record; once it has ended, its counts hold.

        `running`: whatever the record says, the reader stopped before the end.
        """
        stdout_bytes, stderr_bytes = self._stdout_bytes, self._stderr_bytes
        if self.lost and process.state == "ended":
            stdout_bytes, stderr_bytes = process.stdout_bytes, process.stderr_bytes
        stdout_bytes, stderr_bytes = max(stdout_bytes, self.stdout.seen), max(stderr_bytes, self.stderr.seen)
        shown_out, shown_err = self.stdout.show(stdout_bytes), self.stderr.show(stderr_bytes)
        if self._options is None:
            shown_out = Shown(b"", stdout_bytes - self.stdout.seen)
            shown_err = Shown(b"", stderr_bytes - self.stderr.seen)
        encoding = "text" if self._options is None else self._options.output_encoding
        stdout, lossy_out = render_bytes(shown_out.data, encoding)
        stderr, lossy_err = render_bytes(shown_err.data, encoding)
        truncated = shown_out.omitted_bytes + shown_err.omitted_bytes > 0
        end = _End.of(process, self.exit, now, running=running)
        return RunResult(
            process_id=process.id,
            running=end.running,
            hint=_hint(process, end, truncated=truncated),
            stdout=stdout,
            stderr=stderr,
            stdout_bytes=stdout_bytes,
            stderr_bytes=stderr_bytes,
            truncated=truncated,
            stdout_omitted_bytes=shown_out.omitted_bytes,
            stderr_omitted_bytes=shown_err.omitted_bytes,
            lossy=lossy_out or lossy_err,
            next_seq=self.next_seq,
            started_at=process.started_at,
            ended_at=end.at,
            duration_seconds=end.duration_seconds,
            **end.details,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """How a process stands, from its exit frame or its record."""

    running: bool
    at: datetime | None
    duration_seconds: float
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, process: Process, seen: Exit | None, now: datetime, *, running: bool) -> "_End":
        if seen is not None:
            details = seen.details
            fallback = process.duration_seconds if details.duration_seconds is None else details.duration_seconds
            at = _moment(seen.time_us) or process.started_at + timedelta(seconds=min(fallback, 1e9))
            return cls(running=False, at=at, duration_seconds=fallback, details=_details(details))
        if process.state == "ended" and not running:
            return cls(
                running=False,
                at=process.ended_at,
                duration_seconds=process.duration_seconds,
                details=_details(process),
            )
        return cls(running=True, at=None, duration_seconds=max(0.0, (now - process.started_at).total_seconds()))


def _moment(time_us: int) -> datetime | None:
    return None if time_us == 0 else datetime.fromtimestamp(time_us / 1_000_000, UTC)


def _details(source: Any) -> dict[str, Any]:
    names = ("exit_code", "signal", "reason", "message", "start_error")
    return {name: getattr(source, name) for name in names}


def _hint(process: Process, end: _End, *, truncated: bool) -> str | None:
    path = f"/v1/sandboxes/{process.sandbox_id}/processes/{process.id}"
    if end.running:
        return f"GET {path}/result?wait_seconds=60"
    if end.details.get("reason") == "timed_out":
        return "Raise timeout_seconds, or start it with POST …/processes and follow its output."
    if truncated:
        return f"GET {path}/output has what is still held; raise max_output_bytes to see more here."
    return None


def render_bytes(data: bytes, encoding: Literal["text", "base64"]) -> tuple[str, bool]:
    """Return output as a JSON string, and whether bytes of it could not be shown."""
    if encoding == "base64":
        return base64.b64encode(data).decode(), False
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode(errors="replace"), True
