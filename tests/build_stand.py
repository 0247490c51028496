"""Builds on a node over fakes: sandboxes are made up, what they change is given, images are real."""

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build_kit import read_image, tar
from node_kit import World
from sandboxd.app.assembly import Parts, make_manager
from sandboxd.app.image_jobs import image_work
from sandboxd.clock import HostClock
from sandboxd.contract.ids import new_id
from sandboxd.contract.images import SETTLED, ImageJob, StartImageJob
from sandboxd.images.base import ImageConfig
from sandboxd.images.jobs import Jobs
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import Uploads
from sandboxd.ledger.memory import MemoryLedger
from sandboxd.manager.manager import Manager
from sandboxd.manager.startup import StartUp
from sandboxd.network.fake import FakeNetwork
from sandboxd.runtime.fake import FakeRuntime

PROJECT, OTHER = "prj" + "a" * 20, "prj" + "b" * 20
PATIENCE_SECONDS = 60.0
BASE = {"etc": None, "etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "tmp": None}


@dataclass
class BuildStand:
    """A node that is open."""

    world: World
    manager: Manager
    store: ImageStore
    uploads: Uploads
    jobs: Jobs
    base: Any
    logs: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])

    def start(self, *, project: str = PROJECT, config: Any = None, images: Any = None, **build: Any) -> str:
        ref = {"id": self.base.id, "reference": "base", "digest": self.base.digest}
        source = {"build": {"build": build, "images": {"base": ref} if images is None else images}}
        job_id = new_id("img", os.urandom)
        body = {"project_id": project, "source": source, "config": config}
        self.jobs.start(job_id, StartImageJob.model_validate(body))
        return job_id

    async def settled(self, job_id: str) -> ImageJob:
        job = await self.jobs.wait(job_id, beyond=2**40, seconds=PATIENCE_SECONDS)
        assert job.state in SETTLED, job
        return job

    async def build(self, dockerfile: str | None = None, **build: Any) -> ImageJob:
        given = build if dockerfile is None else {"dockerfile": dockerfile, **build}
        return await self.settled(self.start(**given))

    async def files(self, job: ImageJob) -> dict[str, Any]:
        assert job.image is not None, job.message
        async with self.store.lease(job.image.id) as local:
            await self.store.verify(job.image.id)
            return read_image(local.path, self.world.directory / "spool")

    async def upload(self, rows: dict[str, Any] | bytes, project: str = PROJECT) -> str:
        data = rows if isinstance(rows, bytes) else tar(rows)
        sha256 = hashlib.sha256(data).hexdigest()

        async def body() -> AsyncGenerator[bytes]:
            yield data

        await self.uploads.put(project, sha256, offset=0, total_bytes=len(data), body=body())
        return sha256

    async def log(self, job_id: str) -> str:
        return b"".join([piece async for piece in self.jobs.log(job_id, 0, follow=False, alive_seconds=1)]).decode()

    def changes(self, rows: dict[str, Any]) -> None:
        """Say what sandboxes from now on will have changed."""
        self.world.host_world.upper = tar(rows)

    def residue(self) -> list[str]:
        found = self.world.residue()
        found += [f"work {path.name}" for path in (self.store.directory / ".work").iterdir()]
        used = self.manager.admission.used()
        return found + ([f"promised {used}"] if used.sandboxes else [])


@asynccontextmanager
async def build_stand(
    home: Path, world: World | None = None, network: type[FakeNetwork] = FakeNetwork
) -> AsyncGenerator[BuildStand]:
    world = world or World(home)
    store = ImageStore(home / "images")
    await store.open()
    source = home / "base.tar"
    source.write_bytes(tar(BASE))
    base = await store.import_path(source, ["base"], ImageConfig(env={"PATH": "/bin"}, user="user", cwd="/"))
    slots = network(kernel=world.kernel)
    parts = Parts(
        runtime=FakeRuntime(world.host_world),
        network=slots,
        images=store,
        ledger=MemoryLedger(world.ledger),
        host=world.host,
        clock=HostClock(),
        points=world.points,
    )
    config = world.config
    manager = make_manager(config, parts, world.identity, world.boot_id)
    work = image_work(config, store, manager)
    try:
        async with manager.opened(StartUp(slots, config.upper_dir)), work.jobs.opened():
            yield BuildStand(world, manager, store, work.uploads, work.jobs, base)
    finally:
        manager.tools.sampler.close()
