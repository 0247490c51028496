"""The WebSockets of the stub: attachments, and connections to ports. They break after any byte, either way."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedIOBase
from typing import Any

from websockets.frames import Frame as SocketFrame
from websockets.frames import Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json
from stub_process import StubProcess, render
from stub_state import StubApi
from stub_wire import BreakError, Request, problem

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEADER = 24


class StubSocket:
    """The server's end of one WebSocket."""

    def __init__(self, api: StubApi, request: Request, connection: socket.socket, rfile: BufferedIOBase) -> None:
        self._connection = connection
        self._rfile = rfile
        self._protocol = Protocol(SERVER, state=OPEN)
        self._lock = threading.Lock()
        self._left = api.take_cut()
        with api.lock:
            self._input_left = api.input_cuts.pop(0) if api.input_cuts else None
        key = request.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest()).decode()  # noqa: S324 - RFC 6455 says so
        chosen = request.headers["sec-websocket-protocol"]
        head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        head += [f"Sec-WebSocket-Accept: {accept}", f"Sec-WebSocket-Protocol: {chosen}", "", ""]
        connection.sendall("\r\n".join(head).encode())

    def send(self, data: bytes | str) -> None:
        with self._lock:
            if self._protocol.state is not OPEN:
                raise BreakError
            if isinstance(data, str):
                self._protocol.send_text(data.encode())
            else:
                self._protocol.send_binary(data)
            self._flush()

    def close(self, code: int) -> None:
        with self._lock:
            self._protocol.send_close(code)
            self._flush()

    def messages(self) -> Iterator[bytes | str]:
        """Yield what the client sends until it closes; a break is BreakError."""
        while True:
            data = self._rfile.read1(65_536 if self._input_left is None else max(1, self._input_left))
            if not data:
                return
            with self._lock:
                self._protocol.receive_data(data)
                events = self._protocol.events_received()
                self._flush()
            for event in events:
                assert isinstance(event, SocketFrame)
                if event.opcode == Opcode.CLOSE:
                    return
                if event.opcode in {Opcode.TEXT, Opcode.BINARY}:
                    yield bytes(event.data).decode() if event.opcode == Opcode.TEXT else bytes(event.data)
            if self._input_left is not None:
                self._input_left -= len(data)
                if self._input_left <= 0:
                    self.abort()
                    raise BreakError

    def abort(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if self._left is not None:
                cut, self._left = data[: self._left], max(0, self._left - len(data))
                self._connection.sendall(cut)
                if not self._left:
                    self.abort()
                    raise BreakError
            elif data:
                self._connection.sendall(data)


def attach(api: StubApi, request: Request, ws: StubSocket, process: StubProcess) -> None:
    """Speak `sandlot.process.v1` until the process ends or the client goes."""
    if api.close_sockets_with:
        ws.close(api.close_sockets_with.pop(0))
        return
    after = int(request.value("after", "0"))
    if "tail_bytes" in request.query:
        after = max(process.lost_bytes, process.length - int(request.value("tail_bytes")))
    ws.send(encode_json(FrameKind.ATTACHED, 0, process.describe() | {"after": after}))
    gone = threading.Event()
    reader = threading.Thread(target=_listen, args=(process, ws, gone), daemon=True)
    reader.start()
    position = after
    for frame in process.frames(after, follow=True, frame_bytes=api.frame_bytes):
        if gone.is_set():
            break
        ws.send(render(frame, position, as_lines=False))
        position = frame.next_seq if isinstance(frame, Frame) else position
    else:
        ws.close(1000)
    reader.join(5)


def _listen(process: StubProcess, ws: StubSocket, gone: threading.Event) -> None:
    try:
        for message in ws.messages():
            assert isinstance(message, bytes)
            _obey(process, ws, message)
    except (BreakError, OSError):
        ws.abort()
    finally:
        gone.set()


def _obey(process: StubProcess, ws: StubSocket, message: bytes) -> None:
    kind, seq, payload = message[0], int.from_bytes(message[8:16]), message[_HEADER:]
    assert int.from_bytes(message[4:8]) == len(payload)
    if kind in {FrameKind.STDIN, FrameKind.STDIN_CLOSE}:
        if seq > len(process.stdin):
            _refuse(ws, problem(409, "stdin_gap", offset=len(process.stdin)))
        elif seq + len(payload) <= len(process.stdin) and process.stdin_closed:
            ws.send(encode(Frame(FrameKind.STDIN_ACK, len(process.stdin))))
        elif process.exit is not None:
            _refuse(ws, problem(409, "process_ended", exit_code=process.exit["exit_code"]))
        elif process.stdin_closed:
            _refuse(ws, problem(409, "stdin_closed"))
        else:
            reached = process.feed(seq, payload, close=kind == FrameKind.STDIN_CLOSE, limit=1 << 30)
            ws.send(encode(Frame(FrameKind.STDIN_ACK, reached)))
    elif kind == FrameKind.RESIZE:
        size = json.loads(payload)
        process.sizes.append((size["rows"], size["cols"]))
    else:
        _refuse(ws, problem(400, "malformed_request"))


def _refuse(ws: StubSocket, body: dict[str, Any]) -> None:
    ws.send(encode_json(FrameKind.ERROR, 0, body))


def dial(api: StubApi, request: Request, ws: StubSocket) -> None:
    """Speak `sandlot.tcp.v1` with a port of this machine in the place of one inside."""
    port = api.ports.get(int(request.value("port")))
    if port is None:
        ws.close(4502)
        return
    with socket.create_connection(("127.0.0.1", port)) as target:
        back = threading.Thread(target=_pump_back, args=(target, ws), daemon=True)
        back.start()
        with suppress(BreakError, OSError):
            for message in ws.messages():
                if isinstance(message, bytes):
                    target.sendall(message)
                else:
                    assert json.loads(message) == {"eof": True}
                    target.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        back.join(5)


def _pump_back(target: socket.socket, ws: StubSocket) -> None:
    with suppress(BreakError, OSError):
        while data := target.recv(65_536):
            ws.send(data)
        ws.send('{"eof":true}')
