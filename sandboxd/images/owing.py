"""What jobs make goes into the store once it is made, as content of the project that asked for it, or of all."""

from sandboxd.contract.images import StartImageJob
from sandboxd.images.runners import Made, Runner, Watch
from sandboxd.images.store import ImageStore


class OwingRunner:
    """A runner whose images are owed to the store; whoever waits for one does not wait for that."""

    def __init__(self, runner: Runner, images: ImageStore) -> None:
        self.resumes = runner.resumes
        self._runner = runner
        self._images = images

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:
        made = await self._runner.run(job_id, asked, watch)
        await self._images.owe(made.image.id, made.domain or asked.project_id)
        return made

    def clean(self, job_id: str) -> None:
        self._runner.clean(job_id)
