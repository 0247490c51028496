"""Streams that begin as a request to a guest: an attachment to a process, a connection to a port inside."""

import json
import socket
from collections.abc import Callable
from typing import Any, Self

from guest_kit import WITHIN, RawGuest
from sandboxd.contract.frames import OUTPUT_KINDS, Decoder, Frame, FrameKind, encode

ATTACH = "sandlot.process.v1"
DIAL = "sandlot.tcp.v1"


class RefusedError(Exception):
    """The guest answered with a problem."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.code = str(body["code"])
        self.body = body


def upgraded(guest: RawGuest, path: str, protocol: str) -> tuple[socket.socket, bytes]:
    """Turn a connection into a stream; it, and what came behind the answer's head."""
    link = socket.create_connection((guest.host, guest.port), timeout=WITHIN)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = (
        f"GET /v1/{path} HTTP/1.1",
        f"Host: {guest.host}",
        f"Authorization: Bearer {guest.token}",
        "Connection: Upgrade",
        f"Upgrade: {protocol}",
    )
    link.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    seen = b""
    while b"\r\n\r\n" not in seen:
        data = link.recv(65_536)
        assert data, seen
        seen += data
    head, rest = seen.split(b"\r\n\r\n", 1)
    status = int(head.split()[1])
    if status != 101:
        while not rest.endswith(b"\n"):
            rest += link.recv(65_536)
        link.close()
        raise RefusedError(status, json.loads(rest))
    return link, rest


class Attached:
    """An attachment to one process."""

    def __init__(self, guest: RawGuest, process: str, query: str = "") -> None:
        self.link, early = upgraded(guest, f"processes/{process}/attach?{query}", ATTACH)
        self._decoder = Decoder()
        self.frames = list(self._decoder.feed(early))
        self.until(bool)
        assert self.frames[0].kind == FrameKind.ATTACHED
        self.process: dict[str, Any] = self.frames[0].json()
        self.offset: int = self.process["stdin_offset"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def until(self, check: Callable[[list[Frame]], object]) -> list[Frame]:
        """Read on until the frames so far pass."""
        while not check(self.frames):
            data = self.link.recv(65_536)
            assert data, f"the stream ended: {self.frames[-3:]}"
            self.frames.extend(self._decoder.feed(data))
        return self.frames

    def until_text(self, text: bytes) -> None:
        self.until(lambda _: text in self.text)

    def rest(self) -> dict[str, Any]:
        """Read to the end; how the process ended."""
        while data := self.link.recv(65_536):
            self.frames.extend(self._decoder.feed(data))
        self._decoder.finish()
        assert self.frames[-1].kind == FrameKind.EXIT, self.frames[-3:]
        return self.frames[-1].json()

    @property
    def text(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind in OUTPUT_KINDS)

    @property
    def acknowledged(self) -> int:
        seqs = [frame.seq for frame in self.frames if frame.kind == FrameKind.STDIN_ACK]
        assert seqs == sorted(set(seqs))
        return max(seqs, default=self.process["stdin_offset"])

    @property
    def problems(self) -> list[str]:
        return [frame.json()["code"] for frame in self.frames if frame.kind == FrameKind.ERROR]

    def send(self, kind: int, payload: bytes = b"", seq: int = 0) -> None:
        self.link.sendall(encode(Frame(kind, seq, payload)))

    def type(self, data: bytes) -> None:
        """Send standard input behind what was sent before."""
        self.send(FrameKind.STDIN, data, self.offset)
        self.offset += len(data)

    def end(self) -> None:
        self.send(FrameKind.STDIN_CLOSE, seq=self.offset)

    def resize(self, rows: int, cols: int) -> None:
        self.send(FrameKind.RESIZE, json.dumps({"rows": rows, "cols": cols}).encode())

    def signal(self, name: str, scope: str = "tree") -> None:
        self.send(FrameKind.SIGNAL, json.dumps({"signal": name, "scope": scope}).encode())
