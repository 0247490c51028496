"""A Sandlot API that exists only to fail: a real HTTP server on loopback whose faults are written down beforehand.

It keeps the rules a client leans on (joining by process id, offsets of stdin, positions of output, idempotency keys),
and breaks connections exactly where a test says.
"""

import base64
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json

KEY = "sandlot_stub"
_NOW = "2026-11-22T10:59:01.123Z"
_KINDS = {"stdout": FrameKind.STDOUT, "stderr": FrameKind.STDERR, "terminal": FrameKind.TERMINAL}


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def value(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]


@dataclass
class Fault:
    """What goes wrong with the next request whose `METHOD path` ends so."""

    ending: str
    status: int | None = None
    """Answer this instead of doing anything."""
    problem: dict[str, Any] | None = None
    """The body of that answer; None: a plain text, as of some proxy."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    drop: str | None = None
    """`before`: close unanswered without any effect; `after`: have the effect, then close unanswered."""
    cut_body: int | None = None
    """Send so many bytes of the answer's body, then close."""
    spaces_first: bool = False
    """Send a space before the body, as a server does that is at work on a long answer."""


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
        self.stdin_closed = not spec.get("stdin", False)
        self.signals: list[str] = []
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
            "pid": 7,
            "state": "ended" if self.exit else "running",
            "exit_code": ended.get("exit_code"),
            "reason": ended.get("reason"),
            "started_at": _NOW,
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
            "started_at": _NOW,
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


class StubApi:
    """The server and its whole state. `url` and `key` are what a client needs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, StubProcess] = {}
        self.created_by_key: dict[str, str] = {}
        self.starts = 0
        self.stdin_limit = 1 << 30
        """How many bytes of input one request takes."""
        self.frame_bytes = 65_536
        self.cuts: list[int] = []
        """After how many bytes of the body each output stream breaks, one after the other; then none does."""
        self.clean_end_after_cut = False
        """Whether a broken output ends as if it were whole, instead of in the middle of the transfer."""
        self.settles_after = 0
        """How many times a new sandbox is seen `starting`."""
        self.on_start: Callable[[StubProcess], None] | None = None
        self.url = ""
        self.key = KEY

    def seen(self, ending: str) -> list[Request]:
        """Return the requests whose `METHOD path` ends so."""
        with self.lock:
            return [one for one in self.requests if f"{one.method} {one.path}".endswith(ending)]

    def take_fault(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if f"{request.method} {request.path}".endswith(fault.ending):
                    self.faults.remove(fault)
                    return fault
        return None

    def add_sandbox(self, **fields: Any) -> dict[str, Any]:
        sandbox: dict[str, Any] = {
            "id": f"sbx{len(self.sandboxes) + 2:a>20}".replace("0", "z").replace("1", "y").replace("8", "x"),
            "project_id": "prj" + "a" * 20,
            "state": "running",
            "reason": None,
            "message": None,
            "name": None,
            "metadata": {},
            "image": {"id": "img" + "a" * 20, "reference": "base", "digest": "sha256:00"},
            "created_at": _NOW,
        } | fields
        self.sandboxes[sandbox["id"]] = sandbox
        return sandbox

    def add_process(self, sandbox_id: str, **spec: Any) -> StubProcess:
        process = StubProcess(sandbox_id, {"id": "prc" + "b" * 20, "argv": ["scripted"]} | spec)
        self.processes[process.spec["id"]] = process
        return process

    def process_started(self) -> StubProcess:
        """Return the only process."""
        (process,) = self.processes.values()
        return process


@contextmanager
def running() -> Generator[StubApi, None]:
    """Serve a StubApi until the block is left."""
    api = StubApi()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.api = api
        api.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield api
        finally:
            for process in api.processes.values():
                if process.exit is None:
                    process.end(137, "sandbox_stopped")
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    api: StubApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle of an answer: that is what they are here for."""


class _BreakError(Exception):
    """Close the connection now."""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            while (request := self._read_request()) is not None:
                self._serve(request)
        except (_BreakError, OSError):
            # A reset, where the system allows one: the client must not take it for an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    @property
    def api(self) -> StubApi:
        return cast("_Server", self.server).api

    def _read_request(self) -> Request | None:
        first = self.rfile.readline().decode()
        if not first.strip():
            return None
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        return Request(method, unquote(parts.path), parse_qs(parts.query), headers, body)

    def _serve(self, request: Request) -> None:
        fault = self.api.take_fault(request) or Fault("")
        if fault.drop == "before":
            raise _BreakError
        if fault.status is not None:
            self._answer(fault.status, fault.problem, fault)
        elif request.headers.get("authorization") != f"Bearer {self.api.key}":
            self._answer(401, _problem(401, "unauthenticated", reason="unknown"), fault)
        elif request.path.endswith("/output"):
            self._stream(request)
        else:
            status, body = _route(self.api, request)
            if fault.drop == "after":
                raise _BreakError
            self._answer(status, body, fault)

    def _answer(self, status: int, body: Any, fault: Fault) -> None:
        is_problem = isinstance(body, dict) and "code" in body and status >= 400
        kind = "application/problem+json" if is_problem else "application/json" if body is not None else "text/plain"
        data = b"" if status == 204 else b"upstream failed" if body is None else json.dumps(body).encode()
        if fault.spaces_first:
            data = b" " + data
        head = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(data)}", f"Content-Type: {kind}"]
        head += [
            f"{name}: {value}" for name, value in ({"Sandlot-Request-Id": "req" + "a" * 20} | fault.headers).items()
        ]
        self.wfile.write("\r\n".join([*head, "", ""]).encode())
        if fault.spaces_first:
            self.wfile.flush()
        if fault.cut_body is not None:
            self.wfile.write(data[: fault.cut_body])
            raise _BreakError
        self.wfile.write(data)

    def _stream(self, request: Request) -> None:
        process = self.api.processes[request.path.split("/")[-2]]
        after = int(request.value("after", "0"))
        if "tail_bytes" in request.query:
            after = max(process.lost_bytes, process.length - int(request.value("tail_bytes")))
        as_lines = request.headers.get("accept") == "application/x-ndjson"
        kind = "application/x-ndjson" if as_lines else "application/vnd.sandlot.frames"
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        left = self.api.cuts.pop(0) if self.api.cuts else None
        frames = process.frames(after, follow=request.value("follow") == "true", frame_bytes=self.api.frame_bytes)
        position = after
        for frame in frames:
            data = _render(frame, position, as_lines=as_lines)
            position = frame.next_seq if isinstance(frame, Frame) else position
            cut = data if left is None else data[:left]
            if cut:
                self.wfile.write(f"{len(cut):x}\r\n".encode() + cut + b"\r\n")
            if left is not None:
                left -= len(cut)
                if left == 0:
                    break
        if left == 0 and not self.api.clean_end_after_cut:
            raise _BreakError
        self.wfile.write(b"0\r\n\r\n")


def _render(frame: Frame | dict[str, Any], position: int, *, as_lines: bool) -> bytes:
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


def _problem(status: int, code: str, **members: Any) -> dict[str, Any]:
    return {
        "type": f"/errors/{code}",
        "title": code,
        "status": status,
        "detail": f"stub says {code}",
        "code": code,
        "hint": "Ask the stub.",
        "retryable": False,
        "request_id": "req" + "a" * 20,
    } | members


Answer = tuple[int, Any]


def _route(api: StubApi, request: Request) -> Answer:
    match [request.method, *request.path.strip("/").split("/")[1:]]:
        case ["GET", "me"]:
            return 200, {"version": "stub"}
        case ["POST", "sandboxes"]:
            return _create(api, request)
        case ["GET", "sandboxes"]:
            return _list(api, request)
        case [_, "sandboxes", sandbox_id, *rest]:
            sandbox = api.sandboxes.get(sandbox_id)
            if sandbox is None:
                return 404, _problem(404, "sandbox_not_found")
            return _sandbox_route(api, request, sandbox, rest)
        case _:
            return 404, _problem(404, "route_not_found")


def _create(api: StubApi, request: Request) -> Answer:
    key = request.headers.get("idempotency-key", "")
    if key in api.created_by_key:
        return 201, api.sandboxes[api.created_by_key[key]]
    spec = request.json
    state = "starting" if api.settles_after else "running"
    sandbox = api.add_sandbox(state=state, name=spec.get("name"), metadata=spec.get("metadata", {}))
    if key:
        api.created_by_key[key] = sandbox["id"]
    return 201, sandbox | {"access": {"url": None, "token": "secret-token"}}


def _list(api: StubApi, request: Request) -> Answer:
    start = int(request.value("cursor", "0"))
    shown = [
        one
        for one in api.sandboxes.values()
        if "stopped" in request.query.get("state", []) or one["state"] == "running"
    ]
    page = shown[start : start + 2]
    return 200, {"items": page, "next_cursor": str(start + 2) if len(shown) > start + 2 else None}


def _sandbox_route(api: StubApi, request: Request, sandbox: dict[str, Any], rest: list[str]) -> Answer:
    match [request.method, *rest]:
        case ["GET"]:
            if sandbox["state"] == "starting":
                api.settles_after -= 1
                if api.settles_after <= 0:
                    sandbox["state"] = "running"
            return 200, sandbox
        case ["DELETE"]:
            sandbox |= {"state": "stopped", "reason": "requested"}
            return 200, sandbox
        case ["POST", "extend"]:
            return 200, sandbox
        case _ if sandbox["state"] in {"stopped", "failed"}:
            return 410, _problem(410, "sandbox_ended", reason=sandbox["reason"], state=sandbox["state"])
        case _:
            return _inside_route(api, request, sandbox["id"], rest)


def _inside_route(api: StubApi, request: Request, sandbox_id: str, rest: list[str]) -> Answer:
    match [request.method, *rest]:
        case ["POST", "run"]:
            return 200, _start(api, request, sandbox_id).result()
        case ["POST", "processes"]:
            return 201, _start(api, request, sandbox_id).describe()
        case ["GET", "processes"]:
            return 200, {"items": [one.describe() for one in api.processes.values()], "next_cursor": None}
        case [_, "processes", process_id, *verb]:
            process = api.processes.get(process_id)
            if process is None:
                return 404, _problem(404, "process_not_found")
            return _process_route(api, request, process, verb)
        case _:
            return 404, _problem(404, "route_not_found")


def _start(api: StubApi, request: Request, sandbox_id: str) -> StubProcess:
    spec = request.json
    if spec["id"] not in api.processes:
        api.starts += 1
        process = StubProcess(sandbox_id, spec)
        if "input" in spec:
            process.stdin += spec["input"].encode()
        api.processes[spec["id"]] = process
        process.begin()
        if api.on_start is not None:
            api.on_start(process)
    return api.processes[spec["id"]]


def _process_route(api: StubApi, request: Request, process: StubProcess, verb: list[str]) -> Answer:
    match [request.method, *verb]:
        case ["GET"]:
            return 200, process.describe()
        case ["GET", "result"]:
            if float(request.value("wait_seconds", "0")) > 0:
                with process.changed:
                    process.changed.wait_for(lambda: process.exit is not None)
            return 200, process.result()
        case ["POST", "signal"]:
            if process.exit is not None:
                return 409, _problem(409, "process_ended", exit_code=process.exit["exit_code"])
            process.signals.append(request.json["signal"])
            if process.argv != ["stubborn"]:
                process.end(130, "signaled", signal=request.json["signal"])
            return 204, None
        case ["POST", "stdin"]:
            return _stdin(api, request, process)
        case _:
            return 404, _problem(404, "route_not_found")


def _stdin(api: StubApi, request: Request, process: StubProcess) -> Answer:
    if process.exit is not None:
        return 409, _problem(409, "process_ended", exit_code=process.exit["exit_code"])
    offset = int(request.value("offset", str(len(process.stdin))))
    if offset > len(process.stdin):
        return 409, _problem(409, "stdin_gap", offset=len(process.stdin))
    if process.stdin_closed and offset + len(request.body) > len(process.stdin):
        return 409, _problem(409, "stdin_closed")
    close = request.value("close") == "true"
    reached = process.feed(offset, request.body, close=close, limit=api.stdin_limit)
    return 200, {"offset": reached, "closed": process.stdin_closed}
