"""The ready pool over fakes: claims, what comes of failed ones, agents killed at every step, who gives way to whom."""

import asyncio
from pathlib import Path

import pytest

from node_kit import STARTING, FakeNode, World, a_sandbox_id, a_stop, an_ensure, crashing_node, node, problem_of, until
from sandboxd.contract.ids import is_handle, is_id
from sandboxd.contract.messages import EgressSpec, PoolReport, Resources
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.runtime.base import RuntimeEnd

BOOTING = (
    "slot.acquire",
    "slot.acquired",
    "rootfs.lease",
    "rootfs.upper",
    "rootfs.prepared",
    "launch.create",
    "launch.start",
    "launch.started",
    "guest.connect",
    "guest.ready",
)
CLAIMING = (
    "claim.write",
    "claim.written",
    "egress.apply",
    "egress.applied",
    "tunnels.open",
    "tunnels.opened",
    "launch.limit",
    "launch.limited",
    "guest.init",
    "guest.initialized",
    "trust.install",
    "trust.installed",
    "entrypoint.start",
    "entrypoint.started",
    "start.acknowledge",
)
BURYING = ("guest.close", "launch.kill", "launch.remove", "rootfs.remove", "rootfs.unlease", "slot.release")
POOL: dict[str, object] = {"pool_size": 2, "pool_max": 4, "pool_pause_seconds": 0}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, settings=dict(POOL))


def report_of(opened: FakeNode) -> PoolReport:
    return opened.manager.pool.report()


def count(opened: FakeNode) -> int:
    return sum(each.ready for each in report_of(opened).ready)


async def filled(opened: FakeNode, wanted: int = 2) -> None:
    await until(lambda: count(opened) == wanted)


async def test_a_ready_one_is_claimed_and_replaced(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        ready = set(world.host_world.sandboxes)
        sandbox_id = await opened.create(hostname="mine", timeout_seconds=100, resources=Resources(cpus=0.5))
        life = opened.life(sandbox_id)
        assert life.handle in ready
        assert is_handle(life.handle)
        assert not is_id("sbx", life.handle)
        told = world.host_world.guests[life.handle].initialized_by
        assert told is not None
        assert told.env == {"SECRET": "hunter2", "SANDLOT_SANDBOX_ID": sandbox_id}
        assert (told.hostname, told.backstop_seconds, told.cpus) == ("mine", 160, 0.5)
        assert told.token == life.parts.token
        assert world.host_world.sandboxes[life.handle].resources.cpus == 0.5
        slot = life.record.slot_index
        assert slot is not None
        assert opened.network.egress[slot] == EgressSpec(mode="open")
        await filled(opened)
        assert (report_of(opened).hits, report_of(opened).boots) == (1, 3)
        assert life.parts.env == {}


async def test_a_claimed_sandbox_has_its_secrets(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        ready = set(world.host_world.sandboxes)
        sandbox_id = await opened.create(secret_env={"TOKEN": "hunter3"})
        life = opened.life(sandbox_id)
        assert life.handle in ready
        told = world.host_world.guests[life.handle].initialized_by
        assert told is not None
        assert told.secret_env == {"TOKEN": "hunter3"}
        assert "hunter3" not in repr(told) + repr(life.record) + repr(life.parts)
        assert life.parts.secret_env == {}
        cold = await opened.create(secret_env={"TOKEN": "hunter4"}, resources=Resources(memory_mib=2048))
        told = world.host_world.guests[opened.life(cold).handle].initialized_by
        assert told is not None
        assert told.secret_env == {"TOKEN": "hunter4"}
        assert opened.life(cold).record.spec.secret_env == {}


async def test_nobody_can_name_a_ready_one(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        assert opened.manager.runners == {}
        assert opened.manager.admission.used().sandboxes == 0
        assert {slot.mode for slot in opened.network.egress.values()} == {"blocked"}
        for handle in list(world.host_world.sandboxes):
            assert (await problem_of(opened.manager.stop(handle, a_stop()))).code == "sandbox_not_found"
            with pytest.raises(ProblemError):
                async with opened.manager.use(handle):
                    pass
        assert count(opened) == 2


@pytest.mark.parametrize("other", [{"memory_mib": 512}, {"disk_mib": 512}, {"cpus": 3}])
async def test_one_that_looks_different_inside_is_not_claimed(world: World, other: dict[str, int]) -> None:
    async with node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create(resources=Resources.model_validate(other))
        assert opened.life(sandbox_id).handle == sandbox_id
        assert (report_of(opened).hits, report_of(opened).misses) == (0, 1)


async def test_what_is_asked_for_is_kept_ready(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        for _ in range(6):
            await opened.create(resources=Resources(memory_mib=512))
        await until(lambda: {each.memory_mib for each in report_of(opened).ready} == {512, 1024})
        await world.clock.pass_by(600)
        await until(lambda: {each.memory_mib for each in report_of(opened).ready} == {1024})


@pytest.mark.parametrize("step", CLAIMING)
async def test_a_claim_that_fails_is_a_cold_start(world: World, step: str) -> None:
    async with node(world) as opened:
        await filled(opened)
        handles = set(world.host_world.sandboxes)
        world.points.at(step)
        sandbox_id = await opened.create()
        life = opened.life(sandbox_id)
        assert (life.state, life.handle) == (SandboxState.RUNNING, sandbox_id)
        assert world.ledger.records[sandbox_id].handle == sandbox_id
        assert report_of(opened).claim_failures == 1
        told = world.host_world.guests[sandbox_id].initialized_by
        assert told is not None
        assert told.env["SECRET"] == "hunter2"
        await filled(opened)
        await until(lambda: len(world.kernel) == 3)
        assert len(handles & set(world.host_world.sandboxes)) == 1


@pytest.mark.parametrize("step", CLAIMING)
async def test_killed_while_claiming(world: World, step: str) -> None:
    sandbox_id = a_sandbox_id()
    async with crashing_node(world) as opened:
        await filled(opened)
        world.points.at(step, "hang")
        waiting = asyncio.ensure_future(opened.manager.ensure(sandbox_id, an_ensure(world)))
        await world.points.hanging.wait()
        waiting.cancel()
    world.settings["pool_max"] = 0
    async with node(world) as opened:
        assert world.residue() == []
        assert world.ledger.records == {}
        assert (await opened.manager.ensure(sandbox_id, an_ensure(world))).state is SandboxState.RUNNING


@pytest.mark.parametrize("step", CLAIMING)
async def test_deleted_while_claiming(world: World, step: str) -> None:
    sandbox_id = a_sandbox_id()
    async with node(world) as opened:
        await filled(opened)
        world.points.at(step, "hang")
        waiting = asyncio.ensure_future(problem_of(opened.manager.ensure(sandbox_id, an_ensure(world))))
        await world.points.hanging.wait()
        stopped = await opened.manager.stop(sandbox_id, a_stop())
        assert (stopped.state, stopped.reason) == (SandboxState.STOPPED, SandboxReason.REQUESTED)
        await waiting
        await filled(opened)
        await until(lambda: len(world.kernel) == 2)
    assert world.residue() == []


@pytest.mark.parametrize("step", BOOTING)
async def test_killed_while_booting(world: World, step: str) -> None:
    async with crashing_node(world):
        world.points.at(step, "hang")
        await world.points.hanging.wait()
    world.settings["pool_max"] = 0
    async with node(world):
        assert world.residue() == []


@pytest.mark.parametrize("step", BOOTING)
async def test_a_boot_that_fails_is_undone_and_tried_again(world: World, step: str) -> None:
    world.points.at(step)
    async with node(world) as opened:
        await until(lambda: report_of(opened).boot_failures == 1)
        await until(lambda: world.residue() == [])
        await world.clock.pass_by(10)
        await filled(opened)


@pytest.mark.parametrize("step", BOOTING)
async def test_the_agent_exits_while_booting(world: World, step: str) -> None:
    async with node(world):
        world.points.at(step, "hang")
        await world.points.hanging.wait()
    assert world.residue() == []


@pytest.mark.parametrize("step", BURYING)
@pytest.mark.parametrize("mode", ["fail", "kill"])
async def test_broken_off_while_burying(world: World, step: str, mode: str) -> None:
    async with (node if mode == "fail" else crashing_node)(world) as opened:
        await filled(opened)
        world.points.at(step, "fail" if mode == "fail" else "hang")
        world.images.take_away("base")
        if mode == "kill":
            await world.clock.pass_by(2)
            await world.points.hanging.wait()
        else:
            await world.clock.pass_by(2)
            await until(lambda: world.residue() == [])
    world.settings["pool_max"] = 0
    async with node(world):
        assert world.residue() == []


async def test_a_claimed_one_is_adopted_and_the_others_are_buried(world: World) -> None:
    async with crashing_node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create(timeout_seconds=100)
        life = opened.life(sandbox_id)
        handle, token = life.handle, life.parts.token
        before = opened.manager.get(sandbox_id)
        await filled(opened)
    world.settings["pool_max"] = 0
    async with node(world) as opened:
        assert set(world.host_world.sandboxes) == {handle}
        assert opened.manager.get(sandbox_id) == before
        assert opened.life(sandbox_id).parts.token == token
        assert len(world.kernel) == 1
        await world.clock.pass_by(101)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.WALL_TIMEOUT
        assert world.residue() == []


async def test_a_claimed_one_that_dies_is_explained(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create()
        world.host_world.end(opened.life(sandbox_id).handle, RuntimeEnd(signal=9), oom=True)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.OUT_OF_MEMORY


async def test_what_was_used_before_the_claim_is_nobodys_bill(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create()
        assert opened.manager.get(sandbox_id).cpu_used_seconds == 0
        cold = await opened.create(resources=Resources(memory_mib=512))
        assert opened.manager.get(cold).cpu_used_seconds > 0


async def test_a_ready_one_that_dies_is_replaced(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        handle = next(iter(world.host_world.sandboxes))
        world.host_world.end(handle, RuntimeEnd(signal=9))
        await until(lambda: handle not in world.host_world.sandboxes)
        await filled(opened)
        assert len(world.kernel) == 2


async def test_one_that_died_just_before_its_claim(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        for guest in world.host_world.guests.values():
            guest.fail("init", GuestUnreachableError("gone"))
        sandbox_id = await opened.create()
        assert opened.life(sandbox_id).handle == sandbox_id


async def test_an_entrypoint_is_started_by_the_claim(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
        life = opened.life(sandbox_id)
        assert life.handle != sandbox_id
        assert [each["argv"] for each in await world.host_world.guests[life.handle].processes(None, None)] == [
            ["sleep", "10000"]
        ]


async def test_a_refusal_of_what_was_asked_is_not_tried_again_cold(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        creates = world.host_world.calls["create"]
        problem = await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world, user="nobody-here")))
        assert problem.code == "user_not_found"
        await filled(opened)
        assert world.host_world.calls["create"] == creates + 1  # the one that fills the pool again
        await until(lambda: len(world.kernel) == 2)


async def test_the_pool_gives_way_to_a_sandbox(world: World) -> None:
    world.settings["max_sandboxes"] = 2
    async with node(world) as opened:
        await filled(opened)
        first = await opened.create(resources=Resources(memory_mib=512))
        second = await opened.create(resources=Resources(memory_mib=512))
        assert (await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world)))).code == "no_capacity"
        await until(lambda: set(world.host_world.sandboxes) == {first, second})
        assert count(opened) == 0
        await opened.manager.stop(first, a_stop())
        await world.clock.pass_by(8)
        await filled(opened, 1)


async def test_a_create_that_is_refused_leaves_the_ready_one_where_it_was(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        before = set(world.host_world.sandboxes)
        world.host.memory_available = 0
        problem = await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world)))
        assert problem.code == "no_capacity"
        assert report_of(opened).hits == 0
        world.host.memory_available = world.host.memory
        sandbox_id = await opened.create()
        await until(lambda: set(world.host_world.sandboxes) >= {opened.life(sandbox_id).handle})
        assert before


@pytest.mark.parametrize("pressure", ["memory", "disk"])
async def test_pressure_drains_it(world: World, pressure: str) -> None:
    async with node(world) as opened:
        await filled(opened)
        if pressure == "memory":
            world.host.memory_available = 500
        else:
            world.host.disk_free = 1000
        await world.clock.pass_by(2)
        await until(lambda: world.residue() == [])
        assert count(opened) == 0


async def test_an_image_that_is_gone_drains_it(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        world.images.take_away("base")
        await world.clock.pass_by(2)
        await until(lambda: world.residue() == [])


async def test_a_hundred_at_once_all_start_and_the_pool_waits_for_them(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        boots = report_of(opened).boots
        hanging = asyncio.Event()
        world.points.at("launch.create", "hang")
        creates = [asyncio.ensure_future(opened.create()) for _ in range(100)]
        await world.points.hanging.wait()
        await until(lambda: sum(task.done() for task in creates) == 99)
        await world.clock.pass_by(5)
        assert report_of(opened).boots == boots  # one cold start still waits
        hanging.set()
        stuck = next(each for each in opened.manager.runners.values() if each.life.state is SandboxState.STARTING)
        stuck.stop(SandboxReason.REQUESTED, grace_seconds=0)
        await asyncio.gather(*creates, return_exceptions=True)
        assert (report_of(opened).hits, report_of(opened).misses) == (2, 98)
        await world.clock.pass_by(2)
        await filled(opened, 4)


async def test_the_pool_waits_for_claims(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        boots = report_of(opened).boots
        world.points.at("claim.written", "hang")
        create = asyncio.ensure_future(opened.create())
        await world.points.hanging.wait()
        await world.clock.pass_by(3)
        assert report_of(opened).boots == boots
        claiming = next(each for each in opened.manager.runners.values() if each.life.state is SandboxState.STARTING)
        claiming.stop(SandboxReason.REQUESTED, grace_seconds=0)
        await asyncio.gather(create, return_exceptions=True)
        await filled(opened)


async def test_leaving_buries_the_pool_and_keeps_what_was_claimed(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        handle = opened.life(await opened.create()).handle
        await filled(opened)
    assert set(world.host_world.sandboxes) == {handle}
    assert len(world.kernel) == 1


async def test_exit_while_claiming_lets_it_finish(world: World) -> None:
    sandbox_id = a_sandbox_id()
    async with node(world) as opened:
        await filled(opened)
        waiting = asyncio.ensure_future(opened.manager.ensure(sandbox_id, an_ensure(world)))
        await asyncio.sleep(0)
    assert (await waiting).state is SandboxState.RUNNING
    async with node(world) as opened:
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING


async def test_leftovers_are_tried_again(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        world.host_world.fail("remove", times=12)
        world.images.take_away("base")
        before = world.host_world.calls["remove"]
        await world.clock.pass_by(2)
        await until(lambda: world.host_world.calls["remove"] > before)
        assert world.residue() != []
        world.host_world._switches.clear()
        await opened.upkeep.once(opened.manager)
        await until(lambda: world.residue() == [])


async def test_no_pool_at_all(world: World) -> None:
    world.settings["pool_max"] = 0
    async with node(world) as opened:
        await world.clock.pass_by(3)
        assert world.residue() == []
        await opened.create()
        assert report_of(opened) == PoolReport()


async def test_the_disk_victim_is_found_by_what_its_directory_is_called(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        sandbox_id = await opened.create()
        other = await opened.create()
        world.host.written = {opened.life(sandbox_id).handle: 900, opened.life(other).handle: 100}
        world.host.disk_free = 10
        await opened.upkeep.once(opened.manager)
        assert (await opened.over(sandbox_id)).record.intent is SandboxReason.NODE_DISK_FULL
        assert opened.manager.get(other).state is SandboxState.RUNNING


async def test_the_lists_above_are_all_the_steps_there_are(world: World) -> None:
    async with node(world) as opened:
        await filled(opened)
        world.points.reached.clear()
        await opened.create()
        declared = {step for hook in opened.manager.tools.hooks for step in hook.ready_steps}
    assert set(world.points.reached) >= set(CLAIMING)
    assert declared <= {*BOOTING, *CLAIMING}
    assert set(BOOTING) - {"guest.ready"} < set(STARTING)
