"""Starts over fakes: joins, generations, deadlines, deletes in the middle, refusals."""

import asyncio
import os
from pathlib import Path

import pytest

from node_kit import STARTING, World, a_patch, a_sandbox_id, a_stop, an_ensure, node, problem_of, turns, until
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import Resources
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.images.base import ImageDamagedError
from sandboxd.network.base import NetworkError
from sandboxd.runtime.base import ImageUnreadableError, RuntimeEnd


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_start_runs_everything_in_order_and_reports_it(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        report = await opened.manager.ensure(sandbox_id, an_ensure(world, timeout_seconds=100))
        sandbox = world.host_world.sandboxes[sandbox_id]
        assert report.state is SandboxState.RUNNING
        assert (report.user, report.shell) == ("user", "/bin/sh")
        assert report.remaining_seconds == 100
        assert report.address == sandbox.launch.address
        assert opened.network.egress[opened.life(sandbox_id).record.slot_index or 0].mode == "open"
        init = sandbox.guest.initialized_by
        assert init is not None
        assert init.env == {"SANDLOT_SANDBOX_ID": sandbox_id, "SECRET": "hunter2"}
        assert init.backstop_seconds == 160
        await opened.manager.stop(sandbox_id, a_stop())
    assert world.residue() == []


async def test_the_environment_is_kept_nowhere(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        life = opened.life(sandbox_id)
        assert "hunter2" not in repr(life.record) + repr(life.parts) + repr(
            world.host_world.sandboxes[sandbox_id].launch
        )
        assert life.parts.env == {}


async def test_ensures_at_once_join_one_start(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        reports = await asyncio.gather(*(opened.manager.ensure(sandbox_id, an_ensure(world)) for _ in range(10)))
        assert {report.state for report in reports} == {SandboxState.RUNNING}
        assert world.host_world.calls["create"] == 1
        again = await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert again.state is SandboxState.RUNNING
        assert world.host_world.calls["create"] == 1


async def test_a_client_that_vanishes_does_not_stop_the_start(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        world.points.at("launch.create", "hang")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await opened.manager.ensure(sandbox_id, an_ensure(world, deadline_seconds=30))
        assert opened.life(sandbox_id).state is SandboxState.STARTING
        assert opened.life(sandbox_id).cause is None
        await opened.manager.stop(sandbox_id, a_stop())


async def test_an_older_generation_or_epoch_is_refused(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await opened.manager.ensure(sandbox_id, an_ensure(world, generation=5, epoch=3))
        assert opened.manager.get(sandbox_id).generation == 5
        for stale in (an_ensure(world, generation=4, epoch=3), an_ensure(world, generation=6, epoch=2)):
            with pytest.raises(ProblemError, match="stale_generation"):
                await opened.manager.ensure(sandbox_id, stale)
        with pytest.raises(ProblemError, match="stale_generation"):
            await opened.manager.patch(sandbox_id, a_patch(generation=4, timeout_seconds=5))
        with pytest.raises(ProblemError, match="stale_generation"):
            await opened.manager.stop(sandbox_id, a_stop(generation=4, epoch=3))
        assert opened.manager.get(sandbox_id).state is SandboxState.RUNNING


async def test_a_delete_that_overtakes_its_ensure_wins(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        with pytest.raises(ProblemError, match="sandbox_not_found"):
            await opened.manager.stop(sandbox_id, a_stop(generation=2))
        with pytest.raises(ProblemError, match="stale_generation"):
            await opened.manager.ensure(sandbox_id, an_ensure(world, generation=1))
        assert world.residue() == []


async def test_a_forgotten_sandbox_does_not_come_to_life_again(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await opened.manager.stop(sandbox_id, a_stop(generation=2))
        await opened.manager.acknowledge([sandbox_id])
        with pytest.raises(ProblemError, match="stale_generation"):
            await opened.manager.ensure(sandbox_id, an_ensure(world, generation=2))


async def test_the_deadline_undoes_everything(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        world.points.at("guest.connect", "hang")
        with pytest.raises(ProblemError) as caught:
            await opened.manager.ensure(sandbox_id, an_ensure(world, deadline_seconds=0.05))
        assert caught.value.code == "deadline_exceeded"
        assert world.residue() == []
        report = await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert (report.state, report.reason) == (SandboxState.FAILED, SandboxReason.START_FAILED)


async def test_waiting_in_line_counts_against_the_deadline(world: World) -> None:
    world.settings = {"max_starts": 1}
    async with node(world) as opened:
        first, second = a_sandbox_id(), a_sandbox_id()
        world.points.at("launch.create", "hang")
        async with asyncio.TaskGroup() as group:
            blocked = group.create_task(problem_of(opened.manager.ensure(first, an_ensure(world))))
            await world.points.hanging.wait()
            with pytest.raises(ProblemError, match="deadline_exceeded"):
                await opened.manager.ensure(second, an_ensure(world, deadline_seconds=0.05))
            await opened.manager.stop(first, a_stop())
            assert (await blocked).code == "sandbox_ended"
    assert world.residue() == []


@pytest.mark.parametrize("step", STARTING)
async def test_a_delete_in_the_middle_of_a_start(world: World, step: str) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        world.points.at(step, "hang")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(problem_of(opened.manager.ensure(sandbox_id, an_ensure(world))))
            await world.points.hanging.wait()
            first, second = await asyncio.gather(
                opened.manager.stop(sandbox_id, a_stop()), opened.manager.stop(sandbox_id, a_stop())
            )
            assert (await waiting).code == "sandbox_ended"
        assert first == second
        assert (first.state, first.reason) == (SandboxState.STOPPED, SandboxReason.REQUESTED)
        assert world.residue() == []
        assert opened.manager.admission.used().sandboxes == 0


@pytest.mark.parametrize("verb", ["create", "start"])
@pytest.mark.parametrize("mode", ["before", "after"])
async def test_a_runtime_that_fails(world: World, verb: str, mode: str) -> None:
    async with node(world) as opened:
        world.host_world.fail(verb, mode)  # pyright: ignore[reportArgumentType] - both are modes
        sandbox_id = a_sandbox_id()
        with pytest.raises(ProblemError) as caught:
            await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert caught.value.code == "start_failed"
        assert caught.value.row.retryable
        assert world.residue() == []
        assert opened.manager.get(sandbox_id).reason is SandboxReason.START_FAILED


async def test_a_network_without_room(world: World) -> None:
    async with node(world) as opened:
        opened.network.fail("acquire", NetworkError("none left"))
        with pytest.raises(ProblemError, match="start_failed"):
            await opened.create()
        assert world.residue() == []


async def test_an_unknown_image_leaves_no_record(world: World) -> None:
    async with node(world) as opened:
        ensure = an_ensure(world)
        missing = ensure.spec.image.model_copy(update={"id": new_id("img", os.urandom)})
        sandbox_id = a_sandbox_id()
        unknown = ensure.model_copy(update={"spec": ensure.spec.model_copy(update={"image": missing})})
        with pytest.raises(ProblemError, match="image_not_found"):
            await opened.manager.ensure(sandbox_id, unknown)
        await until(lambda: sandbox_id not in opened.manager.runners)
        await opened.manager.ensure(sandbox_id, ensure)


@pytest.mark.parametrize("damaged", [True, False])
async def test_a_damaged_image_is_named(world: World, damaged: bool) -> None:
    async with node(world) as opened:
        if damaged:
            world.images.fail(ImageDamagedError("sum differs"))
        else:
            world.host_world.fail("create", error=lambda: ImageUnreadableError("not an image"))
        sandbox_id = a_sandbox_id()
        with pytest.raises(ProblemError, match="image_unavailable"):
            await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert opened.manager.get(sandbox_id).reason is SandboxReason.IMAGE_UNAVAILABLE
        assert world.residue() == []


async def test_a_sandbox_that_dies_before_it_answers(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        world.points.at("guest.connect", "hang")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(problem_of(opened.manager.ensure(sandbox_id, an_ensure(world))))
            await world.points.hanging.wait()
            await opened.manager.stop(sandbox_id, a_stop())
            await waiting
        other = a_sandbox_id()
        world.points.at("guest.init", "hang")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                problem_of(opened.manager.ensure(other, an_ensure(world, deadline_seconds=0.2)))
            )
            await world.points.hanging.wait()
            world.host_world.end(other, RuntimeEnd(exit_code=1), oom=True)
            await waiting
        assert opened.manager.get(other).reason is SandboxReason.OUT_OF_MEMORY


async def test_a_guest_that_listens_late_is_waited_for(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = a_sandbox_id()
        world.points.at("guest.connect", "hang", times=0)
        original = world.host_world.add

        def add(launch: object) -> None:
            original(launch)  # pyright: ignore[reportArgumentType] - passed through
            world.host_world.guests[sandbox_id].fail("listening", GuestUnreachableError("refused"), times=5)

        world.host_world.add = add
        await opened.manager.ensure(sandbox_id, an_ensure(world))
        assert world.host_world.guests[sandbox_id].calls["listening"] == 6


@pytest.mark.parametrize("code", ["user_not_found", "cwd_not_found"])
async def test_what_the_guest_refuses_is_passed_on(world: World, code: str) -> None:
    async with node(world) as opened:
        original = world.host_world.add

        def add(launch: object) -> None:
            original(launch)  # pyright: ignore[reportArgumentType] - passed through
            for guest in world.host_world.guests.values():
                guest.fail("init", ProblemError(code, "no such thing"))

        world.host_world.add = add
        with pytest.raises(ProblemError, match=code):
            await opened.create()
        assert world.residue() == []


async def test_impossible_and_missing_room(world: World) -> None:
    world.host.processors = 2
    world.host.memory = 4096
    world.settings = {"max_sandboxes": 2, "memory_overcommit": 1, "memory_reserve_mib": 512}
    async with node(world) as opened:
        for impossible in ({"cpus": 3}, {"memory_mib": 4096}, {"disk_mib": 68_000_000}):
            with pytest.raises(ProblemError, match="impossible_resources"):
                await opened.create(resources=Resources(**impossible))
        await opened.create(resources=Resources(memory_mib=1024))
        with pytest.raises(ProblemError, match="memory_mib"):
            await opened.create(resources=Resources(memory_mib=3000))
        first = await opened.create(resources=Resources(memory_mib=1024))
        with pytest.raises(ProblemError, match="no_capacity"):
            await opened.create(resources=Resources(memory_mib=64))
        await opened.manager.stop(first, a_stop())
        await opened.create(resources=Resources(memory_mib=64))


async def test_pressure_closes_admission(world: World) -> None:
    async with node(world) as opened:
        world.host.memory_available = 100
        with pytest.raises(ProblemError, match="memory_pressure"):
            await opened.create()
        world.host.memory_available = 10_000
        world.host.disk_free = 100
        with pytest.raises(ProblemError, match="disk_pressure"):
            await opened.create()


async def test_a_ledger_that_cannot_be_written_starts_nothing(world: World) -> None:
    async with node(world) as opened:
        world.ledger.broken = True
        with pytest.raises(ProblemError):
            await opened.create()
        assert world.residue() == []
        world.ledger.broken = False
        await opened.create()


async def test_a_hundred_at_once(world: World) -> None:
    async with node(world) as opened:
        ids = await asyncio.gather(*(opened.create() for _ in range(100)))
        assert opened.manager.admission.used().sandboxes == 100
        await asyncio.gather(*(opened.manager.stop(each, a_stop()) for each in ids))
        await turns()
        assert opened.manager.admission.used().sandboxes == 0
    assert world.residue() == []
