"""An api with a node that makes images in memory: what a reference says decides what comes of it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_stand import Answer, Client, Stand, api, make_settings
from fake_node import fake_node
from sandboxd.app import images as image_calls
from sandboxd.images.fake import FakeImages
from sandboxd.images.fake_runner import FakeRunner
from sandboxd.images.jobs import Jobs
from sandboxd.images.uploads import Uploads

HOST = "registry.example.com"


@dataclass(slots=True)
class ImageStand:
    """A running api whose node makes images."""

    stand: Stand
    runner: FakeRunner
    images: FakeImages
    jobs: Jobs
    uploads: Uploads

    @property
    def root(self) -> Client:
        return self.stand.root

    async def make(self, name: str = "app:1", client: Client | None = None, **spec: Any) -> dict[str, Any]:
        """Make an image of the registry and wait until it is settled."""
        answer = await self.begin(name, client, wait_seconds=30, **spec)
        assert answer.status in {200, 202}, answer.raw
        return answer.body

    async def begin(self, name: str, client: Client | None = None, **spec: Any) -> Answer:
        body = {"registry": {"reference": f"{HOST}/{name}"}, **spec}
        return await (client or self.root).call("POST", "/v1/images", body)


@asynccontextmanager
async def image_stand(base: Path, **changes: Any) -> AsyncGenerator[ImageStand]:
    """Run an api and a node; what the node had before is there again."""
    settings = make_settings(base, **changes)
    images = FakeImages()
    runner = FakeRunner(images)
    jobs = Jobs(base / "jobs", dict.fromkeys(("registry", "archive", "build", "sandbox"), runner))
    uploads = Uploads(base / "uploads")
    routes = image_calls.routes(jobs, uploads, images)
    async with (
        jobs.opened(),
        fake_node(settings.run_dir, routes=routes) as node,
        api(base, node=node, **changes) as stand,
    ):
        yield ImageStand(stand, runner, images, jobs, uploads)
