"""The ready pool: sandboxes booted ahead of demand, blocked and nobody's, each to be claimed once or buried.

None of them has a ledger row: what no row names is a stranger, and the next start of the agent removes it. A claim
writes the row first.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from sandboxd.contract.messages import PoolReport, ReadySandboxes
from sandboxd.contract.ready import ReadyKey
from sandboxd.errors import SandboxDiedError
from sandboxd.hooks.base import Parts, unless_dead
from sandboxd.manager.admission import Admission
from sandboxd.manager.targets import Demand, PoolRules, targets
from sandboxd.runner.line import Line
from sandboxd.runner.stop import undo, undo_patiently
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

BOOT_SECONDS: Final = 60.0
"""How long one may take to be ready."""
_LOOK_SECONDS: Final = 1.0
"""How often targets are looked at while nothing happens."""
_AFTER_FAILURE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 300.0
"""What cannot be booted now is tried again ever more seldom: boots must not eat the node."""

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
"""Has something done beside everything else, until the agent ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What the pool is to be like."""

    rules: PoolRules
    standing: Callable[[], Mapping[ReadyKey, int]]
    """What always stands ready, now that the images are what they are."""
    images: Callable[[], set[str]]
    """The ids of the images there are."""
    boots: int
    """How many are booted at once."""
    pause_seconds: float
    """Before each boot, so that whoever came for the last one has the processors."""


@dataclass(slots=True, eq=False)
class Member:
    """One sandbox of the pool."""

    key: ReadyKey
    parts: Parts
    ready: bool = False
    claimed: bool = False
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """It is not offered any more: claimed, or to be buried."""


class Pool:
    """Keeps as many ready as its targets say. Nothing here waits for anything while a create looks on."""

    def __init__(
        self,
        tools: Tools,
        admission: Admission,
        plan: PoolPlan,
        *,
        lines: Sequence[Line],
        new_parts: Callable[[ReadyKey], Parts],
    ) -> None:
        """`lines`: while anybody is in one, nothing is booted. `new_parts`: of a handle and a token of their own."""
        self._tools = tools
        self._admission = admission
        self._plan = plan
        self._lines = lines
        self._new_parts = new_parts
        self._spawn: Spawn | None = None
        self._demand = Demand()
        self._ready: dict[ReadyKey, deque[Member]] = {}
        self._members: dict[str, Member] = {}
        """By handle: all that are booting, ready, or being buried."""
        self._leftovers: dict[str, Parts] = {}
        self._news = asyncio.Event()
        self._closed = plan.rules.most == 0
        self._failed = 0
        self.hits = 0
        self.misses = 0
        self.boots = 0
        self.boot_failures = 0
        self.claim_failures = 0

    def open(self, spawn: Spawn) -> None:
        """Begin to fill it."""
        self._spawn = spawn
        if not self._closed:
            for _ in range(self._plan.boots):
                spawn(self._keep(), "ready pool")

    async def close(self) -> None:
        """Bury all that is nobody's, and take none up any more."""
        self._closed = True
        self._news.set()
        for member in list(self._members.values()):
            self._part_with(member)
        while self._members:
            await self._change()

    def take(self, key: ReadyKey) -> Member | None:
        """Take one out for a sandbox; what it was promised is free. Counts as demand either way."""
        if self._closed:
            return None
        self._demand.note(key, self._tools.clock.boottime())
        waiting = self._ready.get(key)
        if not waiting:
            self.misses += 1
            self._news.set()
            return None
        self.hits += 1
        # The one that waits longest has had the most time to become quiet.
        member = waiting.popleft()
        self._admission.release(member.parts.handle)
        return member

    def keep(self, member: Member) -> None:
        """Say that one taken out is the sandbox's from now on."""
        member.claimed = True
        member.leaving.set()
        self._members.pop(member.parts.handle, None)
        self._news.set()

    def put_back(self, member: Member) -> None:
        """Say that nothing came of a take: nobody has touched it."""
        self.hits -= 1
        if self._admission.spare(member.parts.handle, member.key.resources):
            self._ready[member.key].appendleft(member)
        else:
            self._part_with(member)

    def discard(self, parts: Parts) -> None:
        """Bury one whose claim failed."""
        self.claim_failures += 1
        self._start(self.bury(parts), f"bury {parts.handle}")

    def give_way(self) -> bool:
        """Part with the one that is wanted least; False when there is none."""
        rates = self._demand.rates(self._tools.clock.boottime())
        there = [member for member in self._members.values() if not member.leaving.is_set()]
        least = min(there, key=lambda each: (rates.get(each.key, 0), each.ready), default=None)
        if least is None:
            return False
        self._part_with(least)
        return True

    async def clear_leftovers(self) -> None:
        """Try again what could not be undone."""
        for handle, parts in list(self._leftovers.items()):
            if not await undo(parts, self._tools):
                del self._leftovers[handle]
                _log.info("leftovers removed", handle=handle)

    def report(self) -> PoolReport:
        """Say what is ready and what has come of it."""
        return PoolReport(
            ready=[
                ReadySandboxes(
                    image_id=key.image_id,
                    memory_mib=key.memory_mib,
                    processors=key.processors,
                    disk_mib=key.disk_mib,
                    ready=len(members),
                )
                for key, members in self._ready.items()
                if members
            ],
            hits=self.hits,
            misses=self.misses,
            boots=self.boots,
            boot_failures=self.boot_failures,
            claim_failures=self.claim_failures,
        )

    async def _keep(self) -> None:
        while not self._closed:
            self._news.clear()
            try:
                if self._look() is not None and self._is_way_free():
                    # Whoever has just come for one has the processors first.
                    await self._pass(self._pause())
                    key = self._look()
                    if key is not None and self._is_way_free() and not self._closed:
                        self._failed = 0 if await self._boot(key) else self._failed + 1
                    continue
            except Exception:  # noqa: BLE001 - a fault here must not leave the node without a pool
                _log.exception("ready pool failed")
            await self._until_one_of(self._news.wait(), self._pass(_LOOK_SECONDS), self._way_free())

    def _pause(self) -> float:
        if not self._failed:
            return self._plan.pause_seconds
        return min(_AFTER_FAILURE_SECONDS * 2 ** min(self._failed - 1, 10), _LONGEST_PAUSE_SECONDS)

    def _look(self) -> ReadyKey | None:
        """Part with what is not wanted any more; return what is wanted most."""
        wanted = self._targets()
        there: dict[ReadyKey, list[Member]] = {}
        for member in self._members.values():
            if not member.leaving.is_set():
                there.setdefault(member.key, []).append(member)
        for key, members in there.items():
            for member in members[wanted.get(key, 0) :]:
                self._part_with(member)
        short = {key: len(there.get(key, ())) / count for key, count in wanted.items()}
        short = {key: share for key, share in short.items() if share < 1}
        return min(short, key=lambda each: short[each], default=None)

    def _targets(self) -> dict[ReadyKey, int]:
        if self._admission.pressed():
            return {}
        images = self._plan.images()
        rates = self._demand.rates(self._tools.clock.boottime())
        known = {key: rate for key, rate in rates.items() if key.image_id in images}
        return targets(known, self._plan.standing(), self._plan.rules)

    async def _boot(self, key: ReadyKey) -> bool:
        """Make one ready, and have it looked after; False when it failed or there is no room."""
        parts = self._new_parts(key)
        if not self._admission.spare(parts.handle, key.resources):
            return False
        member = Member(key, parts)
        self._members[parts.handle] = member
        try:
            async with asyncio.timeout(BOOT_SECONDS) as scope:
                await unless_left(member, self._make_ready(member), scope)
        except Exception as error:  # noqa: BLE001 - whatever failed, it is undone and tried again later
            if not member.leaving.is_set():
                self.boot_failures += 1
                _log.warning("boot failed", handle=parts.handle, error=f"{type(error).__name__}: {error}")
            member.leaving.set()
            self._start(self.bury(parts), f"bury {parts.handle}")
            return False
        self.boots += 1
        member.ready = True
        self._ready.setdefault(key, deque()).append(member)
        self._start(self._tend(member), f"ready {parts.handle}")
        return True

    async def _make_ready(self, member: Member) -> None:
        for hook in self._tools.hooks:
            await hook.make_ready(member.parts)

    async def _tend(self, member: Member) -> None:
        """Wait for what becomes of a ready one; bury it unless it was claimed."""
        handle = member.parts.handle
        try:
            await unless_dead(self._tools.runtime, handle, member.leaving.wait())
        except SandboxDiedError:
            _log.warning("a ready sandbox ended by itself", handle=handle)
        self._withdraw(member)
        if not member.claimed:
            member.leaving.set()
            await self.bury(member.parts)

    def _part_with(self, member: Member) -> None:
        self._withdraw(member)
        self._admission.release(member.parts.handle)
        member.leaving.set()
        self._news.set()

    def _withdraw(self, member: Member) -> None:
        waiting = self._ready.get(member.key)
        if waiting is not None and member in waiting:
            waiting.remove(member)

    async def bury(self, parts: Parts) -> None:
        """Undo one that is nobody's; what cannot be undone now is tried again later."""
        if not await undo_patiently(parts, self._tools):
            self._leftovers[parts.handle] = parts
        self._admission.release(parts.handle)
        self._members.pop(parts.handle, None)
        self._news.set()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._spawn is None:
            msg = "the pool is not open"
            raise RuntimeError(msg)
        self._spawn(work, name)

    async def _change(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _is_way_free(self) -> bool:
        return all(line.empty.is_set() for line in self._lines)

    async def _way_free(self) -> None:
        """Wait until somebody's way is over, of a start or of a claim; for ever, if nobody is on any."""
        taken = [line.empty for line in self._lines if not line.empty.is_set()]
        await (taken[0] if taken else asyncio.Event()).wait()

    @staticmethod
    async def _until_one_of(*works: Coroutine[Any, Any, object]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            for task in tasks:
                task.add_done_callback(lambda _: [each.cancel() for each in tasks])

    async def _pass(self, seconds: float) -> None:
        await self._tools.clock.sleep_until(self._tools.clock.boottime() + seconds)


async def unless_left(member: Member, work: Coroutine[Any, Any, None], scope: asyncio.Timeout) -> None:
    """Do `work`, cut off when the member is to leave meanwhile."""

    async def watch() -> None:
        await member.leaving.wait()
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch())
            await work
            watcher.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
