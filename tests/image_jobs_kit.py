"""Image jobs on a node without sandboxes: the real program, the real store, a registry of the test's own."""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry_kit import FakeRegistry
from sandboxd.contract.ids import new_id
from sandboxd.contract.images import ImageJob, ImageSource, RegistrySource, StartImageJob
from sandboxd.images.errand_runner import ErrandRules, ErrandRunner
from sandboxd.images.jobs import JobRules, Jobs
from sandboxd.images.registries import Registries
from sandboxd.images.store import ImageStore
from sandboxd.images.tokens import Credential
from sandboxd.images.uploads import Uploads

ONE, TWO = "prj" + "a" * 20, "prj" + "b" * 20
PATIENCE_SECONDS = 60.0


@dataclass
class JobStand:
    """Jobs that are open."""

    home: Path
    store: ImageStore
    uploads: Uploads
    jobs: Jobs
    runner: ErrandRunner

    def start(self, asked: StartImageJob) -> str:
        job_id = new_id("img", os.urandom)
        self.jobs.start(job_id, asked)
        return job_id

    async def settled(self, job_id: str) -> ImageJob:
        return await self.jobs.wait(job_id, beyond=2**40, seconds=PATIENCE_SECONDS)

    async def done(self, asked: StartImageJob) -> ImageJob:
        job = await self.settled(self.start(asked))
        assert job.state in {"ready", "failed"}, job
        return job

    async def lines(self, job_id: str, after: int = 0, *, follow: bool = True) -> bytes:
        log = self.jobs.log(job_id, after, follow=follow, alive_seconds=PATIENCE_SECONDS)
        return b"".join([piece async for piece in log])


def asked(reference: str, *, project: str = ONE, config: Any = None, **more: Any) -> StartImageJob:
    source = ImageSource(registry=RegistrySource(reference=reference, **more))
    return StartImageJob(project_id=project, source=source, config=config)


@asynccontextmanager
async def job_stand(
    home: Path, *registries: FakeRegistry, credentials: dict[str, Credential] | None = None, **rules: Any
) -> AsyncGenerator[JobStand]:
    """Open jobs over a store; what is given is reached in plain HTTP."""
    store = ImageStore(home / "images")
    await store.open()
    uploads = Uploads(home / "uploads")
    known = Registries(insecure=frozenset(each.host for each in registries), credentials=credentials or {})
    here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"]}
    limits = ErrandRules(first_uid=65_200, env=here, **rules)
    runner = ErrandRunner(store, home / "work", limits, lambda: known, uploads.path)
    jobs = Jobs(home / "jobs", {"registry": runner, "archive": runner}, JobRules())
    async with jobs.opened():
        yield JobStand(home, store, uploads, jobs, runner)
