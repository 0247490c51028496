"""What it costs to keep logs and samples: by a thousand idle control groups, and by a platform that keeps nothing."""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import bench
from harness import Platform, fresh_instance
from harness import platform as start
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.cgroups import Cgroups
from sandboxd.cgroups.tree import Limits
from sandboxd.contract.ids import new_id
from sandboxd.history.meters import HostMeters
from sandboxd.history.sampler import EVERY_SECONDS, Sampled, Sampler
from sandboxd.history.samples import SampleStore
from sandboxd.network.fake import FakeNetwork
from sandboxd.runtime.runsc import RunscRuntime

MANY = 1000
ROUNDS = 24
QUIET = 30
QUIET_SECONDS = 20
RUNS = 50
TURNS = 8


class _Clock:
    """A clock that a round moves on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def boottime(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep_until(self, boottime: float) -> None:
        self.seconds = boottime


async def sampling(platform: Platform, raw: RawBox) -> list[Row]:
    """Rounds over idle groups, and silent sandboxes and short commands with and without anything kept."""
    rounds = await _rounds(raw)
    kept_core = await _quiet(platform)
    with start(sandbox_log_mib="0", metrics_disk_mib="0") as other:
        core = await _quiet(other)
        (kept_ms, kept_cpu), (ms, cpu) = await _in_turn(platform, other)
    off = "the same with logs and samples switched off"
    return [
        Row(
            name=f"sampling the meters of {MANY} idle sandboxes",
            unit="% of a core",
            value=rounds,
            limit=1,
            note=f"one thread, {ROUNDS} rounds of real control groups, five seconds each",
        ),
        Row(
            name=f"CPU of a sandbox with a silent process, {QUIET} at once",
            unit="% of a core",
            value=kept_core,
            baseline=core,
            baseline_name=off,
            note=f"api, node, launcher and sandboxes, {QUIET_SECONDS} s; its feed is open, and it is sampled",
        ),
        Row(
            name="one process round trip (`true`) while its log is kept, p50",
            unit="ms",
            value=kept_ms,
            baseline=ms,
            baseline_name=off,
        ),
        Row(
            name="CPU of one process round trip while its log is kept",
            unit="core-ms",
            value=kept_cpu,
            baseline=cpu,
            baseline_name=off,
            note=f"of api, node, launcher and sandbox over {RUNS * TURNS}, in turn",
        ),
    ]


async def _rounds(raw: RawBox) -> float:
    """Return the share of a core that rounds over idle groups take."""
    cgroups = Cgroups(fresh_instance())
    cgroups.set_up(0)
    ids = [new_id("sbx", os.urandom) for _ in range(MANY)]
    clock = _Clock()
    with TemporaryDirectory(dir="/var/tmp") as directory:
        runtime = RunscRuntime(
            runsc=Path("/bin/true"), run_dir=Path(directory), cgroups=cgroups, connect=cast("Any", raw)
        )
        store = SampleStore(Path(directory) / "metrics.db", 1 << 30)
        sampler = Sampler(store, HostMeters(runtime, FakeNetwork(), Path(directory)), clock)
        try:
            for each in ids:
                cgroups.make(each, Limits(memory_bytes=1 << 28, cpus=1, weight=1, pids=100))
            sampled = [Sampled(id=each, handle=each, cpus=1, disk_limit=1 << 30) for each in ids]
            sampler._meters.network = lambda: None  # no network here
            sampler.once(sampled)
            used = 0.0
            for _ in range(ROUNDS):
                clock.seconds += EVERY_SECONDS
                begun = time.thread_time()
                sampler.once(sampled)
                used += time.thread_time() - begun
        finally:
            sampler.close()
            await cgroups.remove_all()
    return used / (ROUNDS * EVERY_SECONDS) * 100


async def _quiet(platform: Platform) -> float:
    """Return the CPU of a sandbox with a silent process."""
    async with bench.client(platform) as api:
        limit = asyncio.Semaphore(4)

        async def one() -> str:
            async with limit:
                sandbox = await api.create(resources=bench.SMALL, wait_seconds=120)
                await api.call("POST", f"/v1/sandboxes/{sandbox}/processes", {"argv": ["sleep", "100000"]})
                return sandbox

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(QUIET)]
        await asyncio.sleep(10)
        used, begun = bench._used_seconds(platform), time.perf_counter()
        await asyncio.sleep(QUIET_SECONDS)
        core = (bench._used_seconds(platform) - used) / (time.perf_counter() - begun) / QUIET * 100
        for task in tasks:
            await api.delete(task.result())
    return core


async def _in_turn(*platforms: Platform) -> list[tuple[float, float]]:
    """Return time and CPU of a short command on each platform, measured in turn."""
    found: list[tuple[float, float]] = []
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(bench.client(each)) for each in platforms]
        ids = [await api.create(resources=bench.SMALL) for api in apis]
        samples: list[list[float]] = [[] for _ in platforms]
        cpu = [0.0 for _ in platforms]
        for turn in range(TURNS + 1):
            for place, (platform, api) in enumerate(zip(platforms, apis, strict=True)):
                used = platform.cpu_seconds(ids[place])
                for _ in range(RUNS):
                    begun = time.perf_counter()
                    await api.run(ids[place], "true")
                    if turn:  # the first warms both up
                        samples[place].append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(0.6)  # what is read of it for the log is part of it
                cpu[place] += (platform.cpu_seconds(ids[place]) - used) if turn else 0
        for place, api in enumerate(apis):
            await api.delete(ids[place])
            found.append((median(samples[place]), cpu[place] / (TURNS * RUNS) * 1000))
    return found
