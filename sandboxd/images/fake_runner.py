"""Jobs over images in memory, for the fake runtime: what a reference says decides what comes of it."""

import asyncio

from sandboxd.contract.images import ImageReason, ImageState, StartImageJob
from sandboxd.images.fake import FakeImages
from sandboxd.images.runners import JobError, Made, Watch


class FakeRunner:
    """Makes up the image of any reference; one whose repository ends in a reason fails with it, `…/slow` never ends."""

    resumes = True

    def __init__(self, images: FakeImages) -> None:
        self._images = images
        self.running: set[str] = set()
        self.asked: list[StartImageJob] = []

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:
        """Make it up. JobError."""
        self.asked.append(asked)
        watch.became(ImageState.IMPORTING)
        wanted = asked.source.registry
        reference = "" if wanted is None else wanted.reference
        last = reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
        watch.said("progress", f"found {last}")
        watch.moved(1, 2)
        if last == "slow":
            self.running.add(job_id)
            try:
                await asyncio.Event().wait()
            finally:
                self.running.discard(job_id)
        if last in set(ImageReason):
            raise JobError(ImageReason(last), f"made up: {last}")
        watch.moved(2, 2)
        image = self._images.add(reference[-28:], named=False)
        platform = "linux/amd64" if wanted is None else wanted.platform
        return Made(image=image, platform=platform, config=self._images.config_of(image.id))

    def clean(self, job_id: str) -> None:
        """Nothing is kept."""
