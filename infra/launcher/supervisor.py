"""Keeps programs running: starts them, restarts what dies with a growing pause, ends them in order.

The launcher is the subreaper of everything below it, so it also collects what the programs leave behind when they die:
the sandboxes' host processes are such orphans while no node agent runs.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.launcher import rotation
from infra.launcher.rotation import DEFAULT, Bounds
from programs.libc import PR_SET_CHILD_SUBREAPER, prctl

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""A program that ran this long before it died starts again with the first pause."""

_LOG_SECONDS: Final = 10.0
"""How often a running program's log is measured: a program that is made to log without end must not fill the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program of the platform."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    """Asks the running program whether it can serve."""
    stop_seconds: float = 30.0
    """How long it may take to end after SIGTERM, before SIGKILL."""
    log_bounds: Bounds = DEFAULT


class Reaper:
    """Collects every child of this process, those it started and those that were left to it."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[int]] = {}

    def open(self) -> None:
        """Take over orphans and their exit statuses. Once, in the main thread, inside the running loop."""
        prctl(PR_SET_CHILD_SUBREAPER, 1, "cannot become subreaper")
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)

    def close(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def spawn(self, program: Program) -> tuple[int, asyncio.Future[int]]:
        """Start the program; the future is its exit status, negative for a signal."""
        rotation.turn_over(program.log, program.log_bounds)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            program.argv[0],
            program.argv,
            program.env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(program.log), flags, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # Ctrl-C at the terminal is for the launcher alone
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
        )
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._awaited[pid] = future
        return pid, future

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._awaited.pop(pid, None)
            if future is not None and not future.done():
                future.set_result(os.waitstatus_to_exitcode(status))


@dataclass(slots=True, kw_only=True)
class Supervised:
    """One program under supervision."""

    program: Program
    reaper: Reaper
    say: Callable[[str], None]
    deaths: int = 0
    pid: int | None = None
    _exit: asyncio.Future[int] | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Run the program until `stop`, starting it again whenever it ends."""
        clock = asyncio.get_running_loop().time
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not self._stopping.is_set():
                started = clock()
                self.pid, self._exit = self.reaper.spawn(self.program)
                status = await self._until_exit(self._exit)
                self.pid = None
                if self._stopping.is_set():
                    return
                self.deaths += 1
                if clock() - started >= _STEADY_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                self.say(f"{self.program.name} {describe(status)}; starting it again in {pause:g} s")
                await self._pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        finally:
            self._ended.set()

    async def _until_exit(self, exited: asyncio.Future[int]) -> int:
        while not (await asyncio.wait({exited}, timeout=_LOG_SECONDS))[0]:
            with suppress(OSError):
                await asyncio.to_thread(rotation.cut_off, self.program.log, self.program.log_bounds)
        return exited.result()

    async def stop(self) -> None:
        """End the program and wait until it is gone. Idempotent."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.program.stop_seconds):
                await self._ended.wait()
        except TimeoutError:
            self.say(f"{self.program.name} does not end, killing it")
            self._signal(signal.SIGKILL)
            await self._ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Not collected as long as the future is open, so the number cannot be another process's.
        if self.pid is not None and self._exit is not None and not self._exit.done():
            os.kill(self.pid, number)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def describe(status: int) -> str:
    """Put an exit status into words."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
