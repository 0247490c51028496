"""Keeps what was decided about sandboxes' traffic: equal decisions as one row, some seconds of them in memory.

Rows come from programs that read what sandboxes send, so each is checked and bounded before it is anything.
"""

import asyncio
import sqlite3
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from sandboxd.history.decision_store import DecisionStore, Row, What
from sandboxd.history.threads import in_thread
from sandboxd.history.watched import Watched
from sandboxd.processes.rendering import moment

_log = structlog.get_logger(__name__)

MERGED_MS: Final = 10_000
_FLUSH_SECONDS: Final = 1.0
_TRIM_EVERY: Final = 30
_DAY_MS: Final = 86_400_000
_NEW_ROWS: Final = 200
"""New rows of one sandbox in ten seconds; what is above that is counted as one."""
_DENIED: Final = 64
_MOST_OPEN: Final = 65_536
_LENGTHS: Final = {"rule": 1200, "reason": 64, "name": 255, "address": 15, "protocol": 8}
_MOST_COUNT: Final = 1 << 31


class DecisionBook(Watched):
    """The node's decisions. `now_ms` is the wall clock."""

    def __init__(self, store: DecisionStore, now_ms: Callable[[], int], *, days: float = 7) -> None:
        self._store = store
        self._now_ms = now_ms
        self._days = days
        self.owners: Callable[[], Mapping[str, str]] = dict
        """Says which living sandbox is at which address."""
        self._position = 0
        self._open = OrderedDict[What, Row]()
        """What may still grow, in the order of its first moment."""
        self._unwritten: dict[int, Row] = {}
        self._recent: dict[str, deque[int]] = {}
        self._denied: dict[str, OrderedDict[What, Row]] = {}
        super().__init__()
        self._busy: set[str] = set()
        self.counts: Counter[tuple[str, str]] = Counter()
        """Decisions by verdict and by who made them."""

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Write what comes while inside."""
        self._position = await in_thread(self._store.open)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write())
            try:
                yield
            finally:
                writing.cancel()
                await self._flush()
                await in_thread(self._store.close)

    def is_live(self, sandbox_id: str) -> bool:
        """Whether more may come."""
        return sandbox_id in self.owners().values()

    def take(self, via: str, rows: Iterable[dict[str, Any]]) -> None:
        """Take what a program has decided; what is not believable is dropped."""
        owners = self.owners()
        for row in rows:
            sandbox_id = owners.get(str(row.get("sandbox")))
            what = None if sandbox_id is None else _checked(sandbox_id, via, row)
            count = row.get("count")
            if what is not None and isinstance(count, int) and 0 < count < _MOST_COUNT:
                self._add(what, count)

    def denied(self, sandbox_id: str, begin_ms: int, end_ms: int, limit: int) -> list[dict[str, Any]]:
        """Return the latest refusals in a span of time, oldest first."""
        rows = self._denied.get(sandbox_id, OrderedDict[What, Row]()).values()
        found = [row for row in rows if begin_ms <= row.last_ms and row.first_ms <= end_ms]
        return [shown(row) for row in sorted(found, key=lambda row: row.last_ms)[-limit:]]

    async def after(self, sandbox_id: str, position: int, since_ms: int, verdict: str | None, limit: int) -> list[Row]:
        """Return what is kept behind a position, oldest first."""
        await self._flush()
        return await in_thread(self._store.after, sandbox_id, position, since_ms, verdict, limit)

    def _add(self, what: What, count: int) -> None:
        now = self._now_ms()
        self.counts[what.verdict, what.via] += count
        self._busy.add(what.sandbox_id)
        self._let_go(now)
        row = self._open.get(what)
        if row is None and not self._has_room(what.sandbox_id, now):
            what = What(
                what.sandbox_id, what.verdict, "limit", None, "too_many_to_list", None, None, None, None, what.via
            )
            row = self._open.get(what)
        if row is None:
            self._position += 1
            row = Row(self._position, now, now, 0, what)
        row = row._replace(last_ms=now, times=row.times + count)
        self._open[what] = self._unwritten[row.id] = row
        if what.verdict == "deny":
            denied = self._denied.setdefault(what.sandbox_id, OrderedDict[What, Row]())
            denied[what] = row
            denied.move_to_end(what)
            if len(denied) > _DENIED:
                denied.popitem(last=False)
        self.notify(what.sandbox_id)

    def _let_go(self, now: int) -> None:
        while self._open:
            what, row = next(iter(self._open.items()))
            if now - row.first_ms < MERGED_MS and len(self._open) < _MOST_OPEN:
                return
            del self._open[what]

    def _has_room(self, sandbox_id: str, now: int) -> bool:
        recent = self._recent.setdefault(sandbox_id, deque())
        while recent and recent[0] <= now - MERGED_MS:
            recent.popleft()
        if len(recent) >= _NEW_ROWS:
            return False
        recent.append(now)
        return True

    async def _write(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self._flush()
            rounds += 1
            if rounds % _TRIM_EVERY == 1:
                busy, self._busy = self._busy, set()
                self._forget_ended()
                await self._try(self._store.trim, busy, int(self._now_ms() - self._days * _DAY_MS))

    def _forget_ended(self) -> None:
        living = set(self.owners().values())
        for held in (self._recent, self._denied):
            for sandbox_id in [each for each in held if each not in living]:
                del held[sandbox_id]

    async def _flush(self) -> None:
        rows, self._unwritten = self._unwritten, {}
        if rows:
            await self._try(self._store.write, list(rows.values()))

    async def _try(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            await in_thread(work, *arguments)
        except (sqlite3.Error, OSError) as error:
            _log.error("decisions not written", error=str(error))


def shown(row: Row) -> dict[str, Any]:
    """Return a row as its readers get it, without its cursor."""
    what = row.what._asdict()
    del what["sandbox_id"]
    return {
        "first_at": moment(row.first_ms * 1000),
        "last_at": moment(row.last_ms * 1000),
        "count": row.times,
    } | what


def _checked(sandbox_id: str, via: str, row: dict[str, Any]) -> What | None:
    texts: dict[str, str | None] = {}
    for name, length in _LENGTHS.items():
        value = row.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= length and value.isprintable()):
            return None
        texts[name] = value
    port = row.get("port")
    if port is not None and not (isinstance(port, int) and 0 <= port <= 65535):
        return None
    verdict, source = row.get("verdict"), row.get("source")
    if verdict not in {"allow", "deny"} or source not in {"policy", "platform", "limit"}:
        return None
    return What(
        sandbox_id=sandbox_id, verdict=str(verdict), source=str(source), rule=texts["rule"], reason=texts["reason"],
        name=texts["name"], address=texts["address"], port=port, protocol=texts["protocol"], via=via,
    )  # fmt: skip
