"""The output of one process as checked events, through breaks of the connection to the guest and the sandbox's end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sandboxd.contract.frames import Batch
from sandboxd.contract.processes import Process
from sandboxd.contract.reasons import ProcessReason
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.processes.live import END_GRACE_SECONDS, VERDICT_SECONDS, LiveSandbox, failed, guarded
from sandboxd.processes.trust import Event, Exit, ExitDetails, Keepalive, Lost, StreamCheck, check_process

_T = TypeVar("_T")
MAX_SNAPSHOT_BYTES: Final = 68_157_440
"""The greatest ring, and a frame's worth beside it."""
DRAIN_SECONDS: Final = 30.0
"""How long what a dead sandbox had sent may take to be read."""
_RETRY_SECONDS: Final = 0.25
KEEPALIVE_SECONDS: Final = 15.0


class _EndedError(Exception):
    """The sandbox has ended and nothing more of this stream will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Which part of the output, and for how long."""

    after: int = 0
    tail_bytes: int | None = None
    follow: bool = False
    keepalive_seconds: float = KEEPALIVE_SECONDS


class _Output:
    """One reader's way through the output. Holds at most one connection."""

    def __init__(self, sandbox: LiveSandbox, process_id: str, options: OutputOptions) -> None:
        self._sandbox = sandbox
        self._process_id = process_id
        self._options = options
        self._check = StreamCheck(
            options.after if options.tail_bytes is None else None,
            max_bytes=None if options.follow else MAX_SNAPSHOT_BYTES,
        )
        self._stack = AsyncExitStack()
        self._batches: AsyncGenerator[Batch] | None = None
        self._silent_since: float | None = None
        self._scope: asyncio.Timeout | None = None
        self._drain_until: float | None = None
        self._unsubscribe = sandbox.ended.subscribe(self._end)

    async def start(self, spec: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Start or join the process and read on from there; its record, and whether it was there already."""
        async with guarded(self._sandbox):
            followed = await self._stack.enter_async_context(self._sandbox.guest.start_followed(spec))
        self._sandbox.process_started()
        self._batches = await self._stack.enter_async_context(aclosing(followed.batches()))
        return followed.started.process, followed.started.joined

    async def open(self) -> None:
        """Open the stream; problems are those of the guest."""
        async with guarded(self._sandbox):
            await self._connect(self._options.tail_bytes)

    async def close(self) -> None:
        self._unsubscribe()
        await self._stack.aclose()

    async def events(self) -> AsyncGenerator[Event]:
        """Yield events to the end: `exit`, or for a reader that does not follow also one `keepalive`.

        Raises `guest_failed` when the guest lies, or is silent although the sandbox has not ended.
        """
        while True:
            try:
                async with aclosing(self._read()) as batches:
                    async for batch in batches:
                        for event in self._check.admit(batch):
                            yield event
                            if self._is_last(event):
                                return
                await self._reconnect()
            except _EndedError:
                for event in self._last_words():
                    yield event
                return
            except GuestError as error:
                raise failed(self._sandbox, error) from error

    def _is_last(self, event: Event) -> bool:
        return isinstance(event, Exit) or (isinstance(event, Keepalive) and not self._options.follow)

    async def _read(self) -> AsyncGenerator[Batch]:
        """Yield batches until the connection breaks."""
        batches = self._batches
        if batches is None:
            return
        try:
            while (batch := await self._wait(anext(batches, None))) is not None:
                self._silent_since = None
                yield batch
        except GuestUnreachableError:
            return

    async def _wait(self, awaitable: Awaitable[_T]) -> _T:
        """Await, but not longer than the sandbox lives."""
        now = asyncio.get_running_loop().time()
        until = self._drain_until
        scope = asyncio.timeout_at(None if until is None else min(until, now + END_GRACE_SECONDS))
        self._scope = scope
        try:
            async with scope:
                return await awaitable
        except TimeoutError:
            if scope.expired():
                raise _EndedError from None
            raise
        finally:
            self._scope = None

    def _end(self) -> None:
        now = asyncio.get_running_loop().time()
        self._drain_until = now + DRAIN_SECONDS
        if self._scope is not None:
            self._scope.reschedule(now + END_GRACE_SECONDS)

    async def _reconnect(self) -> None:
        """Open the stream again where it broke off, unless the sandbox has ended or nothing has come for long."""
        loop = asyncio.get_running_loop()
        if self._silent_since is None:
            self._silent_since = loop.time()
        while True:
            if await self._sandbox.ended.wait(_RETRY_SECONDS):
                raise _EndedError
            try:
                await self._wait(self._connect(self._options.tail_bytes if self._check.position is None else None))
            except GuestUnreachableError as error:
                silent = error
            else:
                silent = GuestUnreachableError("the stream breaks off as soon as it is opened")
            if loop.time() > self._silent_since + VERDICT_SECONDS:
                raise failed(self._sandbox, silent) from silent
            if self._batches is not None:
                return

    async def _connect(self, tail_bytes: int | None) -> None:
        await self._stack.aclose()
        self._batches = None
        batches = await self._stack.enter_async_context(
            self._sandbox.guest.output(
                self._process_id,
                after=self._check.position or 0,
                tail_bytes=tail_bytes,
                follow=self._options.follow,
                keepalive_seconds=self._options.keepalive_seconds,
            )
        )
        self._batches = await self._stack.enter_async_context(aclosing(batches))

    def _last_words(self) -> tuple[Lost, Exit]:
        """What a reader is told of a process whose sandbox died: more may have been written, and it is over."""
        position = self._check.position or 0
        problem = self._sandbox.end_problem()
        details = ExitDetails(
            exit_code=137,
            signal="SIGKILL",
            reason=ProcessReason.SANDBOX_STOPPED,
            message=f"The sandbox has ended: {problem.reason or problem.code}.",
        )
        return Lost(position, 0), Exit(position, 0, details)


@asynccontextmanager
async def open_output(
    sandbox: LiveSandbox, process_id: str, options: OutputOptions
) -> AsyncGenerator[AsyncGenerator[Event]]:
    """Open the output of a process. Raises what the guest answers before anything is read."""
    output = _Output(sandbox, process_id, options)
    try:
        await output.open()
        yield output.events()
    finally:
        await output.close()


@dataclass(frozen=True, slots=True)
class Run:
    """A process that was started to be read to its end."""

    process: Process
    joined: bool
    events: AsyncGenerator[Event]


@asynccontextmanager
async def open_run(sandbox: LiveSandbox, spec: dict[str, Any]) -> AsyncGenerator[Run]:
    """Start or join a process and read its output from the first byte, in one round trip to the guest."""
    output = _Output(sandbox, spec["id"], OutputOptions(follow=True))
    try:
        record, joined = await output.start(spec)
        async with guarded(sandbox):
            process = check_process(record, sandbox.id, spec["id"])
        yield Run(process, joined, output.events())
    finally:
        await output.close()
