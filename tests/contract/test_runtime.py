"""One suite over every runtime: what a verb promises, twice, out of order, cut off, and over a restart."""

import asyncio
import os
import select
import signal
import tarfile
from collections.abc import AsyncGenerator, Coroutine, Generator
from pathlib import Path
from typing import Any, Protocol

import pytest

from sandboxd.contract.messages import Resources
from sandboxd.runtime import bundle
from sandboxd.runtime.base import (
    ImageUnreadableError,
    Incarnation,
    Launch,
    ProcessIdentity,
    Runtime,
    RuntimeEnd,
    RuntimeFailedError,
)
from sandboxd.runtime.fake import FakeRuntime, FakeWorld
from tests.runsc_kit import Place, place, sandbox_id

GRACE = 60
"""A bound for a test that would hang; nothing is measured with it."""


class Bench(Protocol):
    """A runtime under test, and the ways to harm a sandbox of it."""

    runtime: Runtime

    def launch(self, mode: str = "idle", **changes: Any) -> Launch: ...
    async def restart(self) -> None: ...
    def kill_sentry(self, name: str, incarnation: Incarnation) -> None: ...
    def kill_gofer(self, name: str, incarnation: Incarnation) -> None: ...
    def guest_exits(self, name: str) -> None: ...
    def guest_eats(self, name: str) -> None: ...
    def leftovers(self) -> list[str]: ...


class FakeBench:
    """Deaths are told to the world."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.runtime: Runtime = FakeRuntime(self.world)

    def launch(self, mode: str = "idle", **changes: Any) -> Launch:  # noqa: ARG002 - a fake needs no mode
        values: dict[str, Any] = {
            "sandbox_id": sandbox_id(),
            "image_path": Path("/image"),
            "hostname": "sandbox",
            "resources": Resources(memory_mib=256, disk_mib=256),
            "netns_path": Path("/netns"),
            "address": "10.0.0.1",
            "peer": "10.0.0.0",
            "upper_dir": Path("/upper"),
            "guest_dir": Path("/guest"),
            "token_sha256": "0" * 64,
            "backstop_seconds": None,
        }
        return Launch(**(values | changes))

    async def restart(self) -> None:
        await self.runtime.close()
        self.runtime = FakeRuntime(self.world)
        await self.runtime.open()

    def kill_sentry(self, name: str, incarnation: Incarnation) -> None:  # noqa: ARG002 - a name is enough here
        self.world.end(name, RuntimeEnd(signal=9))

    def kill_gofer(self, name: str, incarnation: Incarnation) -> None:  # noqa: ARG002 - a name is enough here
        self.world.end(name, RuntimeEnd(signal=9, gofer_died_first=True))

    def guest_exits(self, name: str) -> None:
        self.world.end_guest(name, 7)

    def guest_eats(self, name: str) -> None:
        self.world.end(name, RuntimeEnd(signal=9), oom=True)

    def leftovers(self) -> list[str]:
        return list(self.world.sandboxes)


class RunscBench:
    def __init__(self, node: Place) -> None:
        self.node = node
        self.runtime: Runtime = node.runtime()

    def launch(self, mode: str = "idle", **changes: Any) -> Launch:
        return self.node.launch(mode, **changes)

    async def restart(self) -> None:
        await self.runtime.close()
        self.runtime = self.node.runtime()
        await self.runtime.open()

    def kill_sentry(self, name: str, incarnation: Incarnation) -> None:  # noqa: ARG002 - the pid is enough here
        os.kill(incarnation.sentry.pid, signal.SIGKILL)

    def kill_gofer(self, name: str, incarnation: Incarnation) -> None:  # noqa: ARG002 - the pid is enough here
        assert incarnation.gofer is not None
        os.kill(incarnation.gofer.pid, signal.SIGKILL)

    def guest_exits(self, name: str) -> None:  # noqa: ARG002 - its stand-in does so by itself
        return

    def guest_eats(self, name: str) -> None:  # noqa: ARG002 - the same
        return

    def leftovers(self) -> list[str]:
        return self.node.leftovers()


@pytest.fixture(scope="module")
def node() -> Generator[Place]:
    with place() as made:
        yield made


@pytest.fixture(params=["fake", "runsc"])
async def bench(request: pytest.FixtureRequest) -> AsyncGenerator[Bench]:
    made = FakeBench() if request.param == "fake" else RunscBench(request.getfixturevalue("node"))
    await made.runtime.open()
    yield made
    for name in await made.runtime.known():
        await made.runtime.remove(name)
    assert made.leftovers() == []
    await made.runtime.close()


async def _running(bench: Bench, mode: str = "idle", **changes: Any) -> tuple[str, Incarnation]:
    launch = bench.launch(mode, **changes)
    await bench.runtime.create(launch)
    return launch.sandbox_id, await bench.runtime.start(launch.sandbox_id)


async def _end(bench: Bench, name: str) -> RuntimeEnd:
    async with asyncio.timeout(GRACE):
        return await bench.runtime.wait(name)


async def test_says_what_it_is(bench: Bench) -> None:
    version = await bench.runtime.version()
    assert version.name in {"fake", "runsc"}
    assert version.version
    assert await bench.runtime.known() == set()


async def test_create_start_kill_remove(bench: Bench) -> None:
    launch = bench.launch()
    await bench.runtime.create(launch)
    assert await bench.runtime.known() == {launch.sandbox_id}
    incarnation = await bench.runtime.start(launch.sandbox_id)
    assert incarnation.sentry.pid > 1
    await bench.runtime.kill(launch.sandbox_id)
    end = await _end(bench, launch.sandbox_id)
    assert end == RuntimeEnd(signal=9)
    await bench.runtime.remove(launch.sandbox_id)
    assert await bench.runtime.known() == set()
    assert bench.leftovers() == []


async def test_kill_and_remove_are_idempotent_and_need_nothing(bench: Bench) -> None:
    never = sandbox_id()
    await bench.runtime.kill(never)
    await bench.runtime.remove(never)
    name, _ = await _running(bench)
    for _ in range(2):
        await bench.runtime.kill(name)
    for _ in range(2):
        await bench.runtime.remove(name)
    assert await bench.runtime.known() == set()


async def test_remove_takes_a_live_one(bench: Bench) -> None:
    name, _ = await _running(bench)
    await bench.runtime.remove(name)
    assert bench.leftovers() == []


async def test_remove_takes_one_that_was_only_created(bench: Bench) -> None:
    launch = bench.launch()
    await bench.runtime.create(launch)
    await bench.runtime.remove(launch.sandbox_id)
    assert bench.leftovers() == []


async def test_create_and_start_are_not_idempotent(bench: Bench) -> None:
    launch = bench.launch()
    await bench.runtime.create(launch)
    with pytest.raises(RuntimeFailedError):
        await bench.runtime.create(launch)
    await bench.runtime.start(launch.sandbox_id)
    with pytest.raises(RuntimeFailedError):
        await bench.runtime.start(launch.sandbox_id)


async def test_start_of_nothing_fails(bench: Bench) -> None:
    with pytest.raises(RuntimeFailedError):
        await bench.runtime.start(sandbox_id())


async def test_every_waiter_sees_the_end_of_the_sentry(bench: Bench) -> None:
    name, incarnation = await _running(bench)
    async with asyncio.timeout(GRACE), asyncio.TaskGroup() as group:
        waiters = [group.create_task(bench.runtime.wait(name)) for _ in range(3)]
        bench.kill_sentry(name, incarnation)
    assert [waiter.result() for waiter in waiters] == [RuntimeEnd(signal=9)] * 3


async def test_a_dead_gofer_is_the_end(bench: Bench) -> None:
    name, incarnation = await _running(bench)
    bench.kill_gofer(name, incarnation)
    assert (await _end(bench, name)).gofer_died_first


async def test_the_guests_exit_code_is_the_end(bench: Bench) -> None:
    name, _ = await _running(bench, "exit")
    bench.guest_exits(name)
    end = await _end(bench, name)
    assert end == RuntimeEnd(exit_code=7)
    assert not bench.runtime.panicked(name)


async def test_out_of_memory_is_on_the_meter(bench: Bench) -> None:
    name, _ = await _running(bench, "eat", resources=Resources(memory_mib=64, disk_mib=64))
    bench.guest_eats(name)
    end = await _end(bench, name)
    assert not end.gofer_died_first
    usage = bench.runtime.usage(name)
    assert usage is not None
    assert usage.oom_kills >= 1
    assert usage.memory_peak_bytes > 64 * bundle.MIB


async def test_meters(bench: Bench) -> None:
    assert bench.runtime.usage(sandbox_id()) is None
    name, _ = await _running(bench)
    usage = bench.runtime.usage(name)
    assert usage is not None
    assert usage.cpu_used_seconds > 0
    assert 0 < usage.memory_used_bytes <= usage.memory_peak_bytes
    assert usage.memory_limit_bytes == bundle.limits(Resources(memory_mib=256)).memory_bytes
    assert usage.oom_kills == 0
    assert usage.processes >= 2
    await bench.runtime.remove(name)
    assert bench.runtime.usage(name) is None


async def test_what_a_sandbox_changed_is_an_archive_and_it_lives_on(bench: Bench) -> None:
    launch = bench.launch()
    await bench.runtime.create(launch)
    await bench.runtime.start(launch.sandbox_id)
    reading, writing = os.pipe()

    def read() -> list[str]:
        with os.fdopen(reading, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            return [info.name for info in archive]

    try:
        names, _ = await asyncio.gather(
            asyncio.to_thread(read), _closing(bench.runtime.difference(launch.sandbox_id, writing), writing)
        )
        assert set(names) <= {".", "./.sandlot", "./tmp", "./etc"}, "nothing but what its start made"
        assert bench.runtime.usage(launch.sandbox_id) is not None
    finally:
        await bench.runtime.remove(launch.sandbox_id)


async def test_a_difference_that_nobody_reads_fails_and_harms_nothing(bench: Bench) -> None:
    launch = bench.launch()
    await bench.runtime.create(launch)
    await bench.runtime.start(launch.sandbox_id)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(RuntimeFailedError):
            await _closing(bench.runtime.difference(launch.sandbox_id, writing), writing)
        assert bench.runtime.usage(launch.sandbox_id) is not None
        with pytest.raises(RuntimeFailedError):
            await bench.runtime.difference(sandbox_id(), 0)
    finally:
        await bench.runtime.remove(launch.sandbox_id)


async def _closing(work: Coroutine[Any, Any, None], descriptor: int) -> None:
    try:
        await work
    finally:
        os.close(descriptor)


async def test_limits_of_a_live_sandbox_change(bench: Bench) -> None:
    name, _ = await _running(bench)
    more = Resources(memory_mib=512, cpus=2, max_processes=2048)
    await bench.runtime.update(name, more)
    usage = bench.runtime.usage(name)
    assert usage is not None
    assert usage.memory_limit_bytes == bundle.limits(more).memory_bytes
    with pytest.raises(RuntimeFailedError):
        await bench.runtime.update(sandbox_id(), more)


async def test_limits_of_a_live_sandbox_go_down_too_but_not_below_what_it_holds(bench: Bench) -> None:
    name, _ = await _running(bench, resources=Resources(memory_mib=512, cpus=2), background=True)
    less = Resources(memory_mib=128, cpus=0.5, max_processes=64)
    await bench.runtime.update(name, less)
    usage = bench.runtime.usage(name)
    assert usage is not None
    assert usage.memory_limit_bytes == bundle.limits(less).memory_bytes
    if isinstance(bench, RunscBench):
        shares = [int(path.read_text()) for path in Path("/sys/fs/cgroup").glob(f"cpu/*/sandboxes/{name}/cpu.shares")]
        weights = [int(path.read_text()) for path in Path("/sys/fs/cgroup").glob(f"*/sandboxes/{name}/cpu.weight")]
        assert shares == [512] or weights == [50]


async def test_one_that_nobody_waits_for_leaves_others_the_processors(bench: Bench) -> None:
    name, _ = await _running(bench, background=True)
    if isinstance(bench, RunscBench):
        shares = [int(path.read_text()) for path in Path("/sys/fs/cgroup").glob(f"cpu/*/sandboxes/{name}/cpu.shares")]
        weights = [int(path.read_text()) for path in Path("/sys/fs/cgroup").glob(f"*/sandboxes/{name}/cpu.weight")]
        assert shares == [51] or weights == [5]
    assert await bench.runtime.known() == {name}


async def test_a_restarted_node_takes_its_sandboxes_over(bench: Bench) -> None:
    name, incarnation = await _running(bench)
    other, _ = await _running(bench)
    await bench.restart()
    assert await bench.runtime.known() == {name, other}
    assert await bench.runtime.recover(name, incarnation)
    async with asyncio.timeout(GRACE), asyncio.TaskGroup() as group:
        waiter = group.create_task(bench.runtime.wait(name))
        bench.kill_sentry(name, incarnation)
    assert not waiter.result().gofer_died_first


async def test_a_restarted_node_sees_who_is_gone(bench: Bench) -> None:
    name, incarnation = await _running(bench)
    await bench.runtime.kill(name)
    await bench.restart()
    assert not await bench.runtime.recover(name, incarnation)
    assert await bench.runtime.known() == {name}


async def test_another_process_of_the_same_pid_is_not_taken_over(bench: Bench) -> None:
    name, incarnation = await _running(bench)
    await bench.restart()
    sentry = incarnation.sentry
    stranger = ProcessIdentity(pid=sentry.pid, start_time=sentry.start_time + 1)
    assert not await bench.runtime.recover(name, Incarnation(sentry=stranger, gofer=None))
    assert await bench.runtime.recover(name, incarnation)


async def test_a_verb_that_is_cut_off_leaves_nothing_after_remove(bench: Bench) -> None:
    for moment in range(0, 60, 6):
        launch = bench.launch()
        task = asyncio.ensure_future(_create_and_start(bench.runtime, launch))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await bench.runtime.remove(launch.sandbox_id)
        assert bench.leftovers() == []


async def _create_and_start(runtime: Runtime, launch: Launch) -> None:
    await runtime.create(launch)
    await runtime.start(launch.sandbox_id)


async def test_many_at_once(bench: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_running(bench)) for _ in range(4)]
    names = {task.result()[0] for task in tasks}
    assert await bench.runtime.known() == names
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(bench.runtime.remove(name))
    assert bench.leftovers() == []


async def test_the_guest_is_reached_by_its_address(bench: Bench) -> None:
    name, _ = await _running(bench)
    health = await bench.runtime.guest(name, "10.0.0.1", "token").health()
    assert not health.initialized


async def test_runsc_gives_pid_1_what_the_guest_needs(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch("look")
    try:
        await runtime.create(launch)
        await runtime.start(launch.sandbox_id)
        async with asyncio.timeout(GRACE):
            assert await runtime.wait(launch.sandbox_id) == RuntimeEnd(exit_code=0)
    finally:
        await runtime.remove(launch.sandbox_id)


async def test_runsc_sees_a_gofer_that_died_while_nobody_looked(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch()
    try:
        await runtime.create(launch)
        incarnation = await runtime.start(launch.sandbox_id)
        assert incarnation.gofer is not None
        await runtime.close()
        pidfd = os.pidfd_open(incarnation.gofer.pid)
        os.kill(incarnation.gofer.pid, signal.SIGKILL)
        await asyncio.to_thread(select.select, [pidfd], [], [], GRACE)
        os.close(pidfd)
        runtime = node.runtime()
        await runtime.open()
        assert await runtime.recover(launch.sandbox_id, incarnation)
        async with asyncio.timeout(GRACE):
            assert (await runtime.wait(launch.sandbox_id)).gofer_died_first
    finally:
        await runtime.remove(launch.sandbox_id)


async def test_runsc_runs_the_sentry_without_rights_on_the_host(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch()
    try:
        await runtime.create(launch)
        sentry = Path("/proc") / str((await runtime.start(launch.sandbox_id)).sentry.pid)
        status = dict(line.split(":\t", 1) for line in (sentry / "status").read_text().splitlines() if ":\t" in line)
        assert set(status["Uid"].split()) == {"65534"}
        assert int(status["CapPrm"], 16) == 0
        assert status["Seccomp"] == "2"
        for namespace in ("user", "mnt", "pid", "ipc", "uts", "net"):
            assert (sentry / "ns" / namespace).readlink() != Path("/proc/self/ns", namespace).readlink()
        assert (sentry / "oom_score_adj").read_text().strip() == str(bundle.SCORE_ADJUSTMENT)
    finally:
        await runtime.remove(launch.sandbox_id)


async def test_runsc_says_why_it_failed(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch(netns_path=Path("/run/netns/there-is-none"))
    try:
        with pytest.raises(RuntimeFailedError, match="there-is-none"):
            await _create_and_start(runtime, launch)
    finally:
        await runtime.remove(launch.sandbox_id)
    assert node.leftovers() == []


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"no image at all" * 1000])
async def test_runsc_tells_an_unreadable_image(node: Place, tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch(image_path=image)
    try:
        with pytest.raises(ImageUnreadableError):
            await _create_and_start(runtime, launch)
    finally:
        await runtime.remove(launch.sandbox_id)
    assert node.leftovers() == []


async def test_runsc_keeps_no_secret_and_nothing_is_open_to_others(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    launch = node.launch()
    try:
        await runtime.create(launch)
        for directory in ("state", "bundles"):
            assert (node.run_dir / "runsc" / directory).stat().st_mode & 0o777 == 0o700
        config = (node.run_dir / "runsc/bundles" / launch.sandbox_id / "config.json").read_text()
        assert launch.token_sha256 in config
    finally:
        await runtime.remove(launch.sandbox_id)


async def _whole_life(runtime: Runtime, launch: Launch) -> None:
    await _create_and_start(runtime, launch)
    await runtime.kill(launch.sandbox_id)
    await runtime.remove(launch.sandbox_id)


async def test_fake_fails_on_request() -> None:
    bench = FakeBench()
    for verb in ("create", "start", "kill", "remove"):
        launch = bench.launch()
        bench.world.fail(verb, "after", sandbox_id=launch.sandbox_id)
        with pytest.raises(RuntimeFailedError):
            await _whole_life(bench.runtime, launch)
        await bench.runtime.remove(launch.sandbox_id)
    launch = bench.launch()
    bench.world.fail("create", "hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await bench.runtime.create(launch)
    assert bench.leftovers() == []
