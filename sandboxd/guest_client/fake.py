"""A guest in memory, for the fake runtime: keeps the protocol's promises for a few programs, and fails on request.

It understands `true false exit echo env pwd trap cat sleep yes`, alone or as `sh -c` with `;`, `&&` and `>&2`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sandboxd.contract.frames import Batch, Frame, FrameKind, batch_of
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import (
    Duplex,
    FeedRequest,
    FollowedStart,
    GuestAttachment,
    GuestUnreachableError,
    Health,
    Init,
    InitResult,
    Started,
)
from sandboxd.guest_client.fake_attach import FakeAttachment, FakeStream
from sandboxd.guest_client.fake_feed import feed
from sandboxd.guest_client.fake_files import FakeFiles
from sandboxd.guest_client.fake_process import FakeProcess


def _utc_now() -> datetime:
    return datetime.now(UTC)


class FakeGuest:
    """A Guest without a sandbox. Outlives its client: `close` drops nothing."""

    def __init__(self, *, now: Callable[[], datetime] = _utc_now, shell: str | None = "/bin/sh") -> None:
        self.initialized_by: Init | None = None
        self.shell = shell
        self.echoing: set[int] = set()
        """Ports on which a server sends back what it is sent."""
        self.listens: list[dict[str, Any]] = []
        """What `ports` answers."""
        self.calls: Counter[str] = Counter()
        self.backstop_seconds: float | None = None
        self._now = now
        self._processes: dict[str, FakeProcess] = {}
        self._failures: dict[str, list[Exception]] = {}
        self._hanging: set[str] = set()
        self._alive = asyncio.Event()
        self._alive.set()
        self._refuses = False
        self.files = FakeFiles(self._enter, now)

    def die(self) -> None:
        """Fall silent for good: every call, and every stream that is open, becomes unreachable."""
        self._alive.clear()
        for process in self._processes.values():
            process.stop_timers()
            process.wake()

    def revive(self) -> None:
        """Answer again, with everything as it was but the programs' timers."""
        self._alive.set()

    def fail(self, method: str, error: Exception, times: int = 1) -> None:
        """Let the next calls of a method raise `error`."""
        self._failures.setdefault(method, []).extend([error] * times)

    def hang(self, method: str) -> None:
        """Let a method never answer again."""
        self._hanging.add(method)

    async def listening(self) -> None:
        while True:
            await self._alive.wait()
            try:
                return await self._enter("listening")
            except GuestUnreachableError:
                await asyncio.sleep(0)

    async def health(self, timeout_seconds: float = 5) -> Health:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._enter("health")
        except TimeoutError:
            raise GuestUnreachableError("no answer") from None
        ends = [process.exit.at.timestamp() for process in self._processes.values() if process.exit]
        return Health(
            version="fake",
            initialized=self.initialized_by is not None,
            processes_running=sum(process.exit is None for process in self._processes.values()),
            last_exit_at_us=int(max(ends, default=0) * 1_000_000),
        )

    async def init(self, init: Init, timeout_seconds: float = 10) -> InitResult:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._enter("init")
        except TimeoutError:
            raise GuestUnreachableError("no answer") from None
        if init.user == "nobody-here":
            raise ProblemError("user_not_found", f"no such user: {init.user}")
        if init.token is not None:
            if any(process.exit is None for process in self._processes.values()):
                raise ProblemError("invalid_request", "processes are running")
            self._processes.clear()
        self.initialized_by = init
        self.backstop_seconds = init.backstop_seconds
        user = init.user or "user"
        return InitResult(
            user=user, uid=1000, gid=1000, home="/home/user", cwd=init.cwd or "/home/user", shell=self.shell,
            version="fake",
        )  # fmt: skip

    async def set_backstop(self, seconds: float | None) -> None:
        await self._enter("set_backstop")
        self.backstop_seconds = seconds

    async def start(self, spec: dict[str, Any]) -> Started:
        await self._enter("start")
        process, joined = self._start(spec)
        return Started(process=process.record(), joined=joined)

    def start_followed(self, spec: dict[str, Any]) -> AbstractAsyncContextManager[FollowedStart]:
        return self._start_followed(spec)

    @asynccontextmanager
    async def _start_followed(self, spec: dict[str, Any]) -> AsyncGenerator[FollowedStart]:
        await self._enter("start")
        process, joined = self._start(spec)
        yield _Followed(Started(process=process.record(), joined=joined), self._batches(process, 0, follow=True))

    async def processes(self, state: str | None, tag: str | None) -> list[dict[str, Any]]:
        await self._enter("processes")
        rows = [process.record() for process in self._processes.values()]
        return [row for row in rows if state in (None, row["state"]) and tag in (None, row["tag"])]

    async def process(self, process_id: str, wait_seconds: float = 0) -> dict[str, Any]:
        await self._enter("process")
        process = self._find(process_id)
        try:
            async with asyncio.timeout(wait_seconds):
                while process.exit is None:
                    await process.changed(wait_seconds)
                    self._require_alive()
        except TimeoutError:
            pass
        return process.record()

    def output(
        self,
        process_id: str,
        *,
        after: int = 0,
        tail_bytes: int | None = None,
        follow: bool = False,
        keepalive_seconds: float = 15,
    ) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        return self._output(process_id, after, tail_bytes, follow=follow, keepalive_seconds=keepalive_seconds)

    @asynccontextmanager
    async def _output(
        self, process_id: str, after: int, tail_bytes: int | None, *, follow: bool, keepalive_seconds: float
    ) -> AsyncGenerator[AsyncGenerator[Batch]]:
        await self._enter("output")
        process = self._find(process_id)
        end = process.output.next_seq
        if tail_bytes is not None:
            after = max(process.output.first_seq, end - tail_bytes)
        if after > end:
            raise ProblemError("seq_out_of_range", f"the output ends at {end}", next_seq=end)
        yield self._batches(process, after, follow=follow, keepalive_seconds=keepalive_seconds)

    async def _batches(
        self, process: FakeProcess, position: int, *, follow: bool, keepalive_seconds: float = 15
    ) -> AsyncGenerator[Batch]:
        while True:
            self._require_alive()
            frames = process.output.read(position)
            position = process.output.next_seq
            if process.exit is not None:
                payload = json.dumps(process.exit_payload()).encode()
                time_us = int(process.exit.at.timestamp() * 1_000_000)
                yield batch_of(*frames, Frame(FrameKind.EXIT, position, payload, time_us))
                return
            if frames:
                yield batch_of(*frames)
            elif not follow or not await process.changed(keepalive_seconds):
                yield batch_of(Frame(FrameKind.KEEPALIVE, position))
                if not follow:
                    return

    async def head(self, process_id: str) -> list[Frame]:
        await self._enter("head")
        return list(self._find(process_id).output.heads)

    async def write_stdin(
        self, process_id: str, body: AsyncIterator[bytes], *, offset: int | None, close: bool
    ) -> dict[str, Any]:
        await self._enter("write_stdin")
        process = self._find(process_id)
        if process.exit is not None:
            raise ProblemError(
                "process_ended", "it has ended", exit_code=process.exit.exit_code, reason=process.exit.reason
            )
        skip = 0 if offset is None else process.stdin_offset - offset
        if skip < 0:
            raise ProblemError("stdin_gap", "bytes are missing", offset=process.stdin_offset)
        if process.stdin_closed and skip == 0 and not close:
            raise ProblemError("stdin_closed", "standard input is closed")
        async for data in body:
            taken = data[skip:]
            skip = max(0, skip - len(data))
            process.feed(taken, close=False)
        if close and not process.stdin_closed:
            process.feed(b"", close=True)
        return {"offset": process.stdin_offset, "closed": process.stdin_closed}

    def attach(
        self, process_id: str, *, after: int = 0, tail_bytes: int | None = None
    ) -> AbstractAsyncContextManager[GuestAttachment]:
        return self._attach(process_id, after, tail_bytes)

    @asynccontextmanager
    async def _attach(self, process_id: str, after: int, tail_bytes: int | None) -> AsyncGenerator[FakeAttachment]:
        await self._enter("attach")
        process = self._find(process_id)
        end = process.output.next_seq
        if tail_bytes is not None:
            after = max(process.output.first_seq, end - tail_bytes)
        if after > end:
            raise ProblemError("seq_out_of_range", f"the output ends at {end}", next_seq=end)
        yield FakeAttachment(process, after, self, self._require_alive)

    def dial(self, port: int) -> AbstractAsyncContextManager[Duplex]:
        return self._dial(port)

    @asynccontextmanager
    async def _dial(self, port: int) -> AsyncGenerator[FakeStream]:
        await self._enter("dial")
        if port not in self.echoing:
            raise ProblemError("port_not_listening", f"port {port}: connection refused", port=port)
        yield FakeStream()

    async def signal(self, process_id: str, signal: str, scope: str, key: str | None) -> None:
        del scope, key
        await self._enter("signal")
        process = self._find(process_id)
        if process.exit is not None:
            raise ProblemError(
                "process_ended", "it has ended", exit_code=process.exit.exit_code, reason=process.exit.reason
            )
        process.signal(signal)

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        await self._enter("resize")
        process = self._find(process_id)
        if not process.spec.get("tty"):
            raise ProblemError("invalid_request", "the process has no terminal")
        process.spec["tty"] = {"rows": rows, "cols": cols}

    async def metrics(self) -> dict[str, Any]:
        await self._enter("metrics")
        running = sum(process.exit is None for process in self._processes.values())
        return {
            "cpu_used_seconds": 0.0, "memory_used_bytes": 0, "processes": running, "disk_used_bytes": 0,
            "disk_limit_bytes": 0, "ports": [],
        }  # fmt: skip

    async def ports(self, port: int | None, wait_seconds: float) -> dict[str, Any]:
        await self._enter("ports")
        try:
            async with asyncio.timeout(wait_seconds):
                while not self._at(port):  # noqa: ASYNC110 - tests set what listens
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass
        self._require_alive()
        return {"items": self._at(port)}

    def _at(self, port: int | None) -> list[dict[str, Any]]:
        return [each for each in self.listens if port in (None, each["port"])]

    def feed(self, request: FeedRequest) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        return self._feed(request)

    @asynccontextmanager
    async def _feed(self, request: FeedRequest) -> AsyncGenerator[AsyncGenerator[Batch]]:
        await self._enter("feed")
        yield feed(self._processes, request, self._require_alive)

    async def shutdown(self, grace_seconds: float) -> None:
        await self._enter("shutdown")
        self._refuses = True
        for process in self._processes.values():
            if process.exit is None:
                process.terminate("sandbox_stopped", 137, grace_seconds)
        for process in self._processes.values():
            while process.exit is None:
                await process.changed(grace_seconds + 1)
                self._require_alive()

    async def close(self) -> None:
        """Nothing to drop."""

    async def _enter(self, method: str) -> None:
        """Let a call fail, hang or go on, as asked for."""
        self.calls[method] += 1
        if method in self._hanging:
            await asyncio.Event().wait()
        self._require_alive()
        waiting = self._failures.get(method)
        if waiting:
            raise waiting.pop(0)

    def _require_alive(self) -> None:
        if not self._alive.is_set():
            raise GuestUnreachableError("the fake guest is dead")

    def _find(self, process_id: str) -> FakeProcess:
        process = self._processes.get(process_id)
        if process is None:
            raise ProblemError("process_not_found", f"no such process: {process_id}")
        return process

    def _start(self, spec: dict[str, Any]) -> tuple[FakeProcess, bool]:
        existing = self._processes.get(spec["id"])
        if existing is not None:
            if existing.spec != spec:
                raise ProblemError("idempotency_mismatch", "another process has this id")
            return existing, True
        self._check_start(spec)
        pid = len(self._processes) + 2
        process = FakeProcess(dict(spec), now=self._now, files=self.files, pid=pid, shell=self.shell or "/bin/sh")
        self._processes[process.id] = process
        if self.initialized_by is not None and spec.get("with_secrets", True):
            process.secret_env = dict(self.initialized_by.secret_env)
        process.begin()
        return process, False

    def _check_start(self, spec: dict[str, Any]) -> None:
        if self.initialized_by is None or self._refuses:
            raise ProblemError("sandbox_not_ready", "no processes can be started now")
        if spec.get("user") == "nobody-here":
            raise ProblemError("user_not_found", f"no such user: {spec['user']}")
        if str(spec.get("cwd") or "").startswith("/no/such"):
            raise ProblemError("cwd_not_found", f"no such directory: {spec['cwd']}")
        if spec.get("shell") is not None and self.shell is None:
            raise ProblemError("no_shell", "the image has no shell")


@dataclass(frozen=True, slots=True)
class _Followed:
    started: Started
    stream: AsyncGenerator[Batch]

    def batches(self) -> AsyncGenerator[Batch]:
        return self.stream
