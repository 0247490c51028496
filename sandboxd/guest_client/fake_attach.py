"""Attachments and connections of the fake guest, in memory, with the true rules for input."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol

from sandboxd.contract.frames import Batch, Decoder, Frame, FrameKind, batch_of
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.fake_process import FakeProcess

_MAX_INPUT: Final = 262_144
_KEEPALIVE_SECONDS: Final = 15.0


class _Calls(Protocol):
    async def signal(self, process_id: str, signal: str, scope: str, key: str | None) -> None: ...

    async def resize(self, process_id: str, rows: int, cols: int) -> None: ...


class FakeAttachment:
    """One attachment to a fake process. Positions of its input are its own from where it began."""

    def __init__(self, process: FakeProcess, after: int, calls: _Calls, require_alive: Callable[[], None]) -> None:
        self._process = process
        self._position = after
        self._calls = calls
        self._require_alive = require_alive
        self._next = process.stdin_offset
        self._answers: list[Frame] = []

    async def batches(self) -> AsyncGenerator[Batch]:
        process = self._process
        record = process.record() | {"after": self._position, "stdin_offset": self._next}
        yield batch_of(Frame(FrameKind.ATTACHED, self._position, json.dumps(record).encode()))
        while True:
            self._require_alive()
            frames = [*self._answers, *process.output.read(self._position)]
            self._answers.clear()
            self._position = process.output.next_seq
            if process.exit is not None:
                payload = json.dumps(process.exit_payload()).encode()
                time_us = int(process.exit.at.timestamp() * 1_000_000)
                yield batch_of(*frames, Frame(FrameKind.EXIT, self._position, payload, time_us))
                return
            if frames:
                yield batch_of(*frames)
            else:
                await process.changed(_KEEPALIVE_SECONDS)

    def _answer(self, frame: Frame) -> None:
        self._answers.append(frame)
        self._process.wake()

    async def send(self, frame: bytes) -> None:
        [one] = Decoder(max_payload=_MAX_INPUT).feed(frame)
        try:
            await self._obey(one)
        except ProblemError as problem:
            body = {"code": problem.code, "message": problem.detail} | problem.members
            if problem.reason is not None:
                body["reason"] = problem.reason
            self._answer(Frame(FrameKind.ERROR, one.seq, json.dumps(body).encode()))

    async def _obey(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.STDIN | FrameKind.STDIN_CLOSE:
                await self._write(frame)
            case FrameKind.RESIZE:
                size = frame.json()
                await self._calls.resize(self._process.id, size["rows"], size["cols"])
            case _:
                asked = frame.json()
                await self._calls.signal(self._process.id, asked["signal"], asked.get("scope", "tree"), None)

    async def _write(self, frame: Frame) -> None:
        process = self._process
        if process.exit is not None:
            exit_code, reason = process.exit.exit_code, process.exit.reason
            raise ProblemError("process_ended", "it has ended", exit_code=exit_code, reason=reason)
        if frame.seq > self._next:
            raise ProblemError("stdin_gap", "bytes are missing", offset=self._next)
        data = frame.payload[self._next - frame.seq :]
        close = frame.kind == FrameKind.STDIN_CLOSE
        if not data and not close:
            return
        if process.stdin_closed:
            if close:
                return
            raise ProblemError("stdin_closed", "standard input is closed")
        while not process.takes_stdin:
            await process.changed(60)
        process.feed(data, close=close)
        self._next += len(data)
        if data:
            self._answer(Frame(FrameKind.STDIN_ACK, self._next))

    async def detach(self) -> None:
        """Nothing is on its way: what was sent was taken."""


class FakeStream:
    """A connection to a server that sends back what it is sent."""

    def __init__(self) -> None:
        self._bytes: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
        self._ended = asyncio.Event()

    async def read(self) -> bytes:
        if self._ended.is_set() and self._bytes.empty():
            return b""
        async with asyncio.TaskGroup() as group:
            data = group.create_task(self._bytes.get())
            end = group.create_task(self._ended.wait())
            await asyncio.wait((data, end), return_when=asyncio.FIRST_COMPLETED)
            found = data.result() if data.done() else b""
            data.cancel()
            end.cancel()
        return found

    async def write(self, data: bytes) -> None:
        await self._bytes.put(data)

    def end(self) -> None:
        self._ended.set()
