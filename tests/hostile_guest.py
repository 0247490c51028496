"""A guest that was taken over: speaks the protocol where it must, and lies wherever a test tells it to.

`HostileGuest.lie(call, script)` replaces the answer to one call, e.g. "GET health", "POST processes?follow",
"GET processes/*/output". A script writes raw bytes. Everything else is answered as an honest guest would.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from sandboxd.contract.frames import MEDIA_TYPE, Frame, FrameKind, encode, encode_json

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


class HostileGuest:
    """One server of lies; counts what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: Counter[str] = Counter()
        self.takes_no_input = False
        self._lies: dict[str, Script] = {}
        self._connections: set[asyncio.Task[None]] = set()

    def lie(self, call: str, script: Script) -> None:
        self._lies[call] = script

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator["HostileGuest"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await self._take_body(head, reader)
                call, process_id = _call_of(head)
                self.requests[call] += 1
                script = self._lies.get(call, honest(call, process_id))
                await script(writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _take_body(self, head: str, reader: asyncio.StreamReader) -> None:
        fields = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in head.split("\r\n"))}
        await reader.readexactly(int(fields.get("content-length", 0)))
        if fields.get("transfer-encoding") == "chunked" and not self.takes_no_input:
            while (await reader.readuntil(b"\r\n")) != b"0\r\n":
                await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")


def _call_of(head: str) -> tuple[str, str]:
    method, target = head.split(" ", 2)[:2]
    path, _, query = target.partition("?")
    parts = path.removeprefix("/v1/").split("/")
    process_id = parts[1] if len(parts) > 1 else ""
    if process_id:
        parts[1] = "*"
    return f"{method} {'/'.join(parts)}" + ("?follow" if "follow=1" in query and len(parts) == 1 else ""), process_id


def honest(call: str, process_id: str = "") -> Script:
    """What a guest with one process that printed `hello` and ended would say."""
    answers: dict[str, Script] = {
        "GET health": body({"version": "h", "protocol": 1, "initialized": True, "processes_running": 0}),
        "POST init": body({"user": "root", "uid": 0, "gid": 0, "home": "/", "cwd": "/", "shell": None, "version": "h"}),
        "POST processes": body(record(process_id or PROCESS), status=201),
        "POST processes?follow": frames(attached(PROCESS), *whole_output()),
        "GET processes": body({"items": [record(PROCESS)]}),
        "GET processes/*/output": frames(*whole_output()),
        "GET processes/*/head": frames(stdout(0, b"hello\n")),
        "POST processes/*/stdin": body({"offset": 0, "closed": False}),
        "POST shutdown": body({"ended": 0}),
    }
    return answers.get(call) or body(record(process_id or PROCESS))


PROCESS: Final = "prc" + "c" * 20


def record(process_id: str = PROCESS, **changes: Any) -> dict[str, Any]:
    honest_record: dict[str, Any] = {
        "id": process_id, "argv": ["echo", "hello"], "cwd": "/", "user": "root", "uid": 0, "gid": 0, "tty": None,
        "tag": None, "pid": 7, "state": "ended", "exit_code": 0, "signal": None, "reason": "exited", "message": None,
        "start_error": None, "timeout_seconds": None, "started_at": "2026-11-22T10:59:00.000Z",
        "ended_at": "2026-11-22T10:59:01.000Z", "duration_seconds": 1.0, "cpu_used_seconds": 0.0,
        "peak_memory_bytes": 0, "first_seq": 0, "next_seq": 6, "stdout_bytes": 6, "stderr_bytes": 0,
        "stdin_offset": 0, "stdin_closed": True,
    }  # fmt: skip
    return honest_record | changes


def exit_fields(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "exit_code": 0, "signal": None, "reason": "exited", "message": None, "start_error": None,
        "duration_seconds": 0.5,
    }  # fmt: skip
    return fields | changes


def attached(process_id: str = PROCESS, **changes: Any) -> bytes:
    state = {"state": "running", "exit_code": None, "reason": None, "ended_at": None}
    return encode_json(FrameKind.ATTACHED, 0, record(process_id, **(state | changes)))


def stdout(seq: int, data: bytes, time_us: int = 0) -> bytes:
    return encode(Frame(FrameKind.STDOUT, seq, data, time_us))


def exit_frame(seq: int, **changes: Any) -> bytes:
    return encode_json(FrameKind.EXIT, seq, exit_fields(**changes))


def whole_output() -> tuple[bytes, ...]:
    return stdout(0, b"hello\n"), exit_frame(6)


def raw(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return script


def then_close(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return script


def then_silence(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.Event().wait()

    return script


def trickle(data: bytes, piece: bytes) -> Script:
    """Send `data`, then `piece` for ever, a little at a time."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return script


def flood(data: bytes, piece: bytes) -> Script:
    """Send `data`, then `piece` for ever, as fast as it is taken."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        while True:
            writer.write(piece)
            await writer.drain()

    return script


def head(status: int = 200, *fields: str, content_type: str = "application/json") -> bytes:
    rows = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", *fields, "", ""]
    return "\r\n".join(rows).encode()


def body(value: Any, status: int = 200) -> Script:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return raw(head(status, f"Content-Length: {len(data)}") + data)


def frames(*parts: bytes) -> Script:
    """Answer with a whole, chunked body."""
    return raw(open_frames(*parts) + b"0\r\n\r\n")


def open_frames(*parts: bytes) -> bytes:
    """The beginning of a chunked body of frames that goes on."""
    start = head(200, "Transfer-Encoding: chunked", content_type=MEDIA_TYPE)
    return start + b"".join(map(chunk, parts))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def switched(*parts: bytes) -> bytes:
    """The answer that turns a connection into a stream, and what comes first on it."""
    return b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + b"".join(parts)


ANSWERS: Final[dict[str, Script]] = {
    "nothing, then closed": then_close(b""),
    "silence": then_silence(b""),
    "no HTTP": then_close(b"SSH-2.0-hello\r\n\r\n"),
    "half a status line": then_silence(b"HTTP/1."),
    "impossible status": then_close(b"HTTP/1.1 999999 X\r\n\r\n"),
    "a giant header": flood(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65_536),
    "headers without end": flood(b"HTTP/1.1 200 OK\r\n", b"X: aaaa\r\n" * 1000),
    "headers one byte at a time": trickle(b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "interim answers without end": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "answers without end": flood(b"", (head(200, "Content-Length: 2") + b"[]") * 1000),
    "a redirect": raw(head(302, "Location: http://127.0.0.1:1/", "Content-Length: 0")),
    "a body without end": flood(head(200), b" " * 65_536),
    "a chunked body without end": flood(head(200, "Transfer-Encoding: chunked"), chunk(b" " * 65_536)),
    "a body one byte at a time": trickle(head(200), b" "),
    "a body that never comes": then_silence(head(200, "Content-Length: 100")),
    "a body cut short": then_close(head(200, "Content-Length: 100") + b"{}"),
    "a broken chunk": then_close(head(200, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n"),
    "a giant chunk size": then_close(head(200, "Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n{}"),
    "trailers without end": flood(head(200, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n", b"X: aaaa\r\n" * 1000),
    "two lengths": then_close(head(200, "Content-Length: 2", "Content-Length: 3") + b"{}"),
    "a negative length": then_close(head(200, "Content-Length: -2") + b"{}"),
    "packed": raw(head(200, "Content-Encoding: gzip", "Content-Length: 2") + b"{}"),
    "no JSON": body(b"nonsense"),
    "an empty body": body(b""),
    "no object": body([]),
    "an empty object": body({}),
    "not UTF-8": body(b'{"version":"\xff"}'),
    "NaN": body(b'{"version":"h","protocol":1,"initialized":true,"processes_running":NaN}'),
    "a huge integer": body(b'{"protocol":' + b"9" * 500_000 + b"}"),
    "deep nesting": body(b"[" * 500_000),
    "deep objects": body(b'{"a":' * 100_000),
    "a lone surrogate": body(b'{"version":"\\ud800"}'),
    "wrong types": body({"version": [], "protocol": "1", "id": 7, "items": {}, "offset": "0"}),
    "switching protocols": raw(b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "an unknown error": body({"code": "boom", "message": "x"}, 500),
    "an error that is none of ours": body({"code": "sandbox_ended", "message": "x"}, 410),
    "an error without message": body({"code": "process_not_found"}, 404),
    "an error with a giant body": flood(head(500), b"x" * 65_536),
    "an error with wrong members": body({"code": "stdin_gap", "message": "x", "offset": "all"}, 409),
}
"""Lies that no call may believe."""

_LONG: Final = b"x" * 65_536

STREAMS: Final[dict[str, Script]] = {
    "wrong media type": body(b"hello"),
    "no frames": frames(b"this is no frame at all, but a text of some length"),
    "a giant frame": raw(open_frames(b"\x01\0\0\0\xff\xff\xff\xff" + bytes(16))),
    "a seq that jumps": frames(stdout(0, b"a"), stdout(5, b"b"), exit_frame(6)),
    "a seq that goes back": frames(stdout(0, b"abc"), stdout(1, b"b"), exit_frame(2)),
    "a seq beyond everything": frames(stdout(2**64 - 1, b"a")),
    "an empty frame": frames(stdout(0, b""), exit_frame(0)),
    "an unknown kind": frames(encode(Frame(0x33, 0, b"x"))),
    "an input kind": frames(encode(Frame(FrameKind.STDIN, 0, b"x"))),
    "flags": frames(b"\x01\x01\0\0\0\0\0\x01" + bytes(16) + b"x"),
    "an impossible time": frames(stdout(0, b"a", 2**63 - 1)),
    "a negative time": frames(stdout(0, b"a", -1)),
    "lost without a number": frames(encode_json(FrameKind.LOST, 0, {"lost_bytes": "many"})),
    "lost nothing": frames(encode_json(FrameKind.LOST, 0, {"lost_bytes": 0})),
    "lost less than nothing": frames(encode_json(FrameKind.LOST, 0, {"lost_bytes": -5})),
    "lost everything": frames(encode_json(FrameKind.LOST, 0, {"lost_bytes": 2**70})),
    "a keep-alive elsewhere": frames(encode(Frame(FrameKind.KEEPALIVE, 9))),
    "two exits": frames(exit_frame(0), exit_frame(0)),
    "output behind the exit": frames(exit_frame(0) + stdout(0, b"a")),
    "an exit elsewhere": frames(exit_frame(7)),
    "an exit that is no JSON": frames(encode(Frame(FrameKind.EXIT, 0, b"\xff\xfe"))),
    "an exit with NaN": frames(encode(Frame(FrameKind.EXIT, 0, b'{"exit_code":NaN,"reason":"exited"}'))),
    "an exit nested deep": frames(encode(Frame(FrameKind.EXIT, 0, b"[" * 60_000))),
    "a giant exit code": frames(exit_frame(0, exit_code=10**30)),
    "a killed process with code 0": frames(exit_frame(0, exit_code=0, reason="killed")),
    "an unknown reason": frames(exit_frame(0, reason="because")),
    "a giant message": frames(exit_frame(0, message="x" * 60_000)),
    "a bad chunk": then_close(open_frames(stdout(0, b"a")) + b"zz\r\n"),
    "another process attached": frames(attached("prc" + "z" * 20), *whole_output()),
    "attached twice": frames(attached(), attached(), *whole_output()),
}
"""Streams that no reader may believe: a lie at once."""

SILENCES: Final[dict[str, Script]] = {
    "no exit": frames(stdout(0, b"hello\n")),
    "cut inside a frame": then_close(open_frames(stdout(0, b"hello\n")[:-2])),
    "no frame at all": frames(b""),
    "a frame that never ends": then_silence(open_frames(stdout(0, _LONG)[:-1])),
    "a frame one byte at a time": trickle(open_frames(stdout(0, _LONG)[:24]), chunk(b"x")),
    "silence after a frame": then_silence(open_frames(stdout(0, b"hello\n"))),
}
"""Streams that break off or fall silent."""
