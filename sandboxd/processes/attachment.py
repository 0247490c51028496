"""One attachment to a process: checked frames out, through the sandbox's end; frames in, as far as they are input."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from sandboxd.contract.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    MAX_STDIN_PAYLOAD,
    Batch,
    Frame,
    FrameKind,
    Head,
    encode,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Process, ResizeSpec, SignalSpec
from sandboxd.contract.reasons import ProcessReason
from sandboxd.contract.validation import invalid
from sandboxd.guest_client.base import GuestAttachment, GuestError, GuestUnreachableError
from sandboxd.guest_client.wire import parse_object, parse_problem
from sandboxd.processes.live import END_GRACE_SECONDS, LiveSandbox, failed, guarded
from sandboxd.processes.rendering import as_frames, runs
from sandboxd.processes.trust import (
    MAX_SEQ,
    Event,
    Exit,
    ExitDetails,
    Keepalive,
    Lost,
    StreamCheck,
    between,
    check_process,
)

BREAK_SECONDS: Final = 1.0
"""A connection to a guest that breaks with its sandbox does so a moment before that sandbox is known to have ended."""
_HEADER: Final = struct.Struct(">BBHIQq")
_MODELS: Final[dict[int, type[BaseModel]]] = {FrameKind.RESIZE: ResizeSpec, FrameKind.SIGNAL: SignalSpec}
_INPUT: Final = frozenset({FrameKind.STDIN, FrameKind.STDIN_CLOSE, *_MODELS})
_MAX_JSON_BYTES: Final = 1024


class BadFrameError(Exception):
    """A message is not one frame."""


class BrokenError(Exception):
    """The way to the guest broke although the sandbox has not ended: attach again at once."""


class Attachment:
    """What a client that is attached receives and sends. Holds one connection to the guest."""

    def __init__(self, sandbox: LiveSandbox, guest: GuestAttachment, request_id: str, *, may_write: bool) -> None:
        self._sandbox = sandbox
        self._guest = guest
        self._request_id = request_id
        self._may_write = may_write
        self._batches = guest.batches()
        self._check = StreamCheck(None)
        self._first = b""
        self._rest: Batch | None = None
        self._acknowledged = 0
        self._sent = 0
        self.position = 0
        """Where a client goes on that has everything yielded so far."""

    async def begin(self, process_id: str, after: int | None) -> None:
        """Take the first frame."""
        batch = await anext(self._batches)
        head = batch.heads[0]
        if head.kind != FrameKind.ATTACHED or head.skip:
            raise GuestError("the attachment does not begin with the process")
        answer = parse_object(bytes(batch.payload(head)))
        process = check_process(answer, self._sandbox.id, process_id)
        begins = answer.get("after")
        if type(begins) is not int or not 0 <= begins <= process.next_seq or after not in (None, begins):
            raise GuestError("the attachment begins somewhere else")
        self._check = StreamCheck(begins)
        self.position = begins
        self._acknowledged = self._sent = process.stdin_offset
        self._first = _attached(process, begins)
        self._rest = next(between(batch, 1, len(batch.heads)), None)

    async def close(self) -> None:
        """Let the guest take what was sent, and go."""
        await self._guest.detach()
        await self._batches.aclose()

    async def frames(self) -> AsyncGenerator[bytes | memoryview]:
        """Yield frames to the end, each by itself: `attached` first, `exit` last.

        Raises BrokenError, and `guest_failed` when the guest lies.
        """
        yield self._first
        try:
            async with aclosing(self._checked()) as frames:
                async for frame in frames:
                    yield frame
        except GuestError as error:
            raise failed(self._sandbox, error) from error
        except GuestUnreachableError as error:
            if not await self._sandbox.ended.wait(BREAK_SECONDS):
                raise BrokenError from error
            for event in self._last_words():
                yield as_frames(event)

    async def _checked(self) -> AsyncGenerator[bytes | memoryview]:
        if self._rest is not None:
            for frame in self._admit(self._rest):
                yield frame
        while not self._check.over:
            for frame in self._admit(await self._read()):
                yield frame

    async def _read(self) -> Batch:
        """Read on, but not longer than the sandbox lives."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                unsubscribe = self._sandbox.ended.subscribe(lambda: scope.reschedule(loop.time() + END_GRACE_SECONDS))
                try:
                    return await anext(self._batches)
                finally:
                    unsubscribe()
        except StopAsyncIteration:
            raise GuestUnreachableError("the attachment ended") from None
        except TimeoutError:
            raise GuestUnreachableError("the sandbox has ended") from None

    def _admit(self, batch: Batch) -> Iterator[bytes | memoryview]:
        """Yield what a batch says: output checked, and between it what became of input."""
        begin = 0
        for index, head in enumerate(batch.heads):
            if head.kind not in (FrameKind.STDIN_ACK, FrameKind.ERROR):
                continue
            yield from self._output(batch, begin, index)
            begin = index + 1
            yield self._acknowledge(head) if head.kind == FrameKind.STDIN_ACK else self._refuse(head, batch)
        yield from self._output(batch, begin, len(batch.heads))

    def _output(self, batch: Batch, begin: int, end: int) -> Iterator[bytes | memoryview]:
        for part in between(batch, begin, end):
            for event in self._check.admit(part):
                yield from self._shown(event)

    def _shown(self, event: Event) -> Iterator[bytes | memoryview]:
        match event:
            case Batch():
                for run in runs(event):
                    self.position = run[-1].seq + run[-1].length
                    yield _joined(event, run)
            case Keepalive():
                return
            case Lost():
                self.position = event.seq + event.lost_bytes
                yield as_frames(event)
            case Exit():
                yield as_frames(event)

    def _acknowledge(self, head: Head) -> bytes:
        if head.skip or head.length or not self._acknowledged <= head.seq <= self._sent:
            raise GuestError("the guest acknowledges what was not sent")
        self._acknowledged = head.seq
        return encode(Frame(FrameKind.STDIN_ACK, head.seq))

    def _refuse(self, head: Head, batch: Batch) -> bytes:
        if head.skip or head.seq > MAX_SEQ:
            raise GuestError("an error about nothing that was sent")
        return self._problem(head.seq, parse_problem(0, bytes(batch.payload(head))))

    def _problem(self, seq: int, problem: ProblemError) -> bytes:
        return encode(Frame(FrameKind.ERROR, seq, to_json(problem.body(self._request_id))))

    def _last_words(self) -> tuple[Lost, Exit]:
        """What a reader is told of a process whose sandbox died: more may have been written, and it is over."""
        problem = self._sandbox.end_problem()
        details = ExitDetails(
            exit_code=137,
            signal="SIGKILL",
            reason=ProcessReason.SANDBOX_STOPPED,
            message=f"The sandbox has ended: {problem.reason or problem.code}.",
        )
        return Lost(self.position, 0), Exit(self.position, 0, details)

    async def take(self, message: bytes) -> bytes | None:
        """Pass a message of the client on; return the frame that says what is wrong with it, if something is.

        Waits while the guest takes no more. BadFrameError for what is not one frame. An unknown kind is skipped.
        """
        frame = _frame_of(message)
        if frame is None:
            return None
        try:
            self._require(frame)
        except ProblemError as problem:
            return self._problem(frame.seq, problem)
        if frame.kind == FrameKind.STDIN:
            self._sent = max(self._sent, frame.seq + len(frame.payload))
        try:
            await self._guest.send(encode(frame))
        except GuestUnreachableError:
            return None  # whoever reads frames sees it too, and knows why
        return None

    def _require(self, frame: Frame) -> None:
        if not self._may_write:
            raise ProblemError(
                "scope_required",
                "This credential may watch, but not send input: that needs the scope processes:write.",
                required_scope="processes:write",
            )
        model = _MODELS.get(frame.kind)
        if model is not None:
            try:
                model.model_validate_json(frame.payload)
            except ValidationError as error:
                raise invalid(error) from None


def _frame_of(message: bytes) -> Frame | None:
    """Return the frame that a message is; None for one that is to be skipped."""
    if len(message) < HEADER_BYTES:
        raise BadFrameError(f"a message of {len(message)} bytes holds no frame")
    kind, flags, reserved, length, seq, _ = _HEADER.unpack_from(message)
    if length != len(message) - HEADER_BYTES:
        raise BadFrameError(f"a length of {length}, and {len(message) - HEADER_BYTES} bytes of payload")
    if flags or reserved or kind not in _INPUT:
        return None
    most = {FrameKind.STDIN: MAX_STDIN_PAYLOAD, FrameKind.STDIN_CLOSE: 0}.get(kind, _MAX_JSON_BYTES)
    if length > most or seq > MAX_SEQ:
        raise BadFrameError(f"kind {kind} with {length} bytes at {seq}")
    return Frame(kind, seq, message[HEADER_BYTES:])


def _attached(process: Process, after: int) -> bytes:
    body: dict[str, Any] = process.model_dump(mode="json") | {"after": after}
    payload = to_json(body)
    if len(payload) > MAX_PAYLOAD:
        raise GuestError("a process larger than a frame")
    return encode(Frame(FrameKind.ATTACHED, after, payload))


def _joined(batch: Batch, run: list[Head]) -> bytes | memoryview:
    """Return neighbours of one channel as one frame, not copied where they are one."""
    first = run[0]
    if len(run) == 1:
        return batch.data[first.start - HEADER_BYTES : first.end]
    return encode(Frame(first.kind, first.seq, b"".join(map(batch.payload, run)), first.time_us))


@asynccontextmanager
async def open_attachment(
    sandbox: LiveSandbox,
    process_id: str,
    *,
    after: int,
    tail_bytes: int | None,
    may_write: bool,
    request_id: str,
) -> AsyncGenerator[Attachment]:
    """Attach to a process. Raises what the guest answers, before anything is read."""
    async with AsyncExitStack() as stack:
        async with guarded(sandbox):
            opened = sandbox.guest.attach(process_id, after=after, tail_bytes=tail_bytes)
            guest = await stack.enter_async_context(opened)
            made = Attachment(sandbox, guest, request_id, may_write=may_write)
            stack.push_async_callback(made.close)
            await made.begin(process_id, after if tail_bytes is None else None)
        yield made
