"""What a guest says about processes, checked: types, ranges, positions and order. A breach is a GuestError.

What is well formed may still be untrue: exit codes and times are the sandbox's own word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from sandboxd.contract.frames import HEADER_BYTES, MAX_PAYLOAD, OUTPUT_KINDS, Batch, Frame, FrameKind, Head
from sandboxd.contract.processes import Process, StartError, StdinResult, Time
from sandboxd.contract.reasons import ProcessReason
from sandboxd.guest_client.base import GuestError
from sandboxd.guest_client.wire import parse_object

MAX_SEQ: Final = 2**62
MAX_TIME_US: Final = 253_402_300_799_000_000
"""The last microseconds that RFC 3339 can write."""

HEAD_BYTES: Final = 65_536
_LOST_BYTES: Final = 1024
"""What is read of a frame that may come again and again is short."""

_Count = Annotated[int, Field(ge=0, le=MAX_SEQ)]
_Id = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Seconds = Annotated[float, Field(ge=0, le=1e12)]
MAX_MESSAGE: Final = 4096
_Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE)]
_Signal = Annotated[str, StringConstraints(pattern=r"^SIG[A-Z0-9+]{2,12}$")]
_ExitCode = Annotated[int, Field(ge=0, le=255)]


def _sane(moment: datetime) -> datetime:
    if moment.tzinfo is None or not 1970 <= moment.year <= 9998:
        msg = "not a moment of this age"
        raise ValueError(msg)
    return moment


def _short(error: StartError) -> StartError:
    if len(error.message) > MAX_MESSAGE:
        msg = "message too long"
        raise ValueError(msg)
    return error


_Moment = Annotated[Time, AfterValidator(_sane)]
_StartError = Annotated[StartError, AfterValidator(_short)]


class ExitDetails(BaseModel):
    """How a process ended: the payload of an exit frame."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    exit_code: _ExitCode
    signal: _Signal | None = None
    reason: ProcessReason
    message: _Message | None = None
    start_error: _StartError | None = None
    duration_seconds: _Seconds | None = None

    @model_validator(mode="after")
    def _zero_means_exited(self) -> "ExitDetails":
        if self.exit_code == 0 and self.reason is not ProcessReason.EXITED:
            msg = "0 only for exited"
            raise ValueError(msg)
        return self


class _GuestProcess(Process):
    argv: Annotated[list[str], Field(max_length=65_536)]
    cwd: Annotated[str, StringConstraints(max_length=4096)]
    user: Annotated[str, StringConstraints(max_length=256)]
    uid: _Id
    gid: _Id
    tag: Annotated[str, StringConstraints(max_length=128)] | None = None
    pid: _Id
    exit_code: _ExitCode | None = None
    signal: _Signal | None = None
    message: _Message | None = None
    start_error: _StartError | None = None
    timeout_seconds: _Seconds | None = None
    started_at: _Moment
    ended_at: _Moment | None = None
    duration_seconds: _Seconds
    cpu_used_seconds: _Seconds
    peak_memory_bytes: _Count
    first_seq: _Count
    next_seq: _Count
    stdout_bytes: _Count
    stderr_bytes: _Count
    stdin_offset: _Count

    @model_validator(mode="after")
    def _ended_or_not(self) -> "_GuestProcess":
        ended = self.state == "ended"
        if any((value is not None) != ended for value in (self.exit_code, self.reason, self.ended_at)):
            msg = "exit_code, reason and ended_at belong to the end"
            raise ValueError(msg)
        if self.exit_code == 0 and self.reason is not ProcessReason.EXITED:
            msg = "0 only for exited"
            raise ValueError(msg)
        return self


class _StdinResult(StdinResult):
    offset: _Count


def check_process(data: dict[str, Any], sandbox_id: str, process_id: str | None = None) -> Process:
    """Return the process a guest described; with `process_id`, only if it is that one."""
    try:
        process = _GuestProcess.model_validate(data | {"sandbox_id": sandbox_id})
    except ValidationError as error:
        raise GuestError(f"not a process: {_where(error)}") from error
    if process_id not in (None, process.id):
        raise GuestError("the guest answered with another process")
    return process


def check_stdin(data: dict[str, Any]) -> StdinResult:
    """Return how far a guest says standard input was written."""
    try:
        return _StdinResult.model_validate(data, strict=True)
    except ValidationError as error:
        raise GuestError(f"not an answer to standard input: {_where(error)}") from error


def _where(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:64]} {first['type']}"


@dataclass(frozen=True, slots=True)
class Lost:
    """Bytes that nobody can have any more. 0: how many is not known, because the sandbox died."""

    seq: int
    lost_bytes: int


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Nothing new; the stream is alive up to here."""

    seq: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of the process, once, at the end of the stream."""

    seq: int
    time_us: int
    details: ExitDetails


Event = Batch | Lost | Keepalive | Exit
"""A Batch holds output frames only."""


class StreamCheck:
    """Follows one stream of output through any number of connections, and refuses what cannot be true."""

    def __init__(self, position: int | None, *, max_bytes: int | None = None) -> None:
        """`position` None: the first frame says where the stream begins. More output than `max_bytes` is a lie."""
        self.position = position
        self.over = False
        self._left = max_bytes

    def admit(self, batch: Batch) -> Iterator[Event]:
        """Yield what a batch says, output frames together as they came."""
        begin = 0
        for index, head in enumerate(batch.heads):
            self._admit_head(head)
            if head.kind in OUTPUT_KINDS:
                continue
            yield from between(batch, begin, index)
            begin = index + 1
            event = self._special(head, batch)
            if self.over and begin < len(batch.heads):
                raise GuestError("the stream goes on behind its exit")
            yield event
        yield from between(batch, begin, len(batch.heads))

    def _admit_head(self, head: Head) -> None:
        if self.over:
            raise GuestError("the stream goes on behind its exit")
        if self.position is None:
            self.position = head.seq
        if head.skip or not 0 <= head.time_us <= MAX_TIME_US:
            raise GuestError("a frame has flags or an impossible time")
        if head.seq != self.position:
            raise GuestError(f"a frame at {head.seq} where {self.position} was next")
        if head.kind in OUTPUT_KINDS:
            if not 0 < head.length <= MAX_PAYLOAD:
                raise GuestError(f"an output frame of {head.length} bytes")
            self._advance(head.length)
            if self._left is not None:
                self._left -= head.length
                if self._left < 0:
                    raise GuestError("more output than a ring can hold")

    def _advance(self, length: int) -> None:
        self.position = (self.position or 0) + length
        if self.position > MAX_SEQ:
            raise GuestError("a position beyond every process")

    def _special(self, head: Head, batch: Batch) -> Event:
        match head.kind:
            case FrameKind.KEEPALIVE if head.length == 0:
                return Keepalive(head.seq)
            case FrameKind.LOST if head.length <= _LOST_BYTES:
                lost = _payload(batch, head).get("lost_bytes")
                if type(lost) is not int or not 0 < lost <= MAX_SEQ:
                    raise GuestError("a lost frame without lost_bytes")
                self._advance(lost)
                return Lost(head.seq, lost)
            case FrameKind.EXIT:
                self.over = True
                try:
                    details = ExitDetails.model_validate(_payload(batch, head))
                except ValidationError as error:
                    raise GuestError(f"not an exit: {_where(error)}") from error
                return Exit(head.seq, head.time_us, details)
            case _:
                raise GuestError(f"a frame of kind {head.kind} in a stream of output")


def between(batch: Batch, begin: int, end: int) -> Iterator[Batch]:
    """Yield the frames from `begin` to before `end` as a batch of their own, not copied."""
    heads = batch.heads[begin:end]
    if not heads:
        return
    shift = heads[0].start - HEADER_BYTES
    if shift:
        heads = [head._replace(start=head.start - shift, end=head.end - shift) for head in heads]
    yield Batch(batch.data[shift : shift + heads[-1].end], heads)


def _payload(batch: Batch, head: Head) -> dict[str, Any]:
    return parse_object(bytes(batch.payload(head)))


def check_heads(frames: list[Frame]) -> list[Frame]:
    """Return the first bytes of each channel, in order and within their size."""
    sizes: dict[int, int] = {}
    position = 0
    for frame in frames:
        if frame.skip or frame.kind not in OUTPUT_KINDS or not 0 <= frame.time_us <= MAX_TIME_US:
            raise GuestError("the head of the output holds something else")
        if not position <= frame.seq <= MAX_SEQ:
            raise GuestError("the head of the output is out of order")
        position = frame.next_seq
        sizes[frame.kind] = sizes.get(frame.kind, 0) + len(frame.payload)
        if sizes[frame.kind] > HEAD_BYTES:
            raise GuestError("the head of the output is too large")
    return frames
