"""What images take in the store, counted for one project: others' images neither show in it nor change it."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from sandboxd.contract.images import StoredImage
from sandboxd.images.base import ImageDamagedError
from sandboxd.images.store import ImageStore
from sandboxd.packs.collect import sizes
from sandboxd.packs.keys import PUBLIC, ManifestName
from sandboxd.packs.manifest import Manifest

_MOST_KEPT: Final = 64


@dataclass(slots=True)
class StoredSizes:
    """Counts once for each set of images. Reading their manifests takes a while: ask in the background."""

    images: ImageStore
    _kept: dict[str, tuple[frozenset[ManifestName], list[StoredImage]]] = field(
        default_factory=dict[str, tuple[frozenset[ManifestName], list[StoredImage]]]
    )
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def of(self, project_id: str) -> list[StoredImage]:
        """Count what is the project's and what is everybody's. What is not in the store yet is not in the answer."""
        async with self._turn:
            names = self._names(project_id)
            known, counted = self._kept.pop(project_id, (frozenset[ManifestName](), list[StoredImage]()))
            if known != frozenset(names.values()):
                counted = await self._count(names)
            self._kept[project_id] = frozenset(names.values()), counted
            while len(self._kept) > _MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            return counted

    def _names(self, project_id: str) -> dict[str, ManifestName]:
        """Return for each image the manifest that the project's sandboxes start from."""
        found: dict[str, ManifestName] = {}
        for record in self.images.records():
            by_domain = {name.domain: name for name in record.stored}
            name = by_domain.get(PUBLIC) or by_domain.get(project_id)
            if name is not None:
                found[record.id] = name
        return found

    async def _count(self, names: dict[str, ManifestName]) -> list[StoredImage]:
        ids: dict[str, str] = {}
        manifests: list[Manifest] = []
        for image_id, name in names.items():
            try:
                manifest = await self.images.manifest(name)
            except ImageDamagedError:
                continue
            ids[manifest.facts.image] = image_id
            manifests.append(manifest)
        counted = await asyncio.to_thread(sizes, manifests)
        return [
            StoredImage(id=ids[digest], shared_bytes=shared, unique_bytes=unique)
            for digest, (shared, unique) in counted.items()
        ]
