# Derived from _async by unasync.py: change it there.
"""All streams of one process over one WebSocket that is opened again wherever it breaks."""

from collections import deque
from collections.abc import Generator, Iterator
from signal import Signals
from typing import Any, Final

from sandlot._clock import Lock, sleep
from sandlot._sync.route import Route
from sandlot._sync.websocket import WebSocket
from sandlot._unacked import Unacked
from sandlot.errors import (
    ApiError,
    ConnectionClosedError,
    ProcessEndedError,
    ProtocolError,
    SandlotError,
    StdinClosedError,
    UnreachableError,
    from_close,
    from_problem,
)
from sandlot.frames import STDIN_PIECE_BYTES, Control, decode_message, encode_message
from sandlot.ids import new_idempotency_key
from sandlot.models import Frame, ProcessExit, ProcessInfo
from sandlot.retries import Patience

SUBPROTOCOL: Final = "sandlot.process.v1"
_LARGEST_BACKLOG: Final = 16 * 1024 * 1024
_GOING_AWAY: Final = 1001
_OF_THE_APPLICATION: Final = 4000
_OUR_FAULT: Final = frozenset({1003, 1009, 4400})


class Attachment:
    """A process's output to iterate over, and its input, size and signals, on one connection.

    `position` says how far the output came. Input is kept until the sandbox has it, and sent again after a break. One
    task reads, others may write; who only writes reads ahead for the reader when the other side takes no more.
    """

    def __init__(self, route: Route, path: str, after: int, *, tail_bytes: int | None) -> None:
        self._route = route
        self._path = path
        self._tail_bytes = tail_bytes
        self._socket: WebSocket | None = None
        self._patience = Patience(route.client.retries)
        self._stepping = Lock()
        self._writing = Lock()
        self._sending = Lock()
        self._backlog: deque[Frame] = deque()
        self._backlog_bytes = 0
        self._input: Unacked | None = None
        self._size: dict[str, int] | None = None
        self._refusal: ApiError | None = None
        self._is_detached = False
        self._frames = self._read()
        self.position = after
        """Where to resume: pass it as `after` to get what follows."""
        self.info: ProcessInfo | None = None
        """The process as described when it was last attached to."""
        self.exit: ProcessExit | None = None
        """How the process ended, once its `exit` frame was seen."""
        self.lost_bytes = 0
        """How much was dropped unread before this reader came to it."""

    def __enter__(self) -> "Attachment":
        with self._stepping:
            self._connected()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach. The process goes on."""
        self._is_detached = True
        self._drop()

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def write(self, data: bytes | str) -> None:
        """Write all of `data` to its input, as text in UTF-8; returns when it is on its way or kept for that.

        Raises StdinClosedError or ProcessEndedError when nobody will ever read it.
        """
        rest = memoryview(data.encode() if isinstance(data, str) else data)
        with self._writing:
            while rest:
                kept = self._room()
                piece = bytes(rest[: min(kept.room, STDIN_PIECE_BYTES)])
                rest = rest[len(piece) :]
                with self._sending:
                    self._push(encode_message("stdin", seq=kept.add(piece), data=piece))

    def close_stdin(self) -> None:
        """Let the process read the end of its input."""
        with self._writing:
            kept = self._room()
            with self._sending:
                kept.is_closed = True
                self._push(encode_message("stdin_close", seq=kept.end))

    def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size."""
        with self._sending:
            self._size = {"rows": rows, "cols": cols}
            self._push(encode_message("resize", fields=self._size))

    def signal(self, signal: str | Signals, *, scope: str = "tree") -> None:
        """Send a signal such as `SIGINT`, to the process and all its children unless `scope` is `process`.

        It goes by a call of its own: one that was sent into a breaking connection would be sent never, or twice.
        """
        name = signal.name if isinstance(signal, Signals) else signal
        path = self._path.removesuffix("/attach") + "/signal"
        body = {"signal": name, "scope": scope}
        self._route.call("POST", path, body=body, idempotency_key=new_idempotency_key())

    def _read(self) -> Generator[Frame, None]:
        while not self._is_detached:
            while not self._backlog and self.exit is None and not self._is_detached:
                with self._stepping:
                    if not self._backlog and self.exit is None:
                        self._step()
            while self._backlog:
                frame = self._backlog.popleft()
                self._backlog_bytes -= len(frame.data)
                yield frame
            if self.exit is not None:
                self._drop()
                return

    def _room(self) -> Unacked:
        """Wait until the other side takes more input."""
        while True:
            if self.exit is not None:
                raise self._refusal or _ended(self.exit)
            if self._refusal is not None:
                raise self._refusal
            kept = self._input
            if kept is not None and kept.is_closed:
                raise StdinClosedError(409, {"code": "stdin_closed", "detail": "the input was closed from here"})
            if kept is not None and kept.room > 0:
                return kept
            if self._backlog_bytes > _LARGEST_BACKLOG:
                raise ProtocolError("the output must be read while so much is written", hint="Read in another task.")
            with self._stepping:
                if self._input is None or self._input.room <= 0:
                    self._step()

    def _push(self, message: bytes) -> None:
        """Send on the present connection; a broken one is for the reader to find, and what matters is sent again."""
        socket = self._socket
        if socket is None:
            return
        try:
            socket.send(message)
        except UnreachableError:
            return

    def _step(self) -> None:
        """Take one message in, over a new connection if there is none."""
        try:
            socket = self._connected()
            self._take(decode_message(socket.receive()))
        except (ConnectionClosedError, UnreachableError) as error:
            self._drop()
            if not self._is_detached:
                self._pause(_meaning(error, attached=self.info is not None))

    def _connected(self) -> WebSocket:
        while self._socket is None:
            query: dict[str, Any] = {"after": self.position}
            if self._tail_bytes is not None:
                query = {"tail_bytes": self._tail_bytes}
            try:
                socket = self._route.socket(self._path, query, SUBPROTOCOL)
            except (ApiError, UnreachableError) as error:
                self._pause(error)
                continue
            try:
                self._take(decode_message(socket.receive()))
                # Nobody writes in between: what is written next must follow what is sent again.
                with self._sending:
                    self._catch_up(socket)
                    self._socket = socket
            except (ConnectionClosedError, UnreachableError) as error:
                socket.close()
                self._pause(_meaning(error, attached=False))
            except BaseException:
                socket.close()
                raise
        return self._socket

    def _catch_up(self, socket: WebSocket) -> None:
        """Send again what the last connection may have lost."""
        if self._size is not None:
            socket.send(encode_message("resize", fields=self._size))
        if self._input is None:
            return
        offset, rest = self._input.rest()
        for start in range(0, len(rest), STDIN_PIECE_BYTES):
            piece = rest[start : start + STDIN_PIECE_BYTES]
            socket.send(encode_message("stdin", seq=offset + start, data=piece))
        if self._input.is_closed:
            socket.send(encode_message("stdin_close", seq=self._input.end))

    def _pause(self, error: SandlotError) -> None:
        delay = self._patience.next_delay(error, repeatable=True)
        if delay is None:
            raise error
        sleep(delay)

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _take(self, message: Frame | Control | None) -> None:
        if isinstance(message, Frame):
            self._take_frame(message)
        elif message is not None:
            self._take_control(message)

    def _take_control(self, message: Control) -> None:
        if message.kind == "attached":
            self.info = ProcessInfo.parse(message.fields)
            if self._input is None:
                self._input = Unacked(self.info.stdin_offset)
            self._input.join(self.info.stdin_offset)
            after = message.fields.get("after")
            if self._tail_bytes is not None and isinstance(after, int):
                self._tail_bytes, self.position = None, after
        elif message.kind == "stdin_ack" and self._input is not None:
            self._input.acknowledge(message.seq)
            self._patience.progress()
        elif message.kind == "error":
            self._refuse(message.fields)

    def _refuse(self, problem: dict[str, Any]) -> None:
        status = problem.get("status")
        error = from_problem(status if isinstance(status, int) else 409, problem)
        if isinstance(error, StdinClosedError | ProcessEndedError):
            self._refusal = error
        elif error.code == "stdin_gap":
            raise UnreachableError("input is missing at the other side")

    def _take_frame(self, frame: Frame) -> None:
        if frame.kind == "keepalive":
            self._patience.progress()
            return
        if self._tail_bytes is not None:
            self._tail_bytes, self.position = None, frame.seq
        if frame.seq > self.position:
            raise ProtocolError(f"the output jumps from position {self.position} to {frame.seq}")
        fresh = frame.after(self.position)
        if frame.next < self.position or (fresh.next == fresh.seq and frame.next > frame.seq):
            return
        self._patience.progress()
        self.position = fresh.next
        self.lost_bytes += fresh.lost_bytes
        self.exit = fresh.exit or self.exit
        self._backlog.append(fresh)
        self._backlog_bytes += len(fresh.data)


def _ended(exit_: ProcessExit) -> ProcessEndedError:
    problem = {"code": "process_ended", "detail": "the process has ended", "reason": exit_.reason}
    return ProcessEndedError(409, problem | {"exit_code": exit_.exit_code})


def _meaning(error: ConnectionClosedError | UnreachableError, *, attached: bool) -> SandlotError:
    """Return what a break means: mostly that the next connection goes on, or says why there is none."""
    if isinstance(error, UnreachableError):
        return error
    if error.code in _OUR_FAULT:
        return ProtocolError(f"the server refused what was sent: {error}")
    if error.code == _GOING_AWAY or (attached and error.code < _OF_THE_APPLICATION):
        return UnreachableError(str(error))
    meaning = from_close(error)
    return meaning if isinstance(meaning, ApiError) and not attached else UnreachableError(str(meaning))
