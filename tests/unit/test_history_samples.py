"""Samples: spans and steps, clocks that are set, a bound on the file, meters that go backwards."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandboxd.contract.history import Sample
from sandboxd.history.sampler import Sampled, Sampler
from sandboxd.history.samples import Facts, Reading, SampleStore

BEGAN = datetime(2026, 11, 22, 11, tzinfo=UTC)
SANDBOX = Sampled(id="sbx" + "a" * 20, handle="sbx" + "a" * 20, cpus=2, disk_limit=1 << 30, processes=3)


class Clock:
    """Time of day and time since boot, set apart."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.set_by = 0.0

    def boottime(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self.seconds + self.set_by)

    async def sleep_until(self, boottime: float) -> None:
        self.seconds = boottime


class Meters:
    """Meters of one sandbox that a test turns."""

    def __init__(self) -> None:
        self.used = 0.0
        self.gone = False
        self.before: tuple[int, int] = (100, 50)

    def cpu(self, sandbox: Sampled) -> float | None:
        assert sandbox is SANDBOX
        return None if self.gone else self.used

    def reading(self, sandbox: Sampled, at_ms: int) -> Reading | None:
        return None if self.gone else Reading(at_ms, self.used, 1, 2, 3, 4, sandbox.processes, 150, 60)

    def network(self) -> None:
        pass

    def base(self, sandbox: Sampled) -> tuple[int, int]:
        assert sandbox is SANDBOX
        return self.before

    def forget(self, sandbox_ids: set[str]) -> None:
        pass


class Bench:
    """A sampler, its clock and its meters."""

    def __init__(self, path: Path, limit_bytes: int = 1 << 26) -> None:
        self.clock, self.meters = Clock(), Meters()
        self.store = SampleStore(path, limit_bytes)
        self.sampler = Sampler(self.store, self.meters, self.clock)

    def round(self, cpu: float = 2.5, count: int = 1) -> None:
        for _ in range(count):
            self.clock.seconds += 5
            self.meters.used += cpu
            self.sampler.once([SANDBOX])

    def samples(self, begin: datetime = BEGAN - timedelta(days=1), step: int = 5) -> list[Sample]:
        begin_ms = int(begin.timestamp() * 1000)
        end_ms = int((BEGAN + timedelta(days=30)).timestamp() * 1000)
        return asyncio.run(self.sampler.samples(SANDBOX.id, begin_ms, end_ms, step, None)).items


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "metrics.db")


def test_counts_begin_with_the_sandbox(bench: Bench) -> None:
    bench.round()
    [only] = bench.samples()
    assert (only.egress_bytes, only.ingress_bytes) == (50, 10)
    assert (only.cpus, only.disk_limit_bytes, only.processes, only.cpu_used_percent) == (2, 1 << 30, 3, 0)
    bench.sampler.close()


def test_a_step_shows_its_last_sample_and_percent_is_of_what_lies_between(bench: Bench) -> None:
    bench.round(count=24)
    each, coarse = bench.samples(), bench.samples(step=60)
    assert len(each) == 24
    assert len(coarse) in {2, 3}
    assert coarse[-1].at == each[-1].at
    assert [row.cpu_used_percent for row in each[1:]] == [pytest.approx(50)] * 23
    assert coarse[1].cpu_used_percent == pytest.approx(50)
    later = bench.samples(begin=each[10].at)
    assert later[0].cpu_used_percent == pytest.approx(50)  # against the one before the span
    bench.sampler.close()


@pytest.mark.parametrize("set_by", [-86_400.0, -3.0, 3.0, 86_400.0])
def test_a_clock_that_is_set_stops_no_sampling(bench: Bench, set_by: float) -> None:
    bench.round(count=10)
    bench.clock.set_by = set_by
    bench.round(count=10)
    found = bench.samples(begin=BEGAN - timedelta(days=3))
    assert 10 <= len(found) <= 20  # a clock set far ahead makes what was before it old
    assert all(row.cpu_used_percent >= 0 for row in found)
    bench.sampler.close()


def test_meters_that_go_backwards_or_away(bench: Bench) -> None:
    bench.round(count=3)
    bench.meters.used = 1.0
    bench.round(cpu=0, count=13)
    assert all(row.cpu_used_percent >= 0 for row in bench.samples())
    bench.meters.gone = True
    before = len(bench.samples())
    bench.round(count=3)
    assert len(bench.samples()) == before
    bench.sampler.close()


def test_an_agent_that_follows_counts_on_from_the_same_base(bench: Bench, tmp_path: Path) -> None:
    bench.round(count=2)
    bench.sampler.close()
    later = Bench(tmp_path / "metrics.db")
    later.clock.seconds = bench.clock.seconds
    later.meters.before = (0, 0)
    later.round()
    assert {row.egress_bytes for row in later.samples()} == {50}
    later.sampler.close()


def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "metrics.db", 1 << 20)
    store.open()
    for turn in range(40):
        rows = [(f"sbx{turn:020d}", 2, Reading(turn * 1000 + n, 1.0, 2, 3, 4, 5, 6, 7, 8)) for n in range(1000)]
        store.write([(f"sbx{turn:020d}", Facts(1, 1, 0, 0), turn)], rows, now_ms=40_000)
    connection = store._connection
    assert connection is not None
    assert store._used_bytes(connection) <= 1 << 20
    assert store.between(f"sbx{39:020d}", 0, 10**9) != []
    assert store.between(f"sbx{0:020d}", 0, 10**9) == []
    store.close()


def test_nothing_is_sampled_where_nothing_may_be_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "metrics.db", limit_bytes=0)
    asyncio.run(bench.sampler.run(lambda: [SANDBOX]))
    assert bench.samples() == []
    assert not (tmp_path / "metrics.db").exists()
