"""Builds carried out on a node over fakes: order, cache, failures, cancellation; nothing is left behind."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build_kit import GONE
from build_stand import BASE, OTHER, PATIENCE_SECONDS, BuildStand, build_stand
from node_kit import World
from sandboxd.builds.making import STEPS
from sandboxd.contract.images import ImageJob, ImageReason, StartImageJob
from sandboxd.contract.messages import EnsureSandbox, ImageRef, SandboxSpec
from sandboxd.network.fake import FakeNetwork
from sandboxd.runtime.base import RuntimeEnd

TWO = "FROM base\nRUN echo one\nENV A=1\nRUN echo two\n"


def states(job: ImageJob) -> list[tuple[str, bool]]:
    return [(step.state, step.cached) for step in job.steps or ()]


async def test_a_build_makes_an_image_and_the_next_takes_what_is_there(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        stand.changes({"./": None, "./made": "by a step", "./etc": None, "./etc/passwd": GONE})
        job = await stand.build(TWO)
        assert (job.state, job.reason) == ("ready", None), job.message
        assert await stand.files(job) == {"etc": None, "made": "by a step", "tmp": None}
        assert job.image is not None
        assert job.image.config.env == {"PATH": "/bin", "A": "1"}
        assert stand.world.host_world.calls["create"] == 2
        again = await stand.build(TWO)
        assert again.image is not None
        assert again.image.id == job.image.id
        assert states(again) == [("done", True)] * 3
        changed = await stand.build(TWO.replace("echo two", "echo three"))
        assert states(changed) == [("done", True), ("done", True), ("done", False)]
        assert stand.world.host_world.calls["create"] == 3
        assert stand.residue() == []


async def test_another_config_of_the_same_files_is_another_image_and_runs_nothing(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        first = await stand.build(TWO + "ENV B=1\n")
        second = await stand.build(TWO + "ENV B=2\n")
        third = await stand.settled(stand.start(dockerfile=TWO, config={"env": {"C": "3"}, "cmd": ["x"]}))
        images = [job.image for job in (first, second, third)]
        assert all(image is not None for image in images)
        assert len({image.id for image in images if image}) == 3
        assert images[2] is not None
        assert images[2].config.env["C"] == "3"
        assert images[2].config.cmd == ["x"]
        assert stand.world.host_world.calls["create"] == 2


async def test_nothing_of_another_project_is_taken(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        await stand.build(TWO)
        await stand.settled(stand.start(project=OTHER, dockerfile=TWO))
        assert stand.world.host_world.calls["create"] == 4


async def test_no_cache_runs_it_all_again(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        await stand.build(TWO)
        job = await stand.build(TWO, no_cache=True)
        assert states(job) == [("done", False)] * 3
        assert stand.world.host_world.calls["create"] == 4


async def test_stages_copy_from_each_other_and_what_nobody_needs_is_left_out(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        context = await stand.upload({"src": None, "src/a": "a", "src/b": "b", ".dockerignore": "src/b"})
        text = (
            "FROM base AS unused\nRUN echo never\n"
            "FROM base AS made\nCOPY src /src\nRUN echo compile\n"
            "FROM scratch\nCOPY --from=made /src/a /bin/a\nWORKDIR /work\n"
        )
        job = await stand.build(text, context=context)
        assert await stand.files(job) == {"bin": None, "bin/a": "a", "work": None}
        assert stand.world.host_world.calls["create"] == 1
        assert job.image is not None
        assert job.image.config.cwd == "/work"
        again = await stand.build(
            text, context=await stand.upload({"src": None, "src/a": "a", "more": "m", ".dockerignore": "more"})
        )
        assert [step.cached for step in again.steps or () if step.state == "done"] == [True, True]
        other = await stand.build(text, context=await stand.upload({"src/a": "changed"}))
        assert (await stand.files(other))["bin/a"] == "changed"


async def test_steps_in_code(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        context = await stand.upload({"a": "1"})
        job = await stand.build(
            steps=[
                {"run": "echo hi"},
                {"copy": {"from": "a", "to": "/b/", "mode": "600", "owner": "user"}},
                {"env": {"X": "y"}},
            ],
            context=context,
        )
        assert await stand.files(job) == dict(sorted({**BASE, "b": None, "b/a": "1"}.items()))
        assert [step.text for step in job.steps or ()] == ["run echo hi", "copy a /b/", "env X"]


async def test_a_step_that_fails_says_which_and_how_and_is_not_remembered(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        text = "FROM base\nRUN echo fine\nRUN echo to be read; exit 3\nRUN echo never\n"
        job_id = stand.start(dockerfile=text)
        job = await stand.settled(job_id)
        assert (job.state, job.reason) == ("failed", ImageReason.STEP_FAILED)
        assert job.message is not None
        assert "step 2 of 3 (RUN echo to be read; exit 3) ended with exit code 3" in job.message
        assert "to be read" in job.message
        assert [(step.state, step.exit_code) for step in job.steps or ()] == [
            ("done", None),
            ("failed", 3),
            ("pending", None),
        ]
        lines = [json.loads(line) for line in (await stand.log(job_id)).splitlines()]
        assert ("stdout", 1, "to be read") in [(line["kind"], line.get("step"), line.get("text")) for line in lines]
        assert states(await stand.build(text))[0] == ("done", True)
        assert stand.residue() == []


@pytest.mark.parametrize(
    ("build", "reason", "says"),
    [
        ({"dockerfile": "FROM base\nFETCH x"}, ImageReason.STEP_FAILED, "line 2"),
        ({"dockerfile": "FROM gone\nRUN x"}, ImageReason.NOT_FOUND, "'gone'"),
        ({"dockerfile": "FROM base\nCOPY --from=gone / /"}, ImageReason.NOT_FOUND, "'gone'"),
        ({"dockerfile": "FROM base\nCOPY a b"}, ImageReason.STEP_FAILED, "no context"),
        ({"dockerfile": "FROM scratch\nRUN x"}, ImageReason.STEP_FAILED, "nothing yet that could run"),
        ({"dockerfile": "FROM base", "target": "x"}, ImageReason.STEP_FAILED, "no stage"),
        ({"dockerfile": "FROM base\nRUN sleep 100", "timeout_seconds": 1}, ImageReason.TIMED_OUT, "within 1 seconds"),
        ({"dockerfile": "FROM base\nCOPY --chown=nobody /etc /x"}, ImageReason.STEP_FAILED, "no context"),
        ({"dockerfile": "FROM base\nCOPY --from=base --chown=who /etc /x"}, ImageReason.UNSAFE_CONTENT, "'who'"),
    ],
)
async def test_what_cannot_be_built(tmp_path: Path, build: dict[str, Any], reason: ImageReason, says: str) -> None:
    async with build_stand(tmp_path) as stand:
        job = await stand.build(**build)
        assert job.reason is reason, job.message
        assert says in (job.message or "")
        assert stand.residue() == []


async def test_an_empty_stage_is_its_base(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        job = await stand.build("FROM base")
        assert job.image is not None
        assert job.image.id == stand.base.id


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the world tells nobody
            await asyncio.sleep(0.01)


async def _running(stand: BuildStand) -> str:
    """Wait until a step sleeps in a sandbox; return that."""

    def there() -> list[str]:
        guests = stand.world.host_world.guests
        return [each for each, guest in guests.items() if guest.calls["start"]]

    await until(there)
    return there()[0]


async def test_a_build_that_is_not_wanted_any_more_is_gone(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        job_id = stand.start(dockerfile="FROM base\nRUN sleep 1000")
        await _running(stand)
        await stand.jobs.remove(job_id)
        assert stand.residue() == []


async def test_a_sandbox_that_dies_fails_its_step(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        job_id = stand.start(dockerfile="FROM base\nRUN sleep 1000")
        stand.world.host_world.end(await _running(stand), RuntimeEnd(signal=9), oom=True)
        job = await stand.settled(job_id)
        assert job.reason is ImageReason.STEP_FAILED
        assert "cut off" in (job.message or "")
        assert stand.residue() == []


async def test_secrets_are_seen_by_steps_and_written_nowhere(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        job_id = stand.start(dockerfile="FROM base\nRUN env", secret_env={"TOKEN": "s3cr3t-value"})
        job = await stand.settled(job_id)
        assert job.state == "ready", job.message
        assert "TOKEN=s3cr3t-value" in await stand.log(job_id), "what a step prints is printed"
        records = list((stand.world.directory / "image-jobs").rglob("*.json"))
        assert records
        assert not [path for path in records if "s3cr3t" in path.read_text()]
        assert job.image is not None
        assert "TOKEN" not in job.image.config.env


HOOK_STEPS = (
    "slot.acquired",
    "rootfs.upper",
    "egress.apply",
    "launch.create",
    "launch.started",
    "guest.connect",
    "guest.initialized",
)


@pytest.mark.parametrize("step", [*HOOK_STEPS, *STEPS])
async def test_whatever_step_fails_nothing_is_left_and_the_next_build_works(tmp_path: Path, step: str) -> None:
    async with build_stand(tmp_path) as stand:
        stand.world.points.at(step)
        job = await stand.build(TWO)
        assert job.state == "failed"
        assert stand.residue() == []
        assert (await stand.build(TWO)).state == "ready"


@pytest.mark.parametrize("step", [*HOOK_STEPS, *STEPS])
async def test_wherever_it_is_cancelled_nothing_is_left(tmp_path: Path, step: str) -> None:
    async with build_stand(tmp_path) as stand:
        stand.world.points.at(step, "hang")
        job_id = stand.start(dockerfile=TWO)
        await stand.world.points.hanging.wait()
        await stand.jobs.remove(job_id)
        assert stand.residue() == []


async def test_an_agent_that_dies_leaves_strangers_and_the_next_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with build_stand(tmp_path, world) as stand:
        job_id = stand.start(dockerfile="FROM base\nRUN echo one\nRUN sleep 1000\n")
        await until(lambda: world.host_world.calls["create"] == 2)
        await _running(stand)
        stand.manager.abandon()
    async with build_stand(tmp_path, world) as stand:
        await until(lambda: [step for step in stand.jobs.get(job_id).steps or () if step.state == "running"])
        assert states(stand.jobs.get(job_id))[0] == ("done", True)
        await stand.jobs.remove(job_id)
        assert stand.residue() == []


async def test_an_image_of_a_sandbox_that_runs_on(tmp_path: Path) -> None:
    async with build_stand(tmp_path) as stand:
        stand.changes({"./": None, "./new": "n", "./tmp": None, "./tmp/x": "x"})
        sandbox_id = "sbx" + "c" * 20
        ref = ImageRef(id=stand.base.id, reference="base", digest=stand.base.digest)
        await stand.manager.ensure(
            sandbox_id, EnsureSandbox(generation=1, epoch=1, deadline_seconds=30, spec=SandboxSpec(image=ref))
        )
        asked = {
            "project_id": "prj" + "a" * 20,
            "source": {"sandbox": {"sandbox_id": sandbox_id, "exclude": ["tmp/*"]}},
            "config": {"cmd": ["serve"]},
        }
        job_id = "img" + "d" * 20
        stand.jobs.start(job_id, StartImageJob.model_validate(asked))
        job = await stand.settled(job_id)
        files = await stand.files(job)
        assert {"new", "tmp"} <= files.keys()
        assert "tmp/x" not in files
        assert job.image is not None
        assert job.image.config.cmd == ["serve"]
        assert stand.manager.get(sandbox_id).state == "running"


async def test_builds_wait_for_room(tmp_path: Path) -> None:
    world = World(tmp_path, settings={"max_sandboxes": 1})
    async with build_stand(tmp_path, world) as stand:
        jobs = [stand.start(dockerfile=f"FROM base\nRUN echo {number}") for number in range(2)]
        assert [(await stand.settled(job)).state for job in jobs] == ["ready", "ready"]
        assert stand.residue() == []


async def test_egress_of_steps_is_what_the_build_says(tmp_path: Path) -> None:
    applied: list[str] = []

    class Network(FakeNetwork):
        async def apply_egress(self, slot: Any, egress: Any, credentials: Any = None) -> int:
            applied.append(egress.mode)
            return await super().apply_egress(slot, egress, credentials)

    async with build_stand(tmp_path, network=Network) as stand:
        await stand.build("FROM base\nRUN echo", egress={"mode": "blocked"})
        await stand.build("FROM base\nRUN echo 2")
    assert applied == ["blocked", "open"]
