"""Restarts over fakes: an agent killed at every step, and what its successor makes of what it finds."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from node_kit import STARTING, World, a_patch, a_sandbox_id, a_stop, an_ensure, crashing_node, node, problem_of, until
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.network.fake import FakeNetwork
from sandboxd.runtime.base import RuntimeEnd

ENDING = (
    "stop.shutdown",
    "stop.drain",
    "stop.kill",
    "stop.judge",
    "guest.close",
    "launch.kill",
    "launch.remove",
    "launch.removed",
    "tunnels.close",
    "tunnels.closed",
    "rootfs.remove",
    "rootfs.unlease",
    "rootfs.removed",
    "slot.release",
    "slot.released",
    "stop.end",
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_lists_above_are_all_the_steps_there_are(world: World) -> None:
    async with node(world) as opened:
        declared = {step for hook in opened.manager.tools.hooks for step in hook.steps}
        sandbox_id = await opened.create()
        await opened.manager.stop(sandbox_id, a_stop())
    assert set(world.points.reached) == {*STARTING, *ENDING, "start.acknowledged"}
    assert declared <= set(world.points.reached)


@pytest.mark.parametrize("step", STARTING)
async def test_killed_while_starting(world: World, step: str) -> None:
    sandbox_id = a_sandbox_id()
    async with crashing_node(world) as opened:
        world.points.at(step, "hang")
        waiting = asyncio.ensure_future(opened.manager.ensure(sandbox_id, an_ensure(world)))
        await world.points.hanging.wait()
        waiting.cancel()
    async with node(world) as opened:
        # Buried without a trace, so that the api's ensure makes it again.
        assert world.residue() == []
        assert opened.manager.runners == {}
        assert world.ledger.records == {}
        report = await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert report.state is SandboxState.RUNNING


@pytest.mark.parametrize("step", STARTING)
async def test_failing_while_starting(world: World, step: str) -> None:
    async with node(world) as opened:
        world.points.at(step)
        sandbox_id = a_sandbox_id()
        problem = await problem_of(opened.manager.ensure(sandbox_id, an_ensure(world)))
        assert problem.code == "start_failed"
        assert "tripped" not in problem.detail
        assert world.residue() == []
        report = opened.manager.get(sandbox_id)
        assert (report.state, report.reason) == (SandboxState.FAILED, SandboxReason.START_FAILED)
        assert opened.manager.admission.used().sandboxes == 0


@pytest.mark.parametrize("step", ENDING)
@pytest.mark.parametrize("times", [1, 2])
async def test_failing_while_ending(world: World, step: str, times: int) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.points.at(step, times=times)
        report = await opened.manager.stop(sandbox_id, a_stop())
        assert (report.state, report.reason) == (SandboxState.STOPPED, SandboxReason.REQUESTED)
        assert world.residue() == []


@pytest.mark.parametrize("step", ENDING)
async def test_killed_while_ending(world: World, step: str) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
        world.points.at(step, "hang")
        waiting = asyncio.ensure_future(opened.manager.stop(sandbox_id, a_stop()))
        await world.points.hanging.wait()
        waiting.cancel()
    async with node(world) as opened:
        life = await opened.over(sandbox_id)
        report = opened.manager.report(life)
        assert (report.state, report.reason) == (SandboxState.STOPPED, SandboxReason.REQUESTED)
        assert world.residue() == []
    async with node(world) as opened:
        assert opened.manager.get(sandbox_id).reason is SandboxReason.REQUESTED


@pytest.mark.parametrize("step", [step for step in ENDING if not step.startswith("stop.") or step == "stop.end"])
async def test_killed_while_undoing_a_death_the_reason_stays(world: World, step: str) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
        world.points.at(step, "hang")
        world.host_world.end(sandbox_id, RuntimeEnd(signal=9), oom=True)
        await world.points.hanging.wait()
    async with node(world) as opened:
        life = await opened.over(sandbox_id)
        assert opened.manager.report(life).reason is SandboxReason.OUT_OF_MEMORY
        assert world.residue() == []


@pytest.mark.parametrize("crash", [True, False])
async def test_a_running_sandbox_is_adopted(world: World, crash: bool) -> None:
    async with (crashing_node if crash else node)(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=100)
        before = opened.manager.get(sandbox_id)
        egress = dict(opened.network.egress)
    async with node(world) as opened:
        assert opened.manager.get(sandbox_id) == before
        assert opened.network.egress == egress
        assert opened.manager.admission.used().sandboxes == 1
        async with opened.manager.use(sandbox_id) as live:
            assert (await live.guest.health()).initialized
            assert live.shell == "/bin/sh"
        again = await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert again.state is SandboxState.RUNNING
        assert world.host_world.calls["create"] == 1
        await world.clock.pass_by(101)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.WALL_TIMEOUT
    assert world.residue() == []


async def test_its_death_is_seen_after_adoption(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
    async with node(world) as opened:
        world.host_world.end(sandbox_id, RuntimeEnd(exit_code=3))
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.GUEST_FAILED


async def test_moved_deadlines_and_generations_survive(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=100)
        await opened.manager.patch(sandbox_id, a_patch(generation=7, timeout_seconds=500, idle_timeout_seconds=50))
    async with node(world) as opened:
        assert opened.manager.get(sandbox_id).remaining_seconds == 500
        stale = await problem_of(opened.manager.patch(sandbox_id, a_patch(generation=6)))
        assert stale.code == "stale_generation"
        await world.clock.pass_by(51)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.IDLE_TIMEOUT


async def test_the_epoch_survives(world: World) -> None:
    async with crashing_node(world) as opened:
        await opened.manager.meet_epoch(4)
    async with node(world) as opened:
        problem = await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world, epoch=3)))
        assert problem.code == "stale_generation"


async def test_last_use_survives(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(idle_timeout_seconds=20)
        async with opened.manager.use(sandbox_id):
            await world.clock.pass_by(15)
            await opened.upkeep.once(opened.manager)
    async with node(world) as opened:
        await world.clock.pass_by(15)
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING
        await world.clock.pass_by(6)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.IDLE_TIMEOUT


@pytest.mark.parametrize(
    ("traces", "reason"),
    [({"oom": True}, SandboxReason.OUT_OF_MEMORY), ({}, SandboxReason.RUNTIME_FAILED)],
)
async def test_one_that_died_meanwhile_is_explained(
    world: World, traces: dict[str, bool], reason: SandboxReason
) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
    world.host_world.end(sandbox_id, RuntimeEnd(signal=9), oom=traces.get("oom", False))
    async with node(world) as opened:
        assert (await opened.over(sandbox_id)).record.intent is reason
        assert world.residue() == []


async def test_the_backstop_did_its_work_meanwhile(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=10)
    world.host_world.end(sandbox_id, RuntimeEnd(exit_code=0))
    await world.clock.pass_by(100)
    async with node(world) as opened:
        life = await opened.over(sandbox_id)
        assert (life.state, life.record.intent) == (SandboxState.STOPPED, SandboxReason.WALL_TIMEOUT)


async def test_a_deadline_that_passed_meanwhile(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=10)
    await world.clock.pass_by(20)
    async with node(world) as opened:
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.WALL_TIMEOUT
        assert world.residue() == []


async def test_a_reboot_ends_everything(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id, unborn = await opened.create(), a_sandbox_id()
        world.points.at("guest.connect", "hang")
        waiting = asyncio.ensure_future(opened.manager.ensure(unborn, an_ensure(world)))
        await world.points.hanging.wait()
        waiting.cancel()
    world.boot_id = "boot-2"
    world.host_world.sandboxes.clear()
    world.kernel.clear()
    async with node(world) as opened:
        life = await opened.over(sandbox_id)
        assert (life.state, life.record.intent) == (SandboxState.FAILED, SandboxReason.NODE_RESTARTED)
        assert set(opened.manager.runners) == {sandbox_id}
        assert world.residue() == []


async def test_strangers_are_removed(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
        kept = await opened.create()
    del world.ledger.records[sandbox_id]
    async with node(world) as opened:
        assert set(world.host_world.sandboxes) == {kept}
        assert set(opened.manager.runners) == {kept}
        assert len(world.kernel) == 1
        assert len(list(world.config.upper_dir.iterdir())) == 1


async def test_one_whose_slot_is_gone_is_ended(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id, kept = await opened.create(), await opened.create()
        slot = opened.life(sandbox_id).record.slot_index
    assert slot is not None
    del world.kernel[slot]
    async with node(world) as opened:
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.RUNTIME_FAILED
        assert opened.manager.get(kept).state is SandboxState.RUNNING


async def test_remains_of_an_ended_one_are_removed_at_the_next_start(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
        world.host_world.fail("remove", times=100)
        await opened.manager.stop(sandbox_id, a_stop())
    assert world.residue() != []
    world.host_world._switches.clear()
    async with node(world) as opened:
        await until(lambda: world.residue() == [])
        assert opened.manager.get(sandbox_id).reason is SandboxReason.REQUESTED


async def test_a_damaged_record_of_a_living_one(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
    world.ledger.records[sandbox_id] = replace(world.ledger.records[sandbox_id], incarnation=None)
    async with node(world) as opened:
        assert (await opened.over(sandbox_id)).state is SandboxState.FAILED
        assert world.residue() == []


async def test_a_network_that_does_not_start_stops_the_agent_only(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
    broken = FakeNetwork(kernel=world.kernel)
    broken.fail("start")
    with pytest.raises(ExceptionGroup):
        async with node(world, broken):
            pass
    async with node(world) as opened:
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING


async def test_many_are_adopted_at_once(world: World) -> None:
    async with crashing_node(world) as opened:
        ids = await asyncio.gather(*(opened.create() for _ in range(100)))
    async with node(world) as opened:
        assert {opened.manager.get(each).state for each in ids} == {SandboxState.RUNNING}
        assert world.host_world.calls["recover"] == 100
