"""Images in memory, for the fake runtime: nothing is read, so a path need not exist."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sandboxd.contract.ids import image_id_from_digest
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig, ImageMissingError, LocalImage


class FakeImages:
    """Has one image, `base`, unless told otherwise; fails on request; counts its leases."""

    def __init__(self) -> None:
        self.leases: Counter[str] = Counter()
        self._images: dict[str, tuple[NodeImage, LocalImage]] = {}
        self._failures: list[Exception] = []
        self.add("base")

    def add(self, name: str, config: ImageConfig | None = None, *, named: bool = True) -> NodeImage:
        """Make up an image; the same name is the same image everywhere, even where it is not told."""
        digest = "sha256:" + name.encode().hex().ljust(64, "0")[:64]
        image_id = image_id_from_digest(digest)
        node_image = NodeImage(id=image_id, digest=digest, names=[name] if named else [], size_bytes=4096)
        local = LocalImage(
            id=image_id,
            digest=digest,
            path=Path(f"/nowhere/{name}.erofs"),
            config=config or ImageConfig(user="user", cwd="/home/user"),
        )
        self._images[image_id] = node_image, local
        return node_image

    def config_of(self, image_id: str) -> ImageConfig:
        return self._images[image_id][1].config

    def take_away(self, name: str) -> None:
        """Have an image no more; what is leased stays with its holders."""
        self._images = {each: pair for each, pair in self._images.items() if name not in pair[0].names}

    def fail(self, error: Exception) -> None:
        """Let the next lease raise `error`."""
        self._failures.append(error)

    def held(self) -> list[NodeImage]:
        return [image for image, _ in self._images.values()]

    @asynccontextmanager
    async def lease(self, image_id: str, digest: str | None = None) -> AsyncGenerator[LocalImage]:
        del digest
        if self._failures:
            raise self._failures.pop(0)
        if image_id not in self._images:
            raise ImageMissingError(image_id)
        self.leases[image_id] += 1
        image = self._images[image_id][1]
        try:
            yield image
        finally:
            self.leases[image_id] -= 1
