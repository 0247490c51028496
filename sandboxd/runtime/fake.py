"""A runtime in memory, shipped beside the real one: fails, hangs and dies on request."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sandboxd.contract.messages import Resources
from sandboxd.guest_client.base import Guest
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.runtime import bundle
from sandboxd.runtime.base import (
    Incarnation,
    Launch,
    ProcessIdentity,
    RuntimeEnd,
    RuntimeFailedError,
    RuntimeUsage,
    RuntimeVersion,
)

Mode = Literal["before", "after", "hang"]
"""Fail before the verb did anything, fail after it did all of it, or do nothing and never return."""

VERBS: Final = ("open", "version", "create", "start", "recover", "kill", "remove", "known", "update", "difference")
_FIRST_PID: Final = 1000


@dataclass(slots=True)
class FakeSandbox:
    """One sandbox of the world."""

    launch: Launch
    incarnation: Incarnation
    guest: FakeGuest
    resources: Resources
    started: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    end: RuntimeEnd = field(default_factory=RuntimeEnd)
    usage: RuntimeUsage = field(
        default_factory=lambda: RuntimeUsage(
            cpu_used_seconds=0.1,
            memory_used_bytes=16 * bundle.MIB,
            memory_peak_bytes=20 * bundle.MIB,
            memory_limit_bytes=0,
            oom_kills=0,
            processes=2,
        )
    )
    panicked: bool = False
    upper: bytes = bytes(1024)
    """What it has changed in its files: a tar."""


@dataclass(slots=True)
class _Switch:
    verb: str
    mode: Mode
    sandbox_id: str | None
    times: int
    error: Callable[[], Exception]


class FakeWorld:
    """The host: what goes on living when a node agent ends. Shared between runtimes, one after the other."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.calls: Counter[str] = Counter()
        self.upper = bytes(1024)
        """What new sandboxes will have changed in their files: a tar."""
        self._switches: list[_Switch] = []
        self._pids = _FIRST_PID

    @property
    def guests(self) -> dict[str, FakeGuest]:
        """The guest of each sandbox."""
        return {sandbox_id: sandbox.guest for sandbox_id, sandbox in self.sandboxes.items()}

    def fail(
        self,
        verb: str,
        mode: Mode = "before",
        *,
        sandbox_id: str | None = None,
        times: int = 1,
        error: Callable[[], Exception] = lambda: RuntimeFailedError("failed on request"),
    ) -> None:
        """Let the next `times` calls of a verb fail or hang."""
        if verb not in VERBS:
            raise ValueError(f"no such verb: {verb}")
        self._switches.append(_Switch(verb, mode, sandbox_id, times, error))

    def end(self, sandbox_id: str, end: RuntimeEnd, *, oom: bool = False, panic: bool = False) -> None:
        """Let the host processes of a sandbox end by themselves, with the traces that leaves."""
        sandbox = self.sandboxes[sandbox_id]
        if sandbox.over.is_set():
            return
        if oom:
            sandbox.usage = replace(
                sandbox.usage, oom_kills=1, memory_peak_bytes=bundle.limits(sandbox.resources).memory_bytes
            )
        sandbox.panicked = panic
        sandbox.end = end
        sandbox.guest.die()
        sandbox.over.set()

    def end_guest(self, sandbox_id: str, exit_code: int = 1) -> None:
        """Let PID 1 end: the sentry goes with it."""
        self.end(sandbox_id, RuntimeEnd(exit_code=exit_code))

    def add(self, launch: Launch) -> None:
        sentry = ProcessIdentity(pid=self._pids, start_time=self._pids * 10)
        gofer = ProcessIdentity(pid=self._pids + 1, start_time=self._pids * 10)
        self._pids += 2
        self.sandboxes[launch.sandbox_id] = FakeSandbox(
            launch=launch,
            incarnation=Incarnation(sentry=sentry, gofer=gofer),
            guest=FakeGuest(),
            resources=launch.resources,
            upper=self.upper,
        )

    def take(self, verb: str, sandbox_id: str | None) -> "_Switch | None":
        """Count a call and take the switch that is set for it."""
        self.calls[verb] += 1
        for switch in self._switches:
            if switch.verb == verb and switch.sandbox_id in {None, sandbox_id}:
                switch.times -= 1
                if not switch.times:
                    self._switches.remove(switch)
                return switch
        return None


class FakeRuntime:
    """Verbs over a FakeWorld."""

    def __init__(self, world: FakeWorld | None = None) -> None:
        self.world = world or FakeWorld()
        self._mine: set[str] = set()

    async def open(self) -> None:
        await self._verb("open", None, lambda: None)

    async def close(self) -> None:
        self._mine.clear()

    async def clear(self) -> None:
        for sandbox_id in list(self.world.sandboxes):
            self._remove(sandbox_id)

    async def version(self) -> RuntimeVersion:
        await self._verb("version", None, lambda: None)
        return RuntimeVersion(name="fake", version="1", platform="none")

    async def create(self, launch: Launch) -> None:
        def act() -> None:
            if launch.sandbox_id in self.world.sandboxes:
                raise RuntimeFailedError(f"{launch.sandbox_id} exists")
            self.world.add(launch)
            self._mine.add(launch.sandbox_id)

        await self._verb("create", launch.sandbox_id, act)

    async def start(self, sandbox_id: str) -> Incarnation:
        def act() -> None:
            sandbox = self.world.sandboxes.get(sandbox_id)
            if sandbox is None or sandbox.started or sandbox.over.is_set():
                raise RuntimeFailedError(f"{sandbox_id} cannot be started")
            sandbox.started = True

        await self._verb("start", sandbox_id, act)
        return self.world.sandboxes[sandbox_id].incarnation

    async def recover(self, sandbox_id: str, incarnation: Incarnation) -> bool:
        sandbox = self.world.sandboxes.get(sandbox_id)
        alive = sandbox is not None and not sandbox.over.is_set() and sandbox.incarnation == incarnation

        def act() -> None:
            if alive:
                self._mine.add(sandbox_id)

        await self._verb("recover", sandbox_id, act)
        return alive

    async def wait(self, sandbox_id: str) -> RuntimeEnd:
        sandbox = self.world.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox_id not in self._mine:
            return RuntimeEnd()
        await sandbox.over.wait()
        return sandbox.end

    async def kill(self, sandbox_id: str) -> None:
        await self._verb("kill", sandbox_id, lambda: self._kill(sandbox_id))

    async def remove(self, sandbox_id: str) -> None:
        await self._verb("remove", sandbox_id, lambda: self._remove(sandbox_id))

    async def known(self) -> set[str]:
        await self._verb("known", None, lambda: None)
        return set(self.world.sandboxes)

    def usage(self, sandbox_id: str) -> RuntimeUsage | None:
        sandbox = self.world.sandboxes.get(sandbox_id)
        if sandbox is None:
            return None
        limit = bundle.limits(sandbox.resources).memory_bytes
        gone = {"processes": 0, "memory_used_bytes": 0} if sandbox.over.is_set() else dict[str, int]()
        return replace(sandbox.usage, memory_limit_bytes=limit, **gone)

    def cpu_used_seconds(self, sandbox_id: str) -> float | None:
        usage = self.usage(sandbox_id)
        return None if usage is None else usage.cpu_used_seconds

    def cached_bytes(self, sandbox_id: str) -> int:
        return 4 * bundle.MIB if sandbox_id in self.world.sandboxes else 0

    def panicked(self, sandbox_id: str) -> bool:
        sandbox = self.world.sandboxes.get(sandbox_id)
        return sandbox is not None and sandbox.panicked

    def panic_log(self, sandbox_id: str) -> str:
        return "panic: as asked for" if self.panicked(sandbox_id) else ""

    def guest(self, sandbox_id: str, address: str, token: str) -> Guest:  # noqa: ARG002 - every runtime is asked so
        sandbox = self.world.sandboxes.get(sandbox_id)
        if sandbox is not None and sandbox.started:
            return sandbox.guest
        silent = FakeGuest()
        silent.die()
        return silent

    async def difference(self, sandbox_id: str, into: int) -> None:
        def act() -> None:
            sandbox = self.world.sandboxes.get(sandbox_id)
            if sandbox is None or sandbox.over.is_set():
                raise RuntimeFailedError(f"{sandbox_id} is not running")
            left.append(sandbox.upper)

        left: list[bytes] = []
        await self._verb("difference", sandbox_id, act)
        await asyncio.to_thread(_write_all, into, left[0])

    async def update(self, sandbox_id: str, resources: Resources) -> None:
        def act() -> None:
            sandbox = self.world.sandboxes.get(sandbox_id)
            if sandbox is None:
                raise RuntimeFailedError(f"limits of {sandbox_id} cannot be changed: it is gone")
            sandbox.resources = resources

        await self._verb("update", sandbox_id, act)

    def _kill(self, sandbox_id: str) -> None:
        if sandbox_id in self.world.sandboxes:
            self.world.end(sandbox_id, RuntimeEnd(signal=9))

    def _remove(self, sandbox_id: str) -> None:
        self._kill(sandbox_id)
        self.world.sandboxes.pop(sandbox_id, None)
        self._mine.discard(sandbox_id)

    async def _verb(self, verb: str, sandbox_id: str | None, act: Callable[[], None]) -> None:
        await asyncio.sleep(0)  # the real one never acts within one turn of the loop
        switch = self.world.take(verb, sandbox_id)
        if switch is not None and switch.mode == "hang":
            await asyncio.get_running_loop().create_future()
        if switch is not None and switch.mode == "before":
            raise switch.error()
        act()
        if switch is not None:
            raise switch.error()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError as error:
        raise RuntimeFailedError("nobody reads any more") from error
