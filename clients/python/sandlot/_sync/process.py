# Derived from _async by unasync.py: change it there.
"""One process of a sandbox: its output, its input, its end."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from signal import Signals
from typing import Any, Final

from sandlot._clock import sleep
from sandlot._commands import segment
from sandlot._requests import KEEPALIVE_SECONDS
from sandlot._sync.attachment import Attachment
from sandlot._sync.route import Route
from sandlot.errors import ApiError, ProtocolError, UnreachableError
from sandlot.frames import FRAMES, decoder_for
from sandlot.ids import new_idempotency_key
from sandlot.models import Frame, ProcessExit, ProcessInfo, RunResult
from sandlot.retries import Patience

_STDIN_PIECE_BYTES: Final = 1024 * 1024
_WAIT_SECONDS: Final = 60


class Process:
    """A command started in a sandbox. It lives on when this object is dropped."""

    def __init__(self, route: Route, info: ProcessInfo) -> None:
        self._route = route
        self._path = f"/processes/{segment(info.id)}"
        self._stdin_offset = info.stdin_offset
        self.sandbox_id = route.sandbox_id
        self.info = info
        """The process as last described by the API."""

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def pid(self) -> int | None:
        """The number it has inside the sandbox."""
        return self.info.pid

    def refresh(self) -> ProcessInfo:
        """Ask for the present description, and return it."""
        self.info = ProcessInfo.parse(self._route.call("GET", self._path))
        return self.info

    def output(
        self, after: int = 0, *, tail_bytes: int | None = None, follow: bool = True, media_type: str = FRAMES
    ) -> "Output":
        """Return the output from position `after`, to iterate over; nothing is asked before the first step.

        A stream that breaks is opened again where it broke, so every byte comes exactly once. What the sandbox no
        longer holds is one `lost` frame with its size. With `follow` the last frame is `exit`; without, the iteration
        ends at the present end.
        """
        return Output(
            self._route, self._path + "/output", after, tail_bytes=tail_bytes, follow=follow, media_type=media_type
        )

    def attach(self, after: int = 0, *, tail_bytes: int | None = None) -> "Attachment":
        """Return a connection to all its streams at once: output from `after`, input, size and signals.

        Nothing is opened before the first step. It connects again by itself after a break, and neither output nor
        input is lost or doubled by that. Leaving its `with` block detaches and ends nothing.
        """
        return Attachment(self._route, self._path + "/attach", after, tail_bytes=tail_bytes)

    def write_stdin(self, data: bytes | str, *, close: bool = False) -> int:
        """Write all of `data` to standard input, as text in UTF-8, and return how much was written since the start.

        Waits while the process does not read. Retries safely: each byte has its offset. Not for two writers at once.
        Raises StdinClosedError or ProcessEndedError when nobody will ever read it.
        """
        rest = data.encode() if isinstance(data, str) else data
        while True:
            piece, more = rest[:_STDIN_PIECE_BYTES], len(rest) > _STDIN_PIECE_BYTES
            accepted = self._send_stdin(piece, close=close and not more)
            rest = rest[accepted:]
            if not rest:
                return self._stdin_offset

    def close_stdin(self) -> None:
        """Let the process read the end of its standard input."""
        self._send_stdin(b"", close=True)

    def _send_stdin(self, piece: bytes, *, close: bool) -> int:
        query: dict[str, Any] = {"offset": self._stdin_offset}
        if close:
            query["close"] = True
        answer = self._route.call("POST", self._path + "/stdin", query=query, content=piece)
        offset = answer.get("offset") if isinstance(answer, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - JSON
        if not isinstance(offset, int) or not self._stdin_offset <= offset <= self._stdin_offset + len(piece):
            raise ProtocolError(f"the answer to input is no offset of it: {answer!r}")
        accepted = offset - self._stdin_offset
        self._stdin_offset = offset
        return accepted

    def signal(self, signal: str | Signals, *, scope: str = "tree") -> None:
        """Send a signal such as `SIGINT`, to the process and all its children unless `scope` is `process`.

        Raises ProcessEndedError when it has ended already.
        """
        body = {"signal": signal.name if isinstance(signal, Signals) else signal, "scope": scope}
        self._route.call("POST", self._path + "/signal", body=body, idempotency_key=new_idempotency_key())

    def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size. ConflictError if it has none."""
        self._route.call("POST", self._path + "/resize", body={"rows": rows, "cols": cols})

    def result(
        self, *, wait_seconds: float = 0, max_output_bytes: int | None = None, keep: str | None = None
    ) -> RunResult:
        """Return what it has done so far, after at most `wait_seconds` for its end."""
        query: dict[str, Any] = {"wait_seconds": wait_seconds}
        if max_output_bytes is not None:
            query["max_output_bytes"] = max_output_bytes
        if keep is not None:
            query["keep"] = keep
        return RunResult.parse(self._route.call("GET", self._path + "/result", query=query))

    def wait(
        self, *, timeout_seconds: float | None = None, max_output_bytes: int | None = None, keep: str | None = None
    ) -> RunResult:
        """Wait for its end, however long that takes, and return what it did.

        With `timeout_seconds` the result after that time may still be `running`. Waiting ends nothing.
        """
        clock = self._route.client.retries.clock
        end = None if timeout_seconds is None else clock() + timeout_seconds
        while True:
            left = _WAIT_SECONDS if end is None else max(0.0, min(_WAIT_SECONDS, end - clock()))
            result = self.result(wait_seconds=round(left, 3), max_output_bytes=max_output_bytes, keep=keep)
            if not result.running or (end is not None and clock() >= end):
                return result


@dataclass(frozen=True)
class Run(RunResult):
    """What a command did, or has done so far, with the process that did it."""

    process: Process = field(repr=False, compare=False)

    def wait(self, *, max_output_bytes: int | None = None) -> "Run":
        """Wait for the end of one that is still `running`, and return what it did; else itself.

        Like a run that is repeated, so it never starts anything.
        """
        if not self.running:
            return self
        return Run(**vars(self.process.wait(max_output_bytes=max_output_bytes)), process=self.process)


class Output:
    """The output of one process, from a position on. Iterate once; `position` says how far it came.

    An `with` block closes the stream when the iteration is left early.
    """

    def __init__(
        self, route: Route, path: str, after: int, *, tail_bytes: int | None, follow: bool, media_type: str
    ) -> None:
        self._route = route
        self._path = path
        self._tail_bytes = tail_bytes
        self._follow = follow
        self._media_type = media_type
        self._frames = self._read()
        self.position = after
        """Where to resume: pass it as `after` to get what follows."""
        self.exit: ProcessExit | None = None
        """How the process ended, once its `exit` frame was seen."""
        self.lost_bytes = 0
        """How much was dropped unread before this reader came to it."""

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream. The process goes on."""
        self._frames.close()

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def _read(self) -> Generator[Frame, None]:
        patience = Patience(self._route.client.retries)
        error: ApiError | UnreachableError
        while True:
            try:
                with closing(self._open()) as frames:
                    for frame in frames:
                        patience.progress()
                        if frame.kind != "keepalive":
                            yield frame
                        if frame.kind == "exit" or (frame.kind == "keepalive" and not self._follow):
                            return
                error = UnreachableError("the output ended before the process did")
            except (ApiError, UnreachableError) as caught:
                error = caught
            delay = patience.next_delay(error, repeatable=True)
            if delay is None:
                raise error
            sleep(delay)

    def _open(self) -> Generator[Frame, None]:
        query: dict[str, Any] = {"follow": self._follow, "keepalive_seconds": KEEPALIVE_SECONDS}
        # A tail is asked for only until something of it came: from then on the position says more.
        if self._tail_bytes is None:
            query["after"] = self.position
        else:
            query["tail_bytes"] = self._tail_bytes
        with self._route.stream(self._path, query=query, accept=self._media_type) as response:
            decoder = decoder_for(response.headers.get("content-type", ""))
            for data in response.iter_bytes():
                for frame in decoder.feed(data):
                    fresh = self._take(frame)
                    if fresh is not None:
                        yield fresh

    def _take(self, frame: Frame) -> Frame | None:
        """Move the position over a frame; None for one that was seen before."""
        if self._tail_bytes is not None:
            self._tail_bytes = None
            self.position = frame.seq
        if frame.seq > self.position:
            raise ProtocolError(f"the output jumps from position {self.position} to {frame.seq}")
        fresh = frame.after(self.position)
        if frame.next < self.position or (fresh.next == fresh.seq and frame.next > frame.seq):
            return None
        self.position = fresh.next
        self.lost_bytes += fresh.lost_bytes
        if fresh.exit is not None:
            self.exit = fresh.exit
        return fresh
