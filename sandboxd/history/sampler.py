"""Samples the meters of all live sandboxes, at intervals, from the host alone; tells them back as lists.

An idle sandbox costs one look at its processor time; it is read whole only now and then.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from sandboxd.clock import Clock
from sandboxd.contract.history import Sample, SampleList
from sandboxd.history.samples import TIERS, Facts, Reading, SampleStore
from sandboxd.history.threads import in_thread

_log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = float(TIERS[0][0])
IDLE_SECONDS: Final = 60.0
"""How often a sandbox is sampled that does nothing."""
_IDLE_SHARE: Final = 0.005
"""Of one processor: what a sandbox uses that does nothing, and a little more."""
_FLUSH_SECONDS: Final = 30.0
_FRESH_MS: Final = 1000
"""A sample so old is told as the present one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A sandbox to be sampled."""

    id: str
    handle: str
    """What runtime and upper directory know it by."""
    cpus: float
    disk_limit: int
    cpu_before_seconds: float = 0
    """What its host processes had used before they were its own."""
    interface: str | None = None
    """The router's end of its slot."""
    pids: tuple[int, ...] = ()
    """Its host processes."""
    processes: int = 0
    """Inside, by its own word."""


class Meters(Protocol):
    """Where the numbers of one sandbox come from."""

    def cpu(self, sandbox: Sampled) -> float | None:
        """Return its processor seconds; None when it is gone. Cheap."""
        ...

    def reading(self, sandbox: Sampled, at_ms: int) -> Reading | None:
        """Return everything; its network counts are the slot's own, since whenever."""
        ...

    def network(self) -> None:
        """Read every slot's counters anew."""
        ...

    def base(self, sandbox: Sampled) -> tuple[int, int]:
        """Return what its slot's counters were before it was the sandbox's."""
        ...

    def forget(self, sandbox_ids: set[str]) -> None:
        """Take note that sandboxes are gone."""
        ...


@dataclass(slots=True)
class _Track:
    """One live sandbox."""

    facts: Facts
    cpu: float
    """At the last look."""
    last: Reading | None = None
    written_ms: list[int] | None = None
    """When each tier was last given a sample."""
    new: bool = True


class Sampler:
    """One thread at a time looks; what it saw waits in memory until it is written."""

    def __init__(self, store: SampleStore, meters: Meters, clock: Clock) -> None:
        self._store = store
        self._meters = meters
        self._clock = clock
        self._tracks: dict[str, _Track] = {}
        self._lock = threading.Lock()
        self._held: list[tuple[str, int, Reading]] = []
        self._seen: list[tuple[str, Facts, int]] = []
        self._flushed = clock.boottime()
        self._is_open = False

    async def run(self, sandboxes: Callable[[], list[Sampled]]) -> None:
        """Sample for ever. A round that fails is logged, and the next one tries again."""
        if not self._store.limit_bytes:
            return
        due = self._clock.boottime()
        while True:
            try:
                await in_thread(self.once, sandboxes())
            except Exception:  # noqa: BLE001 - the next round tries again
                _log.exception("sampling failed")
            due = max(due + EVERY_SECONDS, self._clock.boottime())
            await self._clock.sleep_until(due)

    def once(self, sandboxes: list[Sampled]) -> None:
        """Go round once."""
        now_ms = self._now_ms()
        with self._lock:
            self._open()
            self._meters.network()
            for sandbox in sandboxes:
                self._look(sandbox, now_ms)
            gone = self._tracks.keys() - {each.id for each in sandboxes}
            self._meters.forget(gone)
            for each in gone:
                del self._tracks[each]
            if self._clock.boottime() - self._flushed >= _FLUSH_SECONDS:
                self._flush(now_ms)

    def tracks(self, sandbox_id: str) -> bool:
        """Tell whether a sandbox has been sampled."""
        return sandbox_id in self._tracks

    def last(self, sandbox: Sampled) -> None:
        """Take the last sample of a sandbox that is about to be taken away."""
        with self._lock:
            self._look(sandbox, self._now_ms(), whole=True)
            self._tracks.pop(sandbox.id, None)

    def close(self) -> None:
        """Write what waits."""
        with self._lock:
            if self._is_open:
                self._flush(self._now_ms())
                self._store.close()
                self._is_open = False

    def _open(self) -> None:
        if not self._is_open:
            self._store.open()
            self._is_open = True

    def _look(self, sandbox: Sampled, now_ms: int, *, whole: bool = False) -> None:
        cpu = self._meters.cpu(sandbox)
        if cpu is None:
            return
        track = self._tracks.get(sandbox.id) or self._begin(sandbox)
        idle = cpu - track.cpu < _IDLE_SHARE * EVERY_SECONDS
        track.cpu = cpu
        last = track.last
        recent = last is not None and 0 <= now_ms - last.at_ms < IDLE_SECONDS * 1000 - 500
        if idle and recent and not whole:
            return
        reading = self._meters.reading(sandbox, now_ms)
        if reading is not None:
            self._keep(sandbox.id, track, reading)

    def _begin(self, sandbox: Sampled) -> _Track:
        facts = self._store.facts(sandbox.id)
        if facts is None:
            facts = Facts(sandbox.cpus, sandbox.disk_limit, *self._meters.base(sandbox))
        track = _Track(facts, cpu=-math.inf)
        self._tracks[sandbox.id] = track
        return track

    def _keep(self, sandbox_id: str, track: _Track, reading: Reading) -> None:
        reading = reading._replace(
            egress=max(0, reading.egress - track.facts.egress_base),
            ingress=max(0, reading.ingress - track.facts.ingress_base),
        )
        written = track.written_ms or [0] * len(TIERS)
        for tier, (seconds, _) in enumerate(TIERS):
            # Half an interval early is in time; a clock that was set back begins anew.
            if not 0 <= reading.at_ms - written[tier] < seconds * 1000 - EVERY_SECONDS * 500:
                self._held.append((sandbox_id, tier, reading))
                written[tier] = reading.at_ms
        track.written_ms = written
        if track.new or track.last is None or reading.at_ms - track.last.at_ms > 0:
            self._seen.append((sandbox_id, track.facts, reading.at_ms))
        track.new = False
        track.last = reading

    def _flush(self, now_ms: int) -> None:
        held, self._held = self._held, []
        seen, self._seen = self._seen, []
        self._flushed = self._clock.boottime()
        newest = {sandbox_id: (sandbox_id, facts, at) for sandbox_id, facts, at in seen}
        self._store.write(newest.values(), held, now_ms)

    async def samples(
        self, sandbox_id: str, begin_ms: int, end_ms: int, step_seconds: int, live: Sampled | None
    ) -> SampleList:
        """Return the samples of a span, at most one a step: its last one. A live sandbox's present is among them."""
        return await in_thread(self._samples, sandbox_id, begin_ms, end_ms, step_seconds, live)

    def _samples(
        self, sandbox_id: str, begin_ms: int, end_ms: int, step_seconds: int, live: Sampled | None
    ) -> SampleList:
        if not self._store.limit_bytes:
            return SampleList(items=[])
        with self._lock:
            self._open()
            now_ms = self._now_ms()
            if live is not None and end_ms >= now_ms:
                self._refresh(live, now_ms)
            track = self._tracks.get(sandbox_id)
            facts = track.facts if track else self._known_facts(sandbox_id)
            if facts is None:
                return SampleList(items=[])
            rows = {row.at_ms: row for row in self._store.between(sandbox_id, begin_ms, end_ms)}
            held = [row for name, _, row in self._held if name == sandbox_id]
            rows |= {row.at_ms: row for row in held if begin_ms <= row.at_ms <= end_ms}
            earlier = [row for row in held if row.at_ms < begin_ms]
            before = self._store.before(sandbox_id, begin_ms)
            if before is not None:
                earlier.append(before)
        ordered = [rows[at] for at in sorted(rows)]
        chosen = {(row.at_ms - begin_ms) // (step_seconds * 1000): row for row in ordered}
        return SampleList(items=_rendered(list(chosen.values()), max(earlier, default=None), facts))

    def _known_facts(self, sandbox_id: str) -> Facts | None:
        waiting = [facts for name, facts, _ in self._seen if name == sandbox_id]
        return waiting[-1] if waiting else self._store.facts(sandbox_id)

    def _refresh(self, live: Sampled, now_ms: int) -> None:
        track = self._tracks.get(live.id)
        if track is None or track.last is None or not 0 <= now_ms - track.last.at_ms < _FRESH_MS:
            self._meters.network()
            self._look(live, now_ms, whole=True)

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _rendered(rows: list[Reading], before: Reading | None, facts: Facts) -> list[Sample]:
    return [_sample(row, rows[index - 1] if index else before, facts) for index, row in enumerate(rows)]


def _sample(row: Reading, before: Reading | None, facts: Facts) -> Sample:
    used = row.cpu_used_seconds - (before.cpu_used_seconds if before else row.cpu_used_seconds)
    seconds = (row.at_ms - before.at_ms) / 1000 if before else 0
    return Sample(
        at=datetime.fromtimestamp(row.at_ms / 1000, UTC),
        cpu_used_seconds=round(row.cpu_used_seconds, 6),
        cpu_used_percent=round(max(0.0, used) / seconds * 100, 3) if seconds > 0 else 0.0,
        cpus=facts.cpus,
        memory_used_bytes=row.memory_used,
        memory_cache_bytes=row.memory_cache,
        memory_limit_bytes=row.memory_limit,
        disk_used_bytes=row.disk_used,
        disk_limit_bytes=facts.disk_limit,
        processes=row.processes,
        egress_bytes=row.egress,
        ingress_bytes=row.ingress,
    )
