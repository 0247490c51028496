"""The processes of the stub: what they do, and what they wrote."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json
from stub_wire import NOW

_KINDS = {"stdout": FrameKind.STDOUT, "stderr": FrameKind.STDERR, "terminal": FrameKind.TERMINAL}


class StubProcess:
    """A process that does what its argv says, or what the test makes it do."""

    def __init__(self, sandbox_id: str, spec: dict[str, Any]) -> None:
        self.changed = threading.Condition()
        self.sandbox_id = sandbox_id
        self.spec = spec
        self.output: list[tuple[str, bytes]] = []
        self.lost_bytes = 0
        """Output at the start that was dropped before anyone read it."""
        self.stdin = bytearray()
        self.stdin_closed = not spec.get("stdin", False) and "tty" not in spec
        self.signals: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.exit: dict[str, Any] | None = None

    @property
    def argv(self) -> list[str]:
        return self.spec.get("argv") or ["/bin/sh", "-c", self.spec["shell"]]

    @property
    def length(self) -> int:
        return self.lost_bytes + sum(len(data) for _, data in self.output)

    def write(self, kind: str, data: bytes) -> None:
        with self.changed:
            self.output.append((kind, data))
            self.changed.notify_all()

    def end(self, exit_code: int, reason: str = "exited", **more: Any) -> None:
        fields = {"signal": None, "message": None, "start_error": None, "duration_seconds": 0.01}
        with self.changed:
            self.exit = {"exit_code": exit_code, "reason": reason} | fields | more
            self.changed.notify_all()

    def feed(self, offset: int, data: bytes, *, close: bool, limit: int) -> int:
        with self.changed:
            fresh = data[len(self.stdin) - offset :][:limit]
            self.stdin += fresh
            self.stdin_closed = self.stdin_closed or (close and len(self.stdin) == offset + len(data))
            self.changed.notify_all()
            return len(self.stdin)

    def begin(self) -> None:
        """Act out the argv; an unknown one runs until the test ends it."""
        match self.argv:
            case ["echo", *words]:
                self.write("stdout", " ".join(words).encode() + b"\n")
                self.end(0)
            case ["exit", code]:
                self.end(int(code))
            case ["shout"]:
                threading.Thread(target=self._shout, daemon=True).start()
            case ["cat"]:
                threading.Thread(target=self._cat, daemon=True).start()
            case ["missing", *_]:
                error = {"code": "command_not_found", "message": "missing: command not found"}
                self.end(127, "not_started", start_error=error)
            case _:
                return

    def _cat(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.stdin_closed)
            data = bytes(self.stdin)
        self.write("stdout", data)
        self.end(0)

    def _shout(self) -> None:
        """Write each line of the input in capitals, as a terminal; `exit N` ends it."""
        seen = 0
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda seen=seen: b"\n" in self.stdin[seen:] or self.stdin_closed or self.exit is not None
                )
                line, newline, _ = bytes(self.stdin[seen:]).partition(b"\n")
                if self.exit is not None:
                    return
            seen += len(line) + len(newline)
            if not newline or line.startswith(b"exit "):
                self.end(int(line[5:] or b"0"))
                return
            self.write("terminal", line.upper() + b"\r\n")

    def describe(self) -> dict[str, Any]:
        ended = self.exit or {}
        return {
            "id": self.spec["id"],
            "sandbox_id": self.sandbox_id,
            "argv": self.argv,
            "cwd": "/home/user",
            "user": "user",
            "uid": 1000,
            "gid": 1000,
            "tag": self.spec.get("tag"),
            "tty": self.spec.get("tty"),
            "pid": 7,
            "state": "ended" if self.exit else "running",
            "exit_code": ended.get("exit_code"),
            "reason": ended.get("reason"),
            "started_at": NOW,
            "next_seq": self.length,
            "stdin_offset": len(self.stdin),
            "stdin_closed": self.stdin_closed,
        }

    def result(self) -> dict[str, Any]:
        ended = self.exit or {"exit_code": None, "reason": None}
        texts = {
            name: b"".join(data for kind, data in self.output if kind == name).decode(errors="replace")
            for name in ("stdout", "stderr")
        }
        return {
            "process_id": self.spec["id"],
            "running": self.exit is None,
            "truncated": False,
            "lossy": False,
            "next_seq": self.length,
            "started_at": NOW,
            "duration_seconds": 0.01,
            **texts,
            **ended,
        }

    def frames(self, after: int, *, follow: bool, frame_bytes: int) -> Iterator[Frame | dict[str, Any]]:
        """Yield frames from a position on, and the exit as a dict; waits for more if `follow`."""
        position, index, seq = after, 0, self.lost_bytes
        if after < self.lost_bytes:
            yield Frame(FrameKind.LOST, after, json.dumps({"lost_bytes": self.lost_bytes - after}).encode())
            position = self.lost_bytes
        while True:
            with self.changed:
                if follow:
                    self.changed.wait_for(lambda index=index: len(self.output) > index or self.exit is not None)
                ready = self.output[index:]
                ended = self.exit
            index += len(ready)
            for kind, data in ready:
                for start in range(max(0, position - seq), len(data), frame_bytes):
                    part = data[start : start + frame_bytes]
                    yield Frame(_KINDS[kind], seq + start, part, 1_000_000)
                seq += len(data)
                position = max(position, seq)
            if ended is not None and index == len(self.output):
                yield ended
                return
            if not follow:
                yield Frame(FrameKind.KEEPALIVE, seq)
                return


def render(frame: Frame | dict[str, Any], position: int, *, as_lines: bool) -> bytes:
    if isinstance(frame, dict):
        if as_lines:
            return json.dumps({"kind": "exit", "seq": position, "next": position, **frame}).encode() + b"\n"
        return encode_json(FrameKind.EXIT, position, frame)
    if not as_lines:
        return encode(frame)
    line: dict[str, Any] = {"kind": FrameKind(frame.kind).name.lower(), "seq": frame.seq, "next": frame.next_seq}
    if frame.kind == FrameKind.LOST:
        line |= json.loads(frame.payload)
    elif frame.kind != FrameKind.KEEPALIVE:
        try:
            line["text"] = frame.payload.decode()
        except UnicodeDecodeError:
            line["base64"] = base64.b64encode(frame.payload).decode()
    return json.dumps(line).encode() + b"\n"
