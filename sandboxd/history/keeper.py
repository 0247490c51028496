"""Keeps the logs of live sandboxes: reads each one's feed while something runs in it, and its last words at its end."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import structlog

from sandboxd.clock import Clock
from sandboxd.contract.frames import Batch
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import FeedRequest, Guest, GuestError, GuestUnreachableError
from sandboxd.guest_client.pace import Pace
from sandboxd.history.check import FeedCheck, unfinished
from sandboxd.history.log import Log
from sandboxd.history.rows import LogRow
from sandboxd.history.shelf import Shelf
from sandboxd.history.threads import in_thread
from sandboxd.history.watched import Watched

_log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 0.5
"""What a process printed so long ago is in the log, whatever becomes of its sandbox."""
_LINGER_SECONDS: Final = 5.0
_KEEPALIVE_SECONDS: Final = 60.0
_LAST_WORDS_SECONDS: Final = 0.1
"""What a dead sandbox had sent may still be read within this time."""
_BACK_OFF_SECONDS: Final = (0.5, 1.0, 5.0, 30.0)
_ADOPT_SECONDS: Final = 0.005
"""Between two feeds that are opened after a restart of the agent."""
_UPKEEP_SECONDS: Final = 30.0


class Source(Protocol):
    """A sandbox as the keeper sees it."""

    @property
    def id(self) -> str:
        """The sandbox's id."""
        ...

    @property
    def guest(self) -> Guest | None:
        """A client of its guest; None: there is none to speak to."""
        ...

    @property
    def began_us(self) -> int:
        """When it was started, in µs since 1970."""
        ...

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        """Take note that its guest lies."""
        ...


@dataclass(slots=True)
class _Kept:
    """What is held of one live sandbox in which something was started."""

    source: Source
    log: Log | None = None
    check: FeedCheck | None = None
    wanted: bool = False
    """Something was started since the feed was last opened."""
    complete: bool = False
    """The feed was read to its end, and nothing was started since."""
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever reads the feed or writes."""
    told_full: bool = False


class Keeper(Watched):
    """All logs of the node. Entered once; what is asked of it outside is done without the feeds."""

    def __init__(
        self, shelf: Shelf, clock: Clock, *, bytes_per_second: int, disk_full: Callable[[], bool] = lambda: False
    ) -> None:
        self.shelf = shelf
        self._clock = clock
        self._bytes_per_second = bytes_per_second
        self._disk_full = disk_full
        self._live: dict[str, _Kept | None] = {}
        super().__init__()
        self._group: asyncio.TaskGroup | None = None
        self._adopted = 0
        self._looked = False
        self._all_adopted = asyncio.Event()

    @property
    def is_on(self) -> bool:
        """Whether anything is kept at all."""
        return self.shelf.bounds.log_bytes > 0

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Read feeds and hold the logs to their bounds while inside. Leaving loses nothing: the guests keep it."""
        if not self.is_on:
            yield
            return
        async with asyncio.TaskGroup() as group:
            self._group = group
            upkeep = group.create_task(self._upkeep())
            try:
                yield
            finally:
                self._group = None
                upkeep.cancel()
                for kept in self._live.values():
                    if kept is not None and kept.task is not None:
                        kept.task.cancel()

    def born(self, source: Source, *, adopted: bool = False) -> None:
        """Take note of a sandbox that runs. In one that an earlier agent started, anything may be under way."""
        self._live.setdefault(source.id, None)
        if adopted:
            self._adopted += 1
            self.started(source, delay_seconds=INTERVAL_SECONDS + self._adopted * _ADOPT_SECONDS)

    def started(self, source: Source, *, delay_seconds: float = INTERVAL_SECONDS) -> None:
        """Take note that a process was started. Costs nothing while the feed is open."""
        if not self.is_on or source.id not in self._live:
            return
        kept = self._live[source.id]
        if kept is None:
            kept = self._live[source.id] = _Kept(source)
        kept.wanted = True
        kept.complete = False
        if kept.task is None and self._group is not None:
            kept.task = self._group.create_task(self._keep(kept, delay_seconds), name=f"log {source.id}")

    async def _ready(self, kept: _Kept) -> tuple[Log, FeedCheck]:
        """Open the log, where that has not been done."""
        if kept.log is None or kept.check is None:
            kept.log = await in_thread(self.shelf.open, kept.source.id)
            kept.check = FeedCheck(kept.log.known, kept.source.began_us)
        return kept.log, kept.check

    def processes(self, sandbox_id: str) -> int:
        """Return how many processes there are, by the sandbox's own last word; 0 where nothing was ever started."""
        kept = self._live.get(sandbox_id)
        check = None if kept is None else kept.check
        return 0 if check is None or check.processes is None else check.processes

    async def drain(self, source: Source) -> None:
        """Read what the processes of a sandbox that is being stopped have written, while its guest still answers."""
        kept = self._live.get(source.id)
        if kept is None or kept.complete or source.guest is None:
            return
        await _cancelled(kept)
        async with kept.lock:
            _, check = await self._ready(kept)
            check.begin()
            async with source.guest.feed(self._request(check, follow=False)) as batches:
                async for batch in batches:
                    await self._take(kept, batch)
        kept.complete = True

    async def close(self, source: Source, why: str) -> None:
        """Finish the log of a sandbox that has ended: what it had sent, and the end of what still ran."""
        kept = self._live.get(source.id)
        if kept is None and self.is_on and self.shelf.place(source.id).is_dir():
            kept = _Kept(source, complete=True)  # an earlier agent wrote it
        if kept is not None:
            await self._last_words(kept, why)
            await in_thread(self.shelf.close, source.id, self._clock.now().timestamp())
        self._live.pop(source.id, None)
        self.notify(source.id)

    async def _last_words(self, kept: _Kept, why: str) -> None:
        if kept.task is not None and not kept.complete:
            await asyncio.wait({kept.task}, timeout=_LAST_WORDS_SECONDS)
        await _cancelled(kept)
        async with kept.lock:
            _, check = await self._ready(kept)
            rows = list(unfinished(check.known, self._now_us(), why))
            if rows:
                await self._write(kept, rows)

    def is_live(self, sandbox_id: str) -> bool:
        """Tell whether more may come."""
        return sandbox_id in self._live

    async def _keep(self, kept: _Kept, delay_seconds: float) -> None:
        """Read a sandbox's feed until nothing runs in it any more."""
        failures = 0
        await asyncio.sleep(delay_seconds)  # what is started at once is read at once
        while kept.wanted:
            kept.wanted = False
            try:
                await self._read(kept)
                failures = 0
                kept.complete = not kept.wanted
            except (GuestError, GuestUnreachableError, ProblemError) as error:
                kept.wanted = True
                if isinstance(error, GuestError):
                    kept.source.report_guest(error)
                    failures = len(_BACK_OFF_SECONDS)
                await asyncio.sleep(_BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)])
                failures += 1
            except Exception:  # noqa: BLE001 - one sandbox's log is not worth the others'
                _log.exception("feed failed", sandbox_id=kept.source.id)
        kept.task = None

    async def _read(self, kept: _Kept) -> None:
        guest = kept.source.guest
        if guest is None:
            raise GuestUnreachableError("there is no guest")
        # A guest that keeps to what it was asked for never waits for this.
        pace = Pace(2 * self._bytes_per_second, 4 * self._bytes_per_second)
        async with kept.lock:
            _, check = await self._ready(kept)
            check.begin()
            async with guest.feed(self._request(check, follow=True)) as batches:
                async for batch in batches:
                    await self._take(kept, batch)
                    await asyncio.sleep(pace.take(len(batch.data), asyncio.get_running_loop().time()))

    def _request(self, check: FeedCheck, *, follow: bool) -> FeedRequest:
        return FeedRequest(
            positions=dict(check.known.positions),
            ended=list(check.known.ended),
            most_bytes=max(4096, int(self._bytes_per_second * INTERVAL_SECONDS)),
            interval_seconds=INTERVAL_SECONDS,
            linger_seconds=_LINGER_SECONDS,
            keepalive_seconds=_KEEPALIVE_SECONDS,
            follow=follow,
        )

    async def _take(self, kept: _Kept, batch: Batch) -> None:
        _, check = await self._ready(kept)
        rows = check.admit(batch, self._now_us())
        if rows:
            await self._write(kept, rows)

    async def _write(self, kept: _Kept, rows: list[LogRow]) -> None:
        """Write rows; what the disk does not take is lost, and told so later."""
        try:
            log, _ = await self._ready(kept)
            await in_thread(log.append, rows, self._now_us())
            kept.told_full = False
        except OSError as error:
            if not kept.told_full:
                kept.told_full = True
                _log.error("log not written", sandbox_id=kept.source.id, error=str(error))
        self.notify(kept.source.id)

    def all_adopted(self) -> None:
        """Take note that every sandbox of an earlier agent that lives is known: other logs are of ended ones."""
        self._all_adopted.set()

    async def _upkeep(self) -> None:
        await self._all_adopted.wait()
        while True:
            try:
                now = self._clock.now().timestamp()
                if not self._looked:
                    await in_thread(self.shelf.look, frozenset(self._live), now)
                    self._looked = True
                await in_thread(self.shelf.trim, now, disk_full=self._disk_full())
            except Exception:  # noqa: BLE001 - the next round tries again
                _log.exception("upkeep of logs failed")
            await asyncio.sleep(_UPKEEP_SECONDS)

    def now(self) -> datetime:
        """Return the time of day."""
        return self._clock.now()

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


async def _cancelled(kept: _Kept) -> None:
    task, kept.task = kept.task, None
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
