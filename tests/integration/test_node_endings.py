"""Endings over fakes: every reason from its evidence, deadlines, patches, grace, leftovers, the disk's watermark."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from node_kit import FakeNode, World, a_patch, a_stop, node, problem_of, turns, until
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.runtime.base import RuntimeEnd

SLEEP = {"id": "prc" + "a" * 20, "argv": ["sleep", "10000"], "stdin": False, "merge_stderr": False}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def start_sleep(opened: FakeNode, sandbox_id: str) -> None:
    await opened.world.host_world.guests[sandbox_id].start(dict(SLEEP))


def dies(*, end: RuntimeEnd | None = None, oom: bool = False, panic: bool = False) -> Callable[[World, str], None]:
    def happen(world: World, sandbox_id: str) -> None:
        world.host_world.end(sandbox_id, end or RuntimeEnd(signal=9), oom=oom, panic=panic)

    return happen


@pytest.mark.parametrize(
    ("happen", "reason", "state"),
    [
        (dies(oom=True), SandboxReason.OUT_OF_MEMORY, SandboxState.FAILED),
        (dies(panic=True), SandboxReason.RUNTIME_FAILED, SandboxState.FAILED),
        (dies(), SandboxReason.RUNTIME_FAILED, SandboxState.FAILED),
        (dies(end=RuntimeEnd(exit_code=1)), SandboxReason.GUEST_FAILED, SandboxState.FAILED),
        (
            dies(end=RuntimeEnd(signal=9, gofer_died_first=True)),
            SandboxReason.RUNTIME_FAILED,
            SandboxState.FAILED,
        ),
    ],
    ids=["memory", "panic", "killed", "guest", "gofer"],
)
async def test_a_death_is_seen_and_explained(
    world: World, happen: Callable[[World, str], None], reason: SandboxReason, state: SandboxState
) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        happen(world, sandbox_id)
        life = await opened.over(sandbox_id)
        report = opened.manager.report(life)
        assert (report.state, report.reason) == (state, reason)
        assert report.ended_at is not None
        assert report.cpu_used_seconds > 0
        assert report.message
        assert world.residue() == []
        problem = await problem_of(enter(opened, sandbox_id))
        assert (problem.code, problem.reason) == ("sandbox_ended", reason)


async def enter(opened: FakeNode, sandbox_id: str) -> None:
    async with opened.manager.use(sandbox_id):
        pass


async def test_a_death_on_a_full_disk(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.host.disk_free = 1
        world.host_world.end(sandbox_id, RuntimeEnd(signal=7))
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.NODE_DISK_FULL


async def test_a_lying_guest_is_remembered(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        async with opened.manager.use(sandbox_id) as live:
            live.report_guest(GuestUnreachableError("silent"))
            assert not opened.life(sandbox_id).guest_misbehaved
            live.report_guest(GuestError("lies"))
        world.host_world.end(sandbox_id, RuntimeEnd(signal=9))
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.GUEST_FAILED


async def test_the_first_reason_counts(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.points.at("stop.kill", "hang")
        async with asyncio.TaskGroup() as group:
            group.create_task(opened.manager.stop(sandbox_id, a_stop(wait_seconds=0)))
            await world.points.hanging.wait()
            world.host_world.end(sandbox_id, RuntimeEnd(signal=9), oom=True)
        assert opened.manager.get(sandbox_id).state is SandboxState.STOPPING
        assert opened.manager.get(sandbox_id).reason is SandboxReason.REQUESTED
        assert world.ledger.records[sandbox_id].intent is SandboxReason.REQUESTED


async def test_deletes_at_once_join_and_repeat(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start_sleep(opened, sandbox_id)
        reports = await asyncio.gather(*(opened.manager.stop(sandbox_id, a_stop(grace_seconds=1)) for _ in range(3)))
        assert {report.state for report in reports} == {SandboxState.STOPPED}
        again = await opened.manager.stop(sandbox_id, a_stop())
        assert again == reports[0]
        assert world.host_world.calls["remove"] == 1
        ensured = await problem_of(enter(opened, sandbox_id))
        assert ensured.code == "sandbox_ended"


async def test_a_delete_waits_as_long_as_it_was_told(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.host_world.guests[sandbox_id].hang("shutdown")
        report = await opened.manager.stop(sandbox_id, a_stop(grace_seconds=30, wait_seconds=0))
        assert report.state in (SandboxState.RUNNING, SandboxState.STOPPING)
        await until(lambda: opened.life(sandbox_id).state is SandboxState.STOPPING)
        assert (await problem_of(enter(opened, sandbox_id))).code == "invalid_state"
        assert (await problem_of(opened.manager.patch(sandbox_id, a_patch(timeout_seconds=5)))).code == "invalid_state"
        world.host_world.end(sandbox_id, RuntimeEnd(exit_code=0))
        life = await opened.over(sandbox_id)
        assert life.record.intent is SandboxReason.REQUESTED


async def test_open_streams_read_on_before_the_kill(world: World) -> None:
    world.settings = {"stop_drain_seconds": 30}
    async with node(world) as opened:
        sandbox_id = await opened.create()
        async with asyncio.TaskGroup() as group:
            async with opened.manager.use(sandbox_id) as live:
                group.create_task(opened.manager.stop(sandbox_id, a_stop()))
                await until(lambda: world.points.reached["stop.drain"] > 0)
                await turns()
                assert not world.host_world.sandboxes[sandbox_id].over.is_set()
                assert not live.ended.is_set()
            await opened.over(sandbox_id)
        assert live.ended.is_set()
        assert live.end_problem().code == "sandbox_ended"


async def test_the_wall_deadline(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=10)
        await world.clock.pass_by(9)
        assert opened.manager.get(sandbox_id).remaining_seconds == 1
        await world.clock.pass_by(1)
        life = await opened.over(sandbox_id)
        assert opened.manager.report(life).state is SandboxState.STOPPED
        assert life.record.intent is SandboxReason.WALL_TIMEOUT


async def test_deadlines_are_moved(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=10)
        guest = world.host_world.guests[sandbox_id]
        report = await opened.manager.patch(sandbox_id, a_patch(extend_seconds=5))
        assert report.remaining_seconds == 10
        report = await opened.manager.patch(sandbox_id, a_patch(extend_seconds=20))
        assert report.remaining_seconds == 20
        assert guest.backstop_seconds == 80
        await world.clock.pass_by(15)
        report = await opened.manager.patch(sandbox_id, a_patch(timeout_seconds=None))
        assert (report.remaining_seconds, report.expires_at) == (None, None)
        assert guest.backstop_seconds is None
        await world.clock.pass_by(100)
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
        await opened.manager.patch(sandbox_id, a_patch(generation=3, timeout_seconds=1))
        assert world.ledger.records[sandbox_id].generation == 3
        await world.clock.pass_by(1)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.WALL_TIMEOUT
        assert (await problem_of(opened.manager.patch(sandbox_id, a_patch(generation=3)))).code == "sandbox_ended"


async def test_a_backstop_that_cannot_be_moved_is_said(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=10)
        guest = world.host_world.guests[sandbox_id]
        guest.fail("set_backstop", GuestUnreachableError("lost"), times=2)
        await opened.manager.patch(sandbox_id, a_patch(timeout_seconds=20))
        guest.fail("set_backstop", GuestUnreachableError("lost"), times=3)
        problem = await problem_of(opened.manager.patch(sandbox_id, a_patch(timeout_seconds=30)))
        assert problem.code == "guest_failed"
        assert opened.manager.get(sandbox_id).remaining_seconds == 30


async def test_nothing_used_it(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(idle_timeout_seconds=20)
        await world.clock.pass_by(15)
        await enter(opened, sandbox_id)
        await world.clock.pass_by(15)
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
        await world.clock.pass_by(6)
        life = await opened.over(sandbox_id)
        assert life.record.intent is SandboxReason.IDLE_TIMEOUT
        assert "20 seconds" in (opened.manager.report(life).message or "")


async def test_an_open_stream_is_use(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(idle_timeout_seconds=10)
        async with opened.manager.use(sandbox_id):
            await world.clock.pass_by(100)
            assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
        await world.clock.pass_by(9)
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
        await world.clock.pass_by(3)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.IDLE_TIMEOUT


@pytest.mark.parametrize("ignores", [True, False])
async def test_a_running_process_is_use_unless_ignored(world: World, ignores: bool) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(idle_timeout_seconds=10, idle_ignores_processes=ignores)
        await start_sleep(opened, sandbox_id)
        asked = world.host_world.guests[sandbox_id].calls["health"]
        await world.clock.pass_by(60)
        if ignores:
            assert (await opened.over(sandbox_id)).record.intent is SandboxReason.IDLE_TIMEOUT
        else:
            assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
            assert world.host_world.guests[sandbox_id].calls["health"] - asked <= 7  # lazily: once a deadline


async def test_a_silent_guest_has_no_say_about_idleness(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(idle_timeout_seconds=10)
        await start_sleep(opened, sandbox_id)
        world.host_world.guests[sandbox_id].fail("health", GuestError("lies"), times=100)
        await world.clock.pass_by(12)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.IDLE_TIMEOUT


async def test_what_cannot_be_undone_is_tried_again(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        slot = opened.life(sandbox_id).record.slot_index
        world.host_world.fail("remove", times=4)
        report = await opened.manager.stop(sandbox_id, a_stop())
        assert report.state is SandboxState.STOPPED
        # While its remains are there, its slot and directory are given to nobody, and its resources stay counted.
        assert slot in world.kernel
        assert opened.manager.admission.used().sandboxes == 1
        await opened.upkeep.once(opened.manager)
        assert world.residue() != []
        await opened.upkeep.once(opened.manager)
        assert world.residue() == []
        assert opened.manager.admission.used().sandboxes == 0


async def test_other_cleanups_go_on_when_one_fails(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.points.at("rootfs.remove", times=100)
        await opened.manager.stop(sandbox_id, a_stop())
        assert not world.kernel
        assert not world.host_world.sandboxes
        world.points.at("")
        await opened.upkeep.once(opened.manager)
        assert world.residue() == []


async def test_a_full_ledger_keeps_nobody_from_ending(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.ledger.broken = True
        report = await opened.manager.stop(sandbox_id, a_stop())
        assert report.state is SandboxState.STOPPED
        assert world.residue() == []


async def test_below_the_watermark_the_largest_writer_goes(world: World) -> None:
    async with node(world) as opened:
        small, large = await opened.create(), await opened.create()
        world.host.written = {small: 10, large: 900}
        await opened.upkeep.once(opened.manager)
        world.host.disk_free = 500
        await opened.upkeep.once(opened.manager)
        life = await opened.over(large)
        report = opened.manager.report(life)
        assert (report.state, report.reason) == (SandboxState.FAILED, SandboxReason.NODE_DISK_FULL)
        assert "900 MiB" in (report.message or "")
        assert opened.manager.get(small).state is SandboxState.RUNNING


async def test_ends_are_reported_until_acknowledged(world: World) -> None:
    async with node(world) as opened:
        sandbox_id, other = await opened.create(), await opened.create()
        await opened.manager.stop(sandbox_id, a_stop())
        await opened.manager.acknowledge([sandbox_id, other, "sbxunknown"])
        with pytest.raises(ProblemError, match="sandbox_not_found"):
            opened.manager.get(sandbox_id)
        assert (await problem_of(enter(opened, sandbox_id))).code == "moved"
        assert set(world.ledger.records) == {other}


async def test_the_api_buries(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        opened.manager.bury([sandbox_id, "sbxunknown"])
        assert (await opened.over(sandbox_id)).state is SandboxState.STOPPED


async def test_strange_ids(world: World) -> None:
    async with node(world) as opened:
        assert (await problem_of(enter(opened, "../etc"))).code == "sandbox_not_found"
