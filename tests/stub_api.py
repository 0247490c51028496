"""A Sandlot API that exists only to fail: a real HTTP server on loopback whose faults are written down beforehand.

It keeps the rules a client leans on (joining by process id, offsets of stdin, positions of output, idempotency keys),
refuses what the API would, and breaks connections exactly where a test says.
"""

import base64
import json
import queue
import socket
import socketserver
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from sandboxd.contract.frames import Frame
from stub_files import StubFiles
from stub_process import StubProcess, render
from stub_routes import route
from stub_sockets import StubSocket, attach, dial
from stub_state import StubApi
from stub_strict import violations
from stub_wire import BreakError, Fault, Raw, Request, problem

__all__ = ["Fault", "Request", "StubApi", "StubFiles", "StubProcess", "running"]

_STREAMS = ("/output", "/watch", "/logs", "/egress/decisions")


@contextmanager
def running(*, lenient: bool = False) -> Generator[StubApi, None]:
    """Serve a StubApi until the block is left. Fails at its end if the client asked for what no API would take."""
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
            for files in api.files.values():
                for watch in files.watches:
                    watch.put(None)
            server.shutdown()
            thread.join()
    assert lenient or not api.violations, api.violations


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    api: StubApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle of an answer: that is what they are here for."""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            while (request := self._read_head()) is not None:
                if not self._serve(request):
                    return
        except (BreakError, OSError):
            # A reset, where the system allows one: the client must not take it for an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    @property
    def api(self) -> StubApi:
        return cast("_Server", self.server).api

    def _read_head(self) -> Request | None:
        first = self.rfile.readline(65_536).decode(errors="replace")
        if not first.strip():
            return None
        if not first.endswith(("HTTP/1.1\r\n", "HTTP/1.0\r\n")):
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return None
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        return Request(method, unquote(parts.path), query, headers, raw_path=parts.path)

    def _read_body(self, request: Request, fault: Fault) -> None:
        left = fault.cut_input
        for data in self._pieces(request):
            request.body += data
            if left is not None and len(request.body) >= left:
                raise BreakError

    def _pieces(self, request: Request) -> Iterator[bytes]:
        if request.headers.get("transfer-encoding") != "chunked":
            left = int(request.headers.get("content-length", "0"))
            while left > 0:
                data = self.rfile.read1(left)
                if not data:
                    raise BreakError
                left -= len(data)
                yield data
            return
        while (size := int(self.rfile.readline(), 16)) > 0:
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _serve(self, request: Request) -> bool:
        """Answer, and tell whether the connection goes on."""
        fault = self.api.take_fault(request) or Fault("")
        self._read_body(request, fault)
        if fault.drop == "before":
            raise BreakError
        if fault.status is not None:
            self._answer(fault.status, fault.problem, fault)
        elif request.headers.get("authorization") not in {
            f"Bearer {one}" for one in (self.api.key, (self.api.access or {}).get("token"))
        }:
            self._answer(401, problem(401, "unauthenticated", reason="unknown"), fault)
        elif wrong := violations(request):
            self.api.violations += wrong
            self._answer(422, problem(422, "invalid_request", detail="; ".join(wrong)), fault)
        elif request.headers.get("upgrade") == "websocket":
            return self._socket(request, fault)
        elif request.path.endswith(_STREAMS):
            self._stream(request)
        else:
            status, body = route(self.api, request)
            if fault.drop == "after":
                raise BreakError
            self._answer(status, body, fault)
        return True

    def _answer(self, status: int, body: Any, fault: Fault) -> None:
        raw = _rendered(status, body)
        data = b" " + raw.data if fault.spaces_first else raw.data
        head = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(data)}", f"Content-Type: {raw.kind}"]
        more = {"Sandlot-Request-Id": "req" + "a" * 20} | raw.headers | fault.headers
        head += [f"{name}: {value}" for name, value in more.items()]
        self.wfile.write("\r\n".join([*head, "", ""]).encode())
        if fault.spaces_first:
            self.wfile.flush()
        left = fault.cut_body if fault.cut_body is not None else self.api.take_cut() if isinstance(body, Raw) else None
        if left is not None and left < len(data):
            self.wfile.write(data[:left])
            raise BreakError
        self.wfile.write(data)

    def _socket(self, request: Request, fault: Fault) -> bool:
        *_, sandbox_id, area = request.path.split("/")[:5]
        sandbox = self.api.sandboxes.get(sandbox_id)
        process = self.api.processes.get(request.path.split("/")[-2])
        if sandbox is None or (area == "processes" and process is None):
            self._answer(404, problem(404, "process_not_found" if sandbox else "sandbox_not_found"), fault)
            return True
        if sandbox["state"] != "running":
            self._answer(410, problem(410, "sandbox_ended", reason=sandbox["reason"], state=sandbox["state"]), fault)
            return True
        ws = StubSocket(self.api, request, self.connection, self.rfile)
        if process is not None:
            attach(self.api, request, ws, process)
        else:
            dial(self.api, request, ws)
        return False

    def _stream(self, request: Request) -> None:
        as_lines = request.headers.get("accept") == "application/x-ndjson"
        kind = "application/x-ndjson" if as_lines else "application/vnd.sandlot.frames"
        kind = "application/json" if request.path.endswith("/decisions") and not as_lines else kind
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        left = self.api.take_cut()
        for data in self._parts(request, as_lines=as_lines):
            cut = data if left is None else data[:left]
            if cut:
                self.wfile.write(f"{len(cut):x}\r\n".encode() + cut + b"\r\n")
            if left is not None:
                left -= len(cut)
                if left == 0:
                    break
        if left == 0 and not self.api.clean_end_after_cut:
            raise BreakError
        self.wfile.write(b"0\r\n\r\n")

    def _parts(self, request: Request, *, as_lines: bool) -> Iterator[bytes]:
        if request.path.endswith("/watch"):
            return _changes(self.api.files[request.path.split("/")[3]])
        if request.path.endswith("/logs"):
            return _logs(self.api, request)
        if request.path.endswith("/egress/decisions"):
            return _decisions(self.api, request, as_lines=as_lines)
        return self._output(request, as_lines=as_lines)

    def _output(self, request: Request, *, as_lines: bool) -> Iterator[bytes]:
        process = self.api.processes[request.path.split("/")[-2]]
        after = int(request.value("after", "0"))
        if "tail_bytes" in request.query:
            after = max(process.lost_bytes, process.length - int(request.value("tail_bytes")))
        position = after
        for frame in process.frames(after, follow=request.is_set("follow"), frame_bytes=self.api.frame_bytes):
            yield render(frame, position, as_lines=as_lines)
            position = frame.next_seq if isinstance(frame, Frame) else position


def _rendered(status: int, body: Any) -> Raw:
    if isinstance(body, Raw):
        return body
    if body is None:
        return Raw(b"" if status == 204 else b"upstream failed", kind="text/plain")
    is_problem = "code" in body and status >= 400
    return Raw(json.dumps(body).encode(), kind="application/problem+json" if is_problem else "application/json")


def _changes(files: StubFiles) -> Iterator[bytes]:
    watch: queue.Queue[dict[str, Any] | None] = queue.Queue()
    files.watches.append(watch)
    yield b'{"kind":"ready"}\n'
    while (event := watch.get()) is not None:
        yield json.dumps(_wire_path(event)).encode() + b"\n"


def _wire_path(event: dict[str, Any]) -> dict[str, Any]:
    """Name a path that is not text as the API does."""
    try:
        event["path"].encode()
    except UnicodeEncodeError:
        raw = event["path"].encode(errors="surrogateescape")
        return {**event, "path": None, "path_base64": base64.b64encode(raw).decode()}
    return event


def _decisions(api: StubApi, request: Request, *, as_lines: bool) -> Iterator[bytes]:
    after, verdict = request.value("after"), request.value("verdict")
    found = [row for row in api.decisions if not verdict or row["verdict"] == verdict]
    begin = next((place + 1 for place, row in enumerate(found) if row["cursor"] == after), 0)
    rows = found[begin:]
    if as_lines:
        yield from (json.dumps(row).encode() + b"\n" for row in rows)
        return
    page = rows[:2]
    yield json.dumps({"items": page, "next_cursor": page[-1]["cursor"] if len(rows) > 2 else None}).encode()


def _logs(api: StubApi, request: Request) -> Iterator[bytes]:
    after = request.value("after")
    seen = not after
    for line in api.logs:
        if seen and request.value("process_id", line["process_id"]) == line["process_id"]:
            yield json.dumps(line).encode() + b"\n"
        seen = seen or line["cursor"] == after
