"""One store of images, as a node uses it: what is in it, what goes into it, what comes out of it. Everything blocks."""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from sandboxd.packs.blobs import BlobError, BlobMissingError, Blobs
from sandboxd.packs.index import UnitIndex
from sandboxd.packs.intents import Writing
from sandboxd.packs.keys import NODES, PUBLIC, ManifestName, manifests_of, parse_key
from sandboxd.packs.manifest import MOST_BYTES, Facts, Manifest, parse
from sandboxd.packs.materialise import Beside, Filled, materialise
from sandboxd.packs.pack import DamagedError
from sandboxd.packs.packer import Packed, Packer, Stretch

_log = structlog.get_logger(__name__)

_KEPT: Final = 8
"""Manifests of images beside, kept parsed."""


@dataclass(slots=True)
class PackStore:
    """Over any blobs. `home` is a directory of this node's, for the index and copies of manifests."""

    blobs: Blobs
    home: Path
    _parsed: dict[ManifestName, Manifest] = field(default_factory=dict[ManifestName, Manifest])

    @contextmanager
    def writing(self) -> Generator[Writing]:
        """Protect what an import builds on until its image is somebody's. BlobError."""
        writing = Writing(self.blobs)
        writing.begin()
        try:
            yield writing
        finally:
            # What cannot be removed now is taken for a dead one's tomorrow.
            with suppress(BlobError):
                writing.end()

    def add(
        self,
        image: Path,
        content: Iterable[Stretch],
        facts: Facts,
        *,
        domain: str,
        writing: Writing,
        tick: Callable[[], None] = lambda: None,
    ) -> Packed:
        """Store an image of this node's disk. BlobError, ExpiredError."""
        packed = Packer(self.blobs, UnitIndex(self.home / "units.db"), domain, tick).pack(
            image, content, facts, writing
        )
        self._keep(packed.name, packed.data)
        return packed

    def find(self, image_hex: str, domain: str | None = None) -> ManifestName | None:
        """Find an image in this domain, or in any. BlobError."""
        names = (parse_key(blob.key) for blob in self.blobs.list(manifests_of(image_hex)))
        found = [name for name in names if isinstance(name, ManifestName) and domain in {None, name.domain}]
        return min(found, key=lambda name: (name.domain != PUBLIC, name), default=None)

    def manifest(self, name: ManifestName) -> Manifest:
        """Read a manifest: this node's copy, else the store's. DamagedError, BlobError."""
        known = self._parsed.get(name)
        if known is not None:
            return known
        copy = self._copy(name)
        with suppress(OSError, DamagedError):
            return self._remember(name, parse(copy.read_bytes(), name))
        data = self.blobs.get(name.key, MOST_BYTES)
        manifest = parse(data, name)
        self._keep(name, data)
        return self._remember(name, manifest)

    def fill(
        self,
        name: ManifestName,
        target: Path,
        *,
        beside: Sequence[tuple[ManifestName, Path]] = (),
        tick: Callable[[], None] = lambda: None,
    ) -> Filled:
        """Write an image's file out of the store. `beside`: images that are here, and where.

        Content of others' domains is never copied from beside: how long a fill takes would tell that it is here.
        DamagedError, BlobError, OSError.
        """
        manifest = self.manifest(name)
        near: list[Beside] = []
        for other, path in beside:
            if other.domain in {name.domain, *(pack.domain for pack in manifest.packs)}:
                with suppress(DamagedError, BlobError):
                    near.append(Beside(self.manifest(other), path))
        return materialise(self.blobs, manifest, target, beside=near, tick=tick)

    def forget(self, name: ManifestName) -> None:
        """Drop this node's copy of a manifest."""
        self._parsed.pop(name, None)
        self._copy(name).unlink(missing_ok=True)

    def publish(self, place: str, names: Iterable[ManifestName]) -> None:
        """Say what this node has or needs: it is kept. A manifest that is gone nevertheless is put back. BlobError."""
        wanted = sorted(set(names))
        self.blobs.put(f"{NODES}/{place}", json.dumps(sorted({name.image for name in wanted})).encode())
        for name in wanted:
            copy = self._copy(name)
            if copy.exists() and not self._has(name):
                _log.warning("a manifest was collected that is needed; it is put back", manifest=name.key)
                self.blobs.put(name.key, copy.read_bytes())

    def _has(self, name: ManifestName) -> bool:
        try:
            return self.blobs.get_range(name.key, 0, 1) != b""
        except BlobMissingError:
            return False

    def _keep(self, name: ManifestName, data: bytes) -> None:
        copy = self._copy(name)
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = copy.with_suffix(".new")
        aside.write_bytes(data)
        aside.replace(copy)

    def _copy(self, name: ManifestName) -> Path:
        return self.home / "manifests" / f"{name.domain}.{name.image}.{name.hex}"

    def _remember(self, name: ManifestName, manifest: Manifest) -> Manifest:
        while len(self._parsed) >= _KEPT:
            self._parsed.pop(next(iter(self._parsed)))
        self._parsed[name] = manifest
        return manifest
