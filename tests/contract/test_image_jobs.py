"""Image jobs: begun once, done by a program without rights, shared, cancelled, taken up again, with a kept log."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api_stand import until
from image_jobs_kit import ONE, TWO, JobStand, asked, job_stand
from registry_kit import FakeRegistry, digest_of, make_image, pack, serving, tar_of, write_layout, write_saved
from sandboxd.clock import HostClock
from sandboxd.contract.images import (
    ArchiveSource,
    ImageOverrides,
    ImageReason,
    ImageSource,
    ImageState,
    LogLine,
    SnapshotSource,
    StartImageJob,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.images.base import ImageConfig
from sandboxd.images.errand_program import overridden
from sandboxd.images.job_log import JobLog
from sandboxd.images.tokens import Credential

SETTINGS: dict[str, Any] = {"Env": ["A=1", "B=2"], "Cmd": ["/bin/x"], "User": "7", "WorkingDir": "/srv"}
LAYERS = [tar_of({"etc/": b"", "etc/one": b"1" * 9000}), tar_of({"etc/two": (b"2", 0o755)})]
IMAGE = make_image(LAYERS, SETTINGS)


@pytest.fixture(name="registry")
async def _registry() -> AsyncGenerator[FakeRegistry]:
    async with serving(FakeRegistry()) as served:
        yield served


@pytest.fixture(name="stand")
async def _stand(tmp_path: Path, registry: FakeRegistry) -> AsyncGenerator[JobStand]:
    async with job_stand(tmp_path, registry) as opened:
        yield opened


def reference(registry: FakeRegistry, tag: str = "latest") -> str:
    return f"{registry.host}/team/app:{tag}"


def gate(registry: FakeRegistry, kind: str = IMAGE.layer_digests[0]) -> asyncio.Event:
    """Let nothing of a kind out until the event is set."""
    opened = asyncio.Event()

    async def hold(_: web.Request) -> web.StreamResponse | None:
        await opened.wait()
        return None

    registry.mischief[kind] = hold
    return opened


async def test_an_image_of_a_registry(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    job_id = stand.start(asked(reference(registry)))
    job = await stand.settled(job_id)
    assert job.state == "ready", job
    assert job.image is not None
    assert (job.image.platform, job.image.origin_digest) == ("linux/amd64", IMAGE.digest)
    config = job.image.config
    assert (config.env, config.cmd, config.user, config.cwd) == ({"A": "1", "B": "2"}, ["/bin/x"], "7", "/srv")
    assert job.progress is not None
    assert job.progress.done_bytes == job.progress.total_bytes > 0
    (held,) = stand.store.held()
    assert (held.id, held.names) == (job.image.id, [])
    async with stand.store.lease(held.id) as lent:
        assert lent.config.user == "7"
        assert lent.path.stat().st_uid == os.geteuid()
    lines = [LogLine.model_validate_json(line) for line in (await stand.lines(job_id)).splitlines()]
    assert [line.kind for line in lines][-1] == "exit"
    assert lines[-1].state == "ready"
    assert all(one.next == two.seq for one, two in pairwise(lines))
    assert not list((stand.home / "work").iterdir())


async def test_a_job_is_begun_once(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    opened = gate(registry, "manifests")
    job_id = stand.start(asked(reference(registry)))
    assert stand.jobs.start(job_id, asked(reference(registry))).id == job_id
    with pytest.raises(ProblemError, match="already_exists"):
        stand.jobs.start(job_id, asked(reference(registry, "other")))
    opened.set()
    assert (await stand.settled(job_id)).state == "ready"
    assert len(registry.asked("manifests")) == 1


async def test_many_projects_share_one_download(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest", "same")
    opened = gate(registry)
    jobs = [stand.start(asked(reference(registry), project=ONE)), stand.start(asked(reference(registry, "same")))]
    jobs.append(stand.start(asked(reference(registry), project=TWO)))
    await until(lambda: all((stand.jobs.get(job).progress is not None) for job in jobs))
    opened.set()
    made = [await stand.settled(job) for job in jobs]
    assert [job.state for job in made] == ["ready"] * 3
    assert len({job.image and job.image.id for job in made}) == 1
    assert len([one for one in registry.asked("blobs") if one.path.endswith(IMAGE.layer_digests[0])]) == 1
    again = await stand.done(asked(reference(registry)))
    assert again.image == made[0].image or (again.image and made[0].image and again.image.id == made[0].image.id)
    assert len([one for one in registry.asked("blobs") if one.path.endswith(IMAGE.layer_digests[0])]) == 1


async def test_a_digest_alone_is_no_right_to_an_image(stand: JobStand, registry: FakeRegistry) -> None:
    """Whoever knows the manifest of a private image, and not its layers, gets nothing by serving it himself."""
    registry.put(IMAGE, "latest")
    assert (await stand.done(asked(reference(registry)))).state == "ready"
    thief = registry.host.replace("127.0.0.1", "localhost") + "/thief/app"
    registry.blobs = {digest_of(IMAGE.config): IMAGE.config}
    assert (await stand.done(asked(f"{registry.host}/thief/app:latest", project=TWO))).reason == "not_found"
    assert (await stand.done(asked(f"{thief}:latest", project=TWO))).state == "failed"


async def test_one_that_waits_goes_on_when_the_other_is_deleted(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    opened = gate(registry)
    first = stand.start(asked(reference(registry)))
    await until(lambda: stand.jobs.get(first).progress is not None)
    second = stand.start(asked(reference(registry), project=TWO))
    await until(lambda: b"another job" in b"".join(JobLog(stand.home / "jobs" / second / "log").read(0)))
    await stand.jobs.remove(first)
    opened.set()
    assert (await stand.settled(second)).state == "ready"
    with pytest.raises(ProblemError, match="image_not_found"):
        stand.jobs.get(first)


async def test_what_is_asked_for_goes_over_the_config(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    plain = await stand.done(asked(reference(registry)))
    over = ImageOverrides(env={"B": "3", "C": "4"}, cmd=["/bin/y"], entrypoint=["/bin/e"], user="root", cwd="/")
    other = await stand.done(asked(reference(registry), config=over))
    assert plain.image is not None
    assert other.image is not None
    assert other.image.id != plain.image.id
    config = other.image.config
    assert config.env == {"A": "1", "B": "3", "C": "4"}
    assert (config.cmd, config.entrypoint, config.user, config.cwd) == (["/bin/y"], ["/bin/e"], "root", "/")
    async with stand.store.lease(plain.image.id) as lent:
        assert lent.config.user == "7"


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "unauthorized"), (403, "unauthorized"), (404, "not_found"), (500, "registry_unavailable")],
)
async def test_what_a_registry_refuses(stand: JobStand, registry: FakeRegistry, status: int, reason: str) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "0"})

    registry.mischief["manifests"] = refuse
    job = await stand.done(asked(reference(registry)))
    assert (job.state, job.reason) == ("failed", reason)
    assert job.message
    last = LogLine.model_validate_json((await stand.lines(job.id)).splitlines()[-1])
    assert (last.kind, last.state, last.reason) == ("exit", "failed", reason)


async def test_a_registry_that_is_busy_and_then_breaks_off(stand: JobStand, registry: FakeRegistry) -> None:
    """It is asked again, and what came of a layer is not fetched twice."""
    big = make_image([tar_of({"big": os.urandom(3_000_000)})])
    registry.put(big, "latest")
    layer = big.layer_digests[0]
    told: list[str] = []

    async def busy(_: web.Request) -> web.StreamResponse | None:
        told.append("busy")
        return web.Response(status=429, headers={"Retry-After": "0"}) if len(told) == 1 else None

    async def breaks(request: web.Request) -> web.StreamResponse | None:
        told.append(request.headers.get("Range", "whole"))
        if told.count("whole") + told.count("bytes=0-") > 1 or "bytes=" in told[-1]:
            return None
        answer = web.StreamResponse(headers={"Content-Length": str(len(big.blobs[layer]))})
        await answer.prepare(request)
        await answer.write(big.blobs[layer][:1_000_000])
        assert request.transport is not None
        request.transport.close()
        return answer

    registry.mischief |= {"manifests": busy, layer: breaks}
    job = await stand.done(asked(reference(registry)))
    assert job.state == "ready", job
    assert told[0] == "busy"
    assert any(word.startswith("bytes=") for word in told)


async def test_a_registry_that_is_gone_midway(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")

    async def gone(request: web.Request) -> web.StreamResponse | None:
        assert request.transport is not None
        request.transport.abort()
        return None

    registry.mischief[IMAGE.layer_digests[1]] = gone
    job = await stand.done(asked(reference(registry)))
    assert (job.state, job.reason) == ("failed", "registry_unavailable")
    assert stand.store.held() == []
    assert not list((stand.home / "work").iterdir())


async def test_bad_images_have_their_reasons(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(make_image(LAYERS, platform="linux/arm64"), "arm")
    registry.put(make_image([tar_of({"../out": b"x"})]), "unsafe")
    damaged = make_image(LAYERS, {"Cmd": ["other"]})
    registry.put(damaged, "damaged")
    registry.blobs[damaged.layer_digests[1]] = b"something else"
    for tag, reason in (("arm", "wrong_platform"), ("unsafe", "unsafe_content"), ("damaged", "corrupt")):
        job = await stand.done(asked(reference(registry, tag)))
        assert job.reason == reason, job
    assert (await stand.done(asked("127.0.0.1:1/x/y:z"))).reason == "registry_unavailable"
    assert (await stand.done(asked("no-registry:1"))).reason == "not_found"
    assert stand.store.held() == []


async def test_operators_credentials_are_used_and_said_nowhere(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    registry.user = "ann", "hidden-word"
    async with job_stand(tmp_path, registry) as stand:
        assert (await stand.done(asked(reference(registry)))).reason == "unauthorized"
        given = await stand.done(asked(reference(registry), username="ann", password="hidden-word"))
        assert given.state == "ready", given
    async with job_stand(tmp_path, registry, credentials={registry.host: Credential("ann", "hidden-word")}) as stand:
        assert (await stand.done(asked(reference(registry)))).state == "ready"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hidden-word" not in path.read_bytes()


async def test_what_a_password_let_in_does_not_show_to_others(tmp_path: Path, registry: FakeRegistry) -> None:
    """Not by how soon it comes, and not by what the log says."""
    registry.put(IMAGE, "latest")
    registry.user = "ann", "hidden-word"

    def fetched() -> int:
        return len([one for one in registry.asked("blobs") if one.path.endswith(IMAGE.layer_digests[0])])

    async with job_stand(tmp_path, registry, credentials={registry.host: Credential("ann", "hidden-word")}) as stand:
        for project, downloads, known in ((ONE, 1, False), (TWO, 2, False), (ONE, 2, True), (TWO, 2, True)):
            job = stand.start(asked(reference(registry), project=project))
            assert (await stand.settled(job)).state == "ready"
            assert fetched() == downloads
            assert (b"already" in await stand.lines(job)) == known
        assert stand.store.records()[0].owed == (ONE, TWO)


async def upload(stand: JobStand, data: bytes, project: str = ONE) -> str:
    async def body() -> AsyncIterator[bytes]:
        yield data

    sha256 = hashlib.sha256(data).hexdigest()
    await stand.uploads.put(project, sha256, offset=0, total_bytes=len(data), body=body())
    return sha256


def of_upload(sha256: str, form: Any, project: str = ONE) -> StartImageJob:
    return StartImageJob(project_id=project, source=ImageSource(archive=ArchiveSource(upload=sha256, format=form)))


async def test_archives_become_images(stand: JobStand, tmp_path: Path) -> None:
    layout = pack(write_layout(tmp_path / "l", (IMAGE, "v1")), tmp_path / "layout.tar").read_bytes()
    saved = pack(write_saved(tmp_path / "s", IMAGE, "app:v1"), tmp_path / "saved.tar.gz", "w:gz").read_bytes()
    jobs = [
        await stand.done(of_upload(await upload(stand, data), form))
        for data, form in ((layout, "oci"), (saved, "docker"))
    ]
    assert [job.state for job in jobs] == ["ready", "ready"], jobs
    assert len({job.image and job.image.id for job in jobs}) == 1
    bare = await stand.done(of_upload(await upload(stand, LAYERS[0]), "rootfs"))
    assert bare.state == "ready", bare
    wrong = await stand.done(of_upload(await upload(stand, b"no archive at all" * 100), "oci"))
    assert (wrong.state, wrong.reason is not None) == ("failed", True)


async def test_an_upload_is_its_projects(stand: JobStand) -> None:
    sha256 = await upload(stand, LAYERS[0])
    job = await stand.done(of_upload(sha256, "rootfs", TWO))
    assert (job.state, job.reason) == ("failed", "not_found")
    absent = await stand.done(of_upload("0" * 64, "rootfs", TWO))
    assert job.message == (absent.message or "").replace("0" * 64, sha256)


async def test_kinds_without_a_runner_are_refused_by_name(stand: JobStand) -> None:
    source = ImageSource(snapshot=SnapshotSource(snapshot_id="snp" + "a" * 20))
    with pytest.raises(ProblemError) as raised:
        stand.start(StartImageJob(project_id=ONE, source=source))
    assert (raised.value.code, raised.value.reason) == ("not_implemented", "images.snapshot")


async def test_the_program_has_no_rights(stand: JobStand, registry: FakeRegistry) -> None:
    """Looked at from outside while it runs: its user, its capabilities, its view of files."""
    if os.geteuid() != 0:
        pytest.skip("the tests have no root to give up")
    registry.put(IMAGE, "latest")
    opened = gate(registry)
    job_id = stand.start(asked(reference(registry)))
    await until(lambda: stand.jobs.get(job_id).progress is not None)
    (program,) = [path for path in Path("/proc").glob("[0-9]*") if _runs(path, stand.home)]
    status = dict(line.split(":\t", 1) for line in (program / "status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65200"}
    assert status["Groups"].split() == []
    assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert sorted(path.name for path in (program / "root/tmp").iterdir()) == ["archive", "images"]
    opened.set()
    assert (await stand.settled(job_id)).state == "ready"
    assert not program.exists()


def _runs(process: Path, home: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"errand_program" in command and str(home).encode() in command


async def test_jobs_go_on_after_a_restart(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    opened = gate(registry)
    secret = asked(reference(registry), username="ann", password="x")
    async with job_stand(tmp_path, registry) as stand:
        job_id, with_secret = stand.start(asked(reference(registry))), stand.start(secret)
        await until(lambda: stand.jobs.get(job_id).progress is not None)
    opened.set()
    async with job_stand(tmp_path, registry) as stand:
        assert (await stand.settled(job_id)).state == "ready"
        cut = await stand.settled(with_secret)
        assert (cut.state, cut.reason) == ("failed", "interrupted")
        assert b"going on" in await stand.lines(job_id)
    async with job_stand(tmp_path, registry) as stand:
        assert stand.jobs.get(job_id).state == "ready"
        assert b'"exit"' in await stand.lines(job_id)


async def test_a_log_is_followed_and_resumed(stand: JobStand, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    opened = gate(registry)
    job_id = stand.start(asked(reference(registry)))
    await until(lambda: stand.jobs.get(job_id).progress is not None)
    begun = (await stand.lines(job_id, follow=False)).splitlines()
    after = json.loads(begun[-1])["next"]
    async with asyncio.TaskGroup() as group:
        rest = group.create_task(stand.lines(job_id, after))
        opened.set()
    whole = (await stand.lines(job_id)).splitlines()
    assert begun + rest.result().splitlines() == whole
    assert (await stand.lines(job_id, after=1)).splitlines() == whole[1:]
    assert await stand.lines(job_id, after=10**12) == b""


def test_a_log_is_bounded_and_says_what_is_missing(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log", 100_000)
    now = HostClock().now()
    for _ in range(1000):
        log.add(now, "stdout", "x" * 1000, 3)
    log.end(now, ImageState.FAILED, ImageReason.STEP_FAILED, "no")
    lines = [json.loads(line) for line in b"".join(log.read(0)).splitlines()]
    assert (tmp_path / "log").stat().st_size < 100_000
    assert [line["kind"] for line in lines[-2:]] == ["lost", "exit"]
    assert sum(len(line["text"]) for line in lines[:-2]) + lines[-2]["lost_bytes"] == 1_000_000


async def test_it_takes_too_long(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    gate(registry)
    async with job_stand(tmp_path, registry, seconds=1) as stand:
        assert (await stand.done(asked(reference(registry)))).reason == "timed_out"


async def test_uploads_in_parts(stand: JobStand) -> None:
    data = os.urandom(300_000)
    sha256 = hashlib.sha256(data).hexdigest()

    async def body(start: int, end: int) -> AsyncIterator[bytes]:
        for at in range(start, end, 50_000):
            yield data[at : min(at + 50_000, end)]

    async def put(start: int, end: int, total: int = len(data)) -> Any:
        return await stand.uploads.put(ONE, sha256, offset=start, total_bytes=total, body=body(start, end))

    with pytest.raises(ProblemError, match="upload_not_found"):
        stand.uploads.state(ONE, sha256)
    assert (await put(0, 100_000)).offset == 100_000
    assert stand.uploads.state(ONE, sha256).offset == 100_000
    with pytest.raises(ProblemError, match="range_not_satisfiable"):
        await put(200_000, 300_000)
    assert (await put(50_000, 150_000)).offset == 150_000
    assert (await put(150_000, 300_000)).complete
    assert (await put(0, 10)).complete
    assert stand.uploads.path(ONE, sha256).read_bytes() == data
    with pytest.raises(ProblemError, match="upload_not_found"):
        stand.uploads.path(TWO, sha256)
    with pytest.raises(ProblemError, match="invalid_request"):
        await stand.uploads.put(ONE, "0" * 64, offset=0, total_bytes=len(data), body=body(0, 300_000))
    with pytest.raises(ProblemError, match="upload_not_found"):
        stand.uploads.state(ONE, "0" * 64)
    with pytest.raises(ProblemError, match="invalid_request"):
        await stand.uploads.put(ONE, "1" * 64, offset=0, total_bytes=5, body=body(0, 100))


async def test_old_uploads_go(stand: JobStand) -> None:
    sha256 = await upload(stand, b"abc")
    path = stand.uploads.path(ONE, sha256)
    os.utime(path, (1, 1))
    await upload(stand, b"def")
    assert not path.exists()


def test_what_is_left_out_stays_as_the_source_says() -> None:
    config = ImageConfig(env={"A": "1"}, user="7", cwd="/srv", cmd=("x",), labels={"l": "1"})
    assert overridden(config, None) == config
    assert overridden(config, ImageOverrides(entrypoint=[], env={"A": "2"})) == replace(config, env={"A": "2"})
    assert overridden(config, ImageOverrides(cmd=[], user="root")) == replace(config, cmd=(), user="root")
