"""Servers of a test's own internet: packages, a git repository, a download without end, a database's greeting."""

import io
import os
import socket
import ssl
import struct
import subprocess
import threading
import zipfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from network_world import World

WHEEL: Final = "thing-1.0-py3-none-any.whl"
_PIECE: Final = bytes(4096)


@dataclass(frozen=True, slots=True)
class Internet:
    """What is served, whatever address is asked: 80, 443 and 5432."""

    directory: Path
    tls: ssl.SSLContext

    @contextmanager
    def serving(self, pin: Path) -> Generator[None]:
        _repository(self.directory)
        with ExitStack() as undo:
            over = threading.Event()
            for port in (80, 443, 5432):
                listening = World.do(pin, lambda port=port: socket.create_server(("", port)))
                undo.enter_context(listening)
                listening.settimeout(0.1)
                thread = threading.Thread(target=self._accept, args=(listening, port, over))
                undo.callback(thread.join)
                thread.start()
            undo.callback(over.set)
            yield

    def _accept(self, listening: socket.socket, port: int, over: threading.Event) -> None:
        served: list[threading.Thread] = []
        while not over.is_set():
            with suppress(TimeoutError):
                connection, _ = listening.accept()
                connection.settimeout(10)
                served.append(threading.Thread(target=self._serve, args=(connection, port, over)))
                served[-1].start()
        for thread in served:
            thread.join()

    def _serve(self, connection: socket.socket, port: int, over: threading.Event) -> None:
        with connection, suppress(OSError, EOFError):
            if port == 5432:
                _database(connection)
                return
            with self.tls.wrap_socket(connection, server_side=True) if port == 443 else connection as plain:
                _Web(plain, self.directory, over)


def certificate(directory: Path, name: str) -> ssl.SSLContext:
    """Return what a server shows that nobody has vouched for."""
    key, shown = directory / "key.pem", directory / "shown.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"]
    argv = ["openssl", "req", "-x509", *options, "-keyout", str(key), "-out", str(shown)]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown, key)
    return context


class _Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def __init__(self, connection: socket.socket, directory: Path, over: threading.Event) -> None:
        self.directory, self.over = directory, over
        super().__init__(connection, connection.getpeername(), None)  # pyright: ignore[reportArgumentType] - unused

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - their names
        """Nobody reads it."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith("/git/"):
            self._git(path, query)
        elif path == "/simple/thing/":
            self._say(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
        elif path == f"/files/{WHEEL}":
            self._say(_wheel(), "application/zip")
        elif path == "/endless":
            self._endless()
        else:
            self._say(b"hello", "text/plain")

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        self._git(path, query)

    def _say(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.over.wait(0.01):
            self.wfile.write(_PIECE)

    def _git(self, path: str, query: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "http-backend"], input=body, env=env, capture_output=True, check=True
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        status = next((line[8:11] for line in head.split(b"\r\n") if line.startswith(b"Status:")), b"200")
        self.wfile.write(b"HTTP/1.0 " + status + b" Said\r\n" + head + b"\r\n\r\n" + answer)


def _wheel() -> bytes:
    made = io.BytesIO()
    information = "thing-1.0.dist-info"
    with zipfile.ZipFile(made, "w") as wheel:
        wheel.writestr("thing.py", "WORD = 'installed'\n")
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "thing.py,,\n")
    return made.getvalue()


def _repository(directory: Path) -> None:
    work = directory / "work"
    identity = ["-c", "user.name=a", "-c", "user.email=a@test"]
    work.mkdir(parents=True)
    (work / "word").write_text("cloned\n")
    for arguments in (["init", "-q"], ["add", "word"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], cwd=work, check=True)
    (directory / "git").mkdir()
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(directory / "git" / "one.git")], check=True)


def _database(connection: socket.socket) -> None:
    """Greet as PostgreSQL does a client that asks for TLS first, and answer one query."""
    _start(connection)
    connection.sendall(b"N")
    _start(connection)
    connection.sendall(_message(b"R", struct.pack(">I", 0)) + _message(b"Z", b"I"))
    kind = _exactly(connection, 1)
    query = _exactly(connection, struct.unpack(">I", _exactly(connection, 4))[0] - 4)
    if kind == b"Q" and query == b"SELECT 1\0":
        column = b"one\0" + struct.pack(">IhIhih", 0, 0, 23, 4, -1, 0)
        connection.sendall(_message(b"T", struct.pack(">h", 1) + column))
        connection.sendall(_message(b"D", struct.pack(">hI", 1, 1) + b"1"))
        connection.sendall(_message(b"C", b"SELECT 1\0") + _message(b"Z", b"I"))
    connection.recv(64)


def _start(connection: socket.socket) -> bytes:
    return _exactly(connection, struct.unpack(">I", _exactly(connection, 4))[0] - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
