"""Processes of the fake guest: a few programs played by callbacks, with the true rules for output, ends and signals."""

import asyncio
import base64
import shlex
import signal as signals
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sandboxd.contract.frames import MAX_PAYLOAD, Frame, FrameKind
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import DEFAULT_RING_BYTES, render_time

HEAD_BYTES: Final = 65_536
_YES_BLOCK: Final = b"y\n" * 16_384
_NOT_ENDING: Final = frozenset({"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"})


@dataclass(frozen=True, slots=True)
class Exit:
    """How a fake process ended."""

    exit_code: int
    reason: str
    at: datetime
    signal: str | None = None
    message: str | None = None
    start_error: dict[str, str] | None = None


@dataclass(slots=True)
class _Output:
    """A ring of frames over byte positions, and the first bytes of each channel."""

    ring_bytes: int
    frames: list[Frame] = field(default_factory=list[Frame])
    heads: list[Frame] = field(default_factory=list[Frame])
    counts: dict[int, int] = field(default_factory=dict[int, int])
    first_seq: int = 0
    next_seq: int = 0

    def add(self, kind: int, data: bytes, time_us: int) -> None:
        for start in range(0, len(data), MAX_PAYLOAD):
            frame = Frame(kind, self.next_seq, data[start : start + MAX_PAYLOAD], time_us)
            room = HEAD_BYTES - self.counts.get(kind, 0)
            if room > 0:
                self.heads.append(frame._replace(payload=frame.payload[:room]))
            self.frames.append(frame)
            self.counts[kind] = self.counts.get(kind, 0) + len(frame.payload)
            self.next_seq = frame.next_seq
        while self.next_seq - self.first_seq > self.ring_bytes:
            self.first_seq = self.frames.pop(0).next_seq

    def read(self, after: int) -> list[Frame]:
        """Return everything from a position on, with what is lost."""
        found: list[Frame] = []
        if after < self.first_seq:
            lost = self.first_seq - after
            found.append(Frame(FrameKind.LOST, after, b'{"lost_bytes":%d}' % lost))
            after = self.first_seq
        for frame in self.frames:
            if frame.next_seq > after:
                skip = max(0, after - frame.seq)
                found.append(frame._replace(seq=frame.seq + skip, payload=frame.payload[skip:]))
        return found


class FakeProcess:
    """One command that a fake guest plays. Lives on the event loop's timers, in no task."""

    def __init__(
        self, spec: dict[str, Any], *, now: Callable[[], datetime], files: Mapping[str, bytes], pid: int, shell: str
    ) -> None:
        self.spec = spec
        self.id: str = spec["id"]
        self.pid = pid
        self.argv: list[str] = spec.get("argv") or [shell, "-c", spec["shell"]]
        self.exit: Exit | None = None
        self.secret_env: dict[str, str] = {}
        """What the sandbox adds to its environment."""
        self.stdin_closed = not (spec.get("stdin") or spec.get("tty") or spec.get("input_base64") is not None)
        self.stdin_offset = 0
        self.takes_stdin = True
        """False: standard input is full, and nothing that attachments send is written."""
        policy: dict[str, Any] = spec.get("output") or {}
        self.output = _Output(int(policy.get("ring_bytes", DEFAULT_RING_BYTES)))
        self.started_at = now()
        self._now = now
        self._files = files
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle | asyncio.Handle] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._statements: list[list[str]] = []
        self._ignores_term = False
        self._reads_stdin = False
        self._held_stdin = bytearray()

    def begin(self) -> None:
        """Start to play."""
        timeout = self.spec.get("timeout_seconds")
        if timeout is not None:
            self._later(timeout, lambda: self.terminate("timed_out", 124))
        encoded = self.spec.get("input_base64")
        if encoded is not None:
            self.feed(base64.b64decode(encoded), close=True)
        text = self.argv[2] if len(self.argv) > 2 and self.argv[1] == "-c" else None
        if text is None:
            self._statements = [self.argv]
        else:
            pieces = text.replace("&&", ";").replace("\n", ";").split(";")
            self._statements = [words for words in map(shlex.split, pieces) if words]
        self._step()

    def record(self) -> dict[str, Any]:
        """Return the Process of the protocol."""
        ended = self.exit
        end = ended.at if ended else self._now()
        return {
            "id": self.id,
            "argv": self.argv,
            "cwd": self.spec.get("cwd") or "/home/user",
            "user": self.spec.get("user") or "user",
            "uid": 1000,
            "gid": 1000,
            "tty": self.spec.get("tty"),
            "tag": self.spec.get("tag"),
            "pid": self.pid,
            "state": "ended" if ended else "running",
            "exit_code": ended.exit_code if ended else None,
            "signal": ended.signal if ended else None,
            "reason": ended.reason if ended else None,
            "message": ended.message if ended else None,
            "start_error": ended.start_error if ended else None,
            "timeout_seconds": self.spec.get("timeout_seconds"),
            "started_at": render_time(self.started_at),
            "ended_at": render_time(ended.at) if ended else None,
            "duration_seconds": max(0.0, (end - self.started_at).total_seconds()),
            "cpu_used_seconds": 0.0,
            "peak_memory_bytes": 0,
            "first_seq": self.output.first_seq,
            "next_seq": self.output.next_seq,
            "stdout_bytes": self.output.counts.get(FrameKind.STDOUT, 0),
            "stderr_bytes": self.output.counts.get(FrameKind.STDERR, 0),
            "stdin_offset": self.stdin_offset,
            "stdin_closed": self.stdin_closed,
        }

    def exit_payload(self) -> dict[str, Any]:
        """Return the payload of the exit frame."""
        row = self.record()
        names = ("exit_code", "signal", "reason", "message", "start_error", "duration_seconds")
        return {name: row[name] for name in names}

    def feed(self, data: bytes, *, close: bool) -> None:
        """Write standard input."""
        self.stdin_offset += len(data)
        self._held_stdin += data
        self.stdin_closed = self.stdin_closed or close
        if self._reads_stdin:
            self._echo_stdin()

    def signal(self, name: str) -> None:
        """Deliver a signal; `invalid_request` for one that does not exist."""
        if name not in signals.Signals.__members__:
            raise ProblemError("invalid_request", f"no such signal: {name}")
        number = signals.Signals[name].value
        if name == "SIGKILL":
            self.finish(137, "killed", signal=name)
        elif name not in _NOT_ENDING and not (name == "SIGTERM" and self._ignores_term):
            self.finish(128 + number, "signaled", signal=name)

    def terminate(self, reason: str, exit_code: int, grace_seconds: float | None = None) -> None:
        """End it as the guest does: SIGTERM, then SIGKILL after the grace."""
        grace = self.spec.get("kill_grace_seconds", 2) if grace_seconds is None else grace_seconds
        if self._ignores_term:
            self._later(grace, lambda: self.finish(exit_code, reason, signal="SIGKILL"))
        else:
            self.finish(exit_code, reason, signal="SIGTERM")

    def finish(
        self,
        exit_code: int,
        reason: str = "exited",
        *,
        signal: str | None = None,
        start_error: dict[str, str] | None = None,
    ) -> None:
        """Let it have ended. Only the first time counts."""
        if self.exit is None:
            self.exit = Exit(exit_code, reason, self._now(), signal, None, start_error)
            self.stop_timers()
            self.wake()

    def stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, timeout_seconds: float) -> bool:
        """Wait for output or the end; False when the time is over."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True

    def _write(self, data: bytes, kind: FrameKind = FrameKind.STDOUT) -> None:
        if self.spec.get("tty"):
            kind = FrameKind.TERMINAL
        elif self.spec.get("merge_stderr"):
            kind = FrameKind.STDOUT
        self.output.add(kind, data, int(self._now().astimezone(UTC).timestamp() * 1e6))
        policy: dict[str, Any] = self.spec.get("output") or {}
        limit: int | None = policy.get("limit_bytes")
        if limit is not None and self.output.next_seq > limit:
            self.finish(137, "output_limit", signal="SIGKILL")
        self.wake()

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, callback))

    def _step(self, status: int = 0) -> None:
        """Play the next statement; programs that end at once go on by themselves."""
        while self.exit is None:
            if not self._statements:
                self.finish(status)
                return
            words = self._statements.pop(0)
            channel = FrameKind.STDERR if words[-1] in {">&2", "1>&2"} else FrameKind.STDOUT
            played = self._play([word for word in words if word not in {">&2", "1>&2"}], channel)
            if played is None:
                return
            status = played

    def _play(self, words: list[str], channel: FrameKind) -> int | None:
        """Play one program; its status, or None when it ends later."""
        name, arguments = words[0].rsplit("/", 1)[-1], words[1:]
        program = getattr(self, f"_run_{name}", None) if name.isidentifier() else None
        if program is not None:
            return program(arguments, channel)
        message = f"{words[0]}: not found"
        if len(self.argv) > 2 and self.argv[1] == "-c":
            self._write(f"sh: 1: {message}\n".encode(), FrameKind.STDERR)
            return 127
        self.finish(127, "not_started", start_error={"code": "command_not_found", "message": message})
        return None

    def _run_true(self, _arguments: list[str], _channel: FrameKind) -> int:
        return 0

    def _run_false(self, _arguments: list[str], _channel: FrameKind) -> int:
        return 1

    def _run_exit(self, arguments: list[str], _channel: FrameKind) -> int:
        self._statements.clear()
        return int(arguments[0]) & 255 if arguments else 0

    def _run_echo(self, arguments: list[str], channel: FrameKind) -> int:
        ending = "\n"
        if arguments and arguments[0] == "-n":
            arguments, ending = arguments[1:], ""
        self._write((" ".join(arguments) + ending).encode(), channel)
        return 0

    def _run_env(self, _arguments: list[str], channel: FrameKind) -> int:
        env: dict[str, str] = self.secret_env | (self.spec.get("env") or {})
        self._write("".join(f"{name}={value}\n" for name, value in sorted(env.items())).encode(), channel)
        return 0

    def _run_pwd(self, _arguments: list[str], channel: FrameKind) -> int:
        self._write((self.spec.get("cwd") or "/home/user").encode() + b"\n", channel)
        return 0

    def _run_trap(self, _arguments: list[str], _channel: FrameKind) -> int:
        self._ignores_term = True
        return 0

    def _run_cat(self, arguments: list[str], channel: FrameKind) -> int | None:
        if not arguments:
            self._reads_stdin = True
            self._echo_stdin()
            return None
        for path in arguments:
            if path not in self._files:
                self._write(f"cat: {path}: No such file or directory\n".encode(), FrameKind.STDERR)
                return 1
            self._write(self._files[path], channel)
        return 0

    def _run_sleep(self, arguments: list[str], _channel: FrameKind) -> None:
        self._later(float(arguments[0]), self._step)

    def _run_yes(self, _arguments: list[str], channel: FrameKind) -> None:
        if self.exit is None:
            self._write(_YES_BLOCK, channel)
            self._later(0.001, lambda: self._run_yes(_arguments, channel))
            del self._timers[:-2]

    def _echo_stdin(self) -> None:
        if self._held_stdin:
            data = bytes(self._held_stdin)
            self._held_stdin.clear()
            self._write(data)
        if self.stdin_closed:
            self._reads_stdin = False
            self._step()
