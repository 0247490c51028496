"""What a job makes is owed to the store, as its project's."""

from pathlib import Path

from image_kit import files_tar
from packs_kit import MemoryBlobs
from sandboxd.contract.images import StartImageJob
from sandboxd.images.base import ImageConfig
from sandboxd.images.owing import OwingRunner
from sandboxd.images.runners import Made, Watch
from sandboxd.images.store import ImageStore
from sandboxd.packs.store import PackStore

PROJECT = "prj" + "a" * 20


class Making:
    """Makes the same image again and again."""

    resumes = True

    def __init__(self, images: ImageStore, source: Path) -> None:
        self._images = images
        self._source = source
        self.cleaned: list[str] = []

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:
        del job_id, asked, watch
        image = await self._images.import_path(self._source, [], ImageConfig())
        return Made(image=image, platform="linux/amd64", config=ImageConfig())

    def clean(self, job_id: str) -> None:
        self.cleaned.append(job_id)


async def test_what_a_job_makes_is_owed_as_its_projects(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    images = ImageStore(tmp_path / "images", packs=PackStore(blobs, tmp_path / "home"), shared=True)
    await images.open()
    (tmp_path / "a.tar").write_bytes(files_tar({"a": b"content"}))
    making = Making(images, tmp_path / "a.tar")
    runner = OwingRunner(making, images)
    asked = StartImageJob.model_validate({"project_id": PROJECT, "source": {"registry": {"reference": "r.example/a"}}})
    made = await runner.run("img" + "b" * 20, asked, Silent())
    (record,) = images.records()
    assert (record.id, record.owed, blobs.keys("v1/packs")) == (made.image.id, (PROJECT,), set())
    await images.pay()
    assert {key.split("/")[2] for key in blobs.keys("v1/packs")} == {PROJECT}
    runner.clean("x")
    assert (runner.resumes, making.cleaned) == (True, ["x"])


class Silent:
    """Nobody looks."""

    def became(self, state: object) -> None: ...
    def moved(self, done_bytes: int, total_bytes: int) -> None: ...
    def said(self, kind: object, text: str, step: int | None = None) -> None: ...
    def stepped(self, steps: object) -> None: ...
