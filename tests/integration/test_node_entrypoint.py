"""Entrypoints over fakes: started with the sandbox, watched through restarts, and its end when they end."""

from pathlib import Path

import pytest

from node_kit import World, a_stop, crashing_node, node, problem_of, until
from sandboxd.contract.ids import entrypoint_process_id
from sandboxd.contract.messages import ImageRef
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.images.base import ImageConfig
from sandboxd.runner import entrypoint
from sandboxd.runner.life import Life


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(entrypoint, "_PAUSE_SECONDS", 0.01)
    return World(tmp_path)


def guest_of(world: World, sandbox_id: str) -> FakeGuest:
    return world.host_world.guests[sandbox_id]


async def end_entrypoint(world: World, sandbox_id: str, signal: str = "SIGTERM") -> None:
    await guest_of(world, sandbox_id).signal(entrypoint_process_id(sandbox_id), signal, "tree", None)


def last_report(life: Life) -> tuple[SandboxState, SandboxReason | None, int | None]:
    report = life.report(None)
    return report.state, report.reason, report.exit_code


async def test_the_end_of_the_entrypoint_ends_the_sandbox(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sh", "-c", "sleep 0.01; exit 7"])
        life = await opened.over(sandbox_id)
        assert last_report(life) == (SandboxState.STOPPED, SandboxReason.ENTRYPOINT_EXITED, 7)
        assert "7" in (life.report(None).message or "")
    assert world.residue() == []


async def test_it_runs_as_long_as_the_entrypoint_does(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
        process = await guest_of(world, sandbox_id).process(entrypoint_process_id(sandbox_id))
        assert (process["argv"], process["state"]) == (["sleep", "10000"], "running")
        assert opened.life(sandbox_id).state is SandboxState.RUNNING
        await end_entrypoint(world, sandbox_id)
        life = await opened.over(sandbox_id)
        assert last_report(life) == (SandboxState.STOPPED, SandboxReason.ENTRYPOINT_EXITED, 143)


async def test_an_entrypoint_that_cannot_be_executed_fails_the_start(world: World) -> None:
    async with node(world) as opened:
        problem = await problem_of(opened.create("sbx" + "a" * 20, entrypoint=["/no/such/program"]))
        assert (problem.code, problem.reason) == ("start_failed", SandboxReason.START_FAILED)
        assert problem.members["exit_code"] == 127
        life = await opened.over("sbx" + "a" * 20)
        assert last_report(life) == (SandboxState.FAILED, SandboxReason.START_FAILED, 127)
    assert world.residue() == []


async def test_the_images_entrypoint_and_cmd(world: World) -> None:
    async with node(world) as opened:
        image = world.images.add("server", ImageConfig(entrypoint=("sh", "-c"), cmd=("echo $0; exit 3",)))
        ref = ImageRef(id=image.id, reference="server", digest=image.digest)
        sandbox_id = await opened.create(image=ref, use_image_entrypoint=True)
        life = await opened.over(sandbox_id)
        assert last_report(life)[1:] == (SandboxReason.ENTRYPOINT_EXITED, 3)
        assert life.report(None).entrypoint == ["sh", "-c", "echo $0; exit 3"]


async def test_an_image_without_one_is_refused_by_name(world: World) -> None:
    async with node(world) as opened:
        problem = await problem_of(opened.create(use_image_entrypoint=True))
        assert problem.code == "invalid_request"
        assert "/use_image_entrypoint" in str(problem.members["errors"])
    assert world.residue() == []


@pytest.mark.parametrize("while_away", [True, False])
async def test_a_restarted_agent_watches_on(world: World, while_away: bool) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
    if while_away:
        await end_entrypoint(world, sandbox_id)
    async with node(world) as opened:
        if not while_away:
            await end_entrypoint(world, sandbox_id)
        life = await opened.over(sandbox_id)
        assert last_report(life) == (SandboxState.STOPPED, SandboxReason.ENTRYPOINT_EXITED, 143)


async def test_the_exit_code_outlives_an_agent_that_dies_during_the_stop(world: World) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
        world.points.at("stop.shutdown", "hang")
        await end_entrypoint(world, sandbox_id)
        await world.points.hanging.wait()
    world.points.at("")
    async with node(world) as opened:
        life = await opened.over(sandbox_id)
        assert last_report(life) == (SandboxState.STOPPED, SandboxReason.ENTRYPOINT_EXITED, 143)


async def test_a_guest_that_falls_silent_or_lies_meanwhile_ends_nothing(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
        guest = guest_of(world, sandbox_id)
        guest.fail("process", GuestUnreachableError("silent"), times=2)
        guest.fail("process", GuestError("a lie"))
        guest.hang("nothing")
        await end_entrypoint(world, sandbox_id)
        life = await opened.over(sandbox_id)
        assert last_report(life)[1] is SandboxReason.ENTRYPOINT_EXITED


async def test_deadlines_and_deletes_win(world: World) -> None:
    async with node(world) as opened:
        timed = await opened.create(entrypoint=["sleep", "10000"], timeout_seconds=5)
        deleted = await opened.create(entrypoint=["sleep", "10000"])
        idle = await opened.create(entrypoint=["sleep", "10000"], idle_timeout_seconds=10)
        await world.clock.pass_by(20)
        assert last_report(await opened.over(timed))[:2] == (SandboxState.STOPPED, SandboxReason.WALL_TIMEOUT)
        assert opened.life(idle).state is SandboxState.RUNNING  # its entrypoint is use
        report = await opened.manager.stop(deleted, a_stop())
        assert report.reason is SandboxReason.REQUESTED


async def test_the_entrypoint_is_started_once(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(entrypoint=["sleep", "10000"])
        await opened.create(sandbox_id, entrypoint=["sleep", "10000"])
        assert guest_of(world, sandbox_id).calls["start"] == 1
        await until(lambda: guest_of(world, sandbox_id).calls["process"] == 1)
