"""Images in files: OCI layouts, as directories or tars, and what `docker save` writes, in its old and its new form."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sandboxd.images.failures import corrupt, not_found, too_large
from sandboxd.images.files import DirectoryFiles, Files, TarFiles, has_member, inflate, is_gzip
from sandboxd.images.manifests import (
    CONFIG_LIMIT,
    MANIFEST_LIMIT,
    Descriptor,
    Index,
    Manifest,
    Platform,
    Saved,
    check,
    check_layout,
    describe,
    digest_of,
    parse,
    parse_saved,
)
from sandboxd.images.partial import Moved, PartialFile
from sandboxd.images.sources import Found, complete, only, walk
from sandboxd.images.threads import in_thread

_LAYOUT: Final = "oci-layout"
_INDEX: Final = "index.json"
_SAVED: Final = "manifest.json"
_PLAIN_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"


class FileSource:
    """An image in a layout or archive, which `name` picks out when there are several."""

    def __init__(self, path: Path, *, name: str | None = None, limit: int, spool: Path) -> None:
        """`limit` bounds what a compressed archive may grow to, in `spool`."""
        self._path = path
        self._name = name
        self._limit = limit
        self._spool = spool
        self._files: Files | None = None
        self._layers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._files = await in_thread(lambda: open_files(self._path, self._limit, self._spool))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    async def find(self, platform: Platform) -> Found:
        files = self._open
        if files.size(_LAYOUT) is not None and files.size(_INDEX) is not None:
            return await self._find_in_layout(platform)
        if files.size(_SAVED) is not None:
            return await in_thread(lambda: self._find_saved(platform))
        raise not_found(f"{self._path.name} is neither an OCI layout nor a docker archive")

    async def fetch(self, layer: Descriptor, directory: Path, moved: Moved) -> Path:
        return await in_thread(lambda: self._copy(layer, directory, moved))

    async def document(self, descriptor: Descriptor, limit: int, /) -> bytes:
        """Read a small blob, checked."""
        data = await in_thread(lambda: self._small(_blob(descriptor), min(limit, descriptor.size)))
        check(data, descriptor.digest, "blob of the layout")
        return data

    def names(self) -> list[str]:
        """List what the images in it are called."""
        if self._open.size(_SAVED) is not None:
            return [tag for saved in self._saved() for tag in saved.tags]
        if self._open.size(_INDEX) is not None:
            index = parse(self._small(_INDEX, MANIFEST_LIMIT))
            if isinstance(index, Index):
                return [entry.name for entry in index.entries if entry.name]
        return []

    @property
    def _open(self) -> Files:
        if self._files is None:
            raise not_found(f"{self._path.name} is not open")
        return self._files

    async def _find_in_layout(self, platform: Platform) -> Found:
        check_layout(await in_thread(lambda: self._small(_LAYOUT, MANIFEST_LIMIT)))
        index = parse(await in_thread(lambda: self._small(_INDEX, MANIFEST_LIMIT)))
        if not isinstance(index, Index):
            raise corrupt(f"{_INDEX} is no index")
        entries = {entry.digest for entry in index.entries}
        if self._name is None and len(entries) > 1 and all(entry.platform for entry in index.entries):
            # One image for several machines, listed without an index of its own.
            return await walk(self._small(_INDEX, MANIFEST_LIMIT), None, platform, self, self)
        entry = only(index, self._name)
        return await walk(await self.document(entry, MANIFEST_LIMIT), entry.media_type, platform, self, self)

    def _find_saved(self, platform: Platform) -> Found:
        fitting = [saved for saved in self._saved() if self._name is None or self._name in saved.tags]
        if len(fitting) != 1:
            names = ", ".join(self.names())[:500]
            raise not_found(f"it holds {len(fitting)} images that fit; name one of {names or 'none'}")
        (saved,) = fitting
        config = self._small(saved.config, CONFIG_LIMIT)
        digest = digest_of(config)
        stem = saved.config.rpartition("/")[2].removesuffix(".json")
        if f"sha256:{stem}" != digest:
            raise corrupt(f"config is not what its name says: {digest}, not {stem[:80]}")
        described = describe(config)
        if len(described.diff_ids) != len(saved.layers):
            raise corrupt(f"config speaks of {len(described.diff_ids)} layers, {_SAVED} of {len(saved.layers)}")
        layers: list[Descriptor] = []
        for diff_id, name in zip(described.diff_ids, saved.layers, strict=True):
            size = self._open.size(name)
            if size is None:
                raise corrupt(f"layer {name[:200]} is not in the archive")
            self._layers[diff_id] = name
            layers.append(Descriptor(diff_id, size, _PLAIN_LAYER))
        manifest = Manifest(Descriptor(digest, len(config), _CONFIG), tuple(layers))
        return complete(digest, manifest, config, platform)

    def _saved(self) -> tuple[Saved, ...]:
        return parse_saved(self._small(_SAVED, MANIFEST_LIMIT))

    def _small(self, name: str, limit: int) -> bytes:
        size = self._open.size(name)
        if size is None:
            raise corrupt(f"{name[:200]} is missing")
        if size > limit:
            raise too_large(f"{name[:200]} has {size} bytes; at most {limit} are read")
        data = bytearray()
        for piece in self._open.pieces(name):
            data += piece
            if len(data) > limit:
                raise too_large(f"{name[:200]} grows while it is read")
        return bytes(data)

    def _copy(self, layer: Descriptor, directory: Path, moved: Moved) -> Path:
        """Copy a layer out: what is checked is what is used, whatever happens to the source meanwhile."""
        name = self._layers.get(layer.digest) or _blob(layer)
        if self._open.size(name) != layer.size:
            raise corrupt(f"{name[:200]} is missing, or has not the {layer.size} bytes it is said to have")
        part = PartialFile(directory, layer, moved)
        try:
            if not part.open():
                if part.size:
                    part.restart()
                for piece in self._open.pieces(name):
                    part.write(piece)
                part.finish()
        finally:
            part.close()
        return part.target


def open_files(path: Path, limit: int, spool: Path) -> Files:
    """Open a directory or a tar, compressed or not. ImageSourceError."""
    if path.is_dir():
        return DirectoryFiles(path)
    if not path.is_file():
        raise not_found(f"there is no file {path}")
    if not is_gzip(path):
        return TarFiles(path)
    with tempfile.TemporaryDirectory(dir=spool) as directory:
        target = Path(directory) / "archive"
        inflate(path, target, limit)
        return TarFiles(target)  # it keeps the file open, whose name goes with the directory


def is_image(path: Path) -> bool:
    """Whether a directory or tar is an image in one of these forms, and no bare root file system. Blocks."""
    if path.is_dir():
        return (path / _LAYOUT).is_file() and (path / _INDEX).is_file()
    return has_member(path, {_LAYOUT, _SAVED})


def _blob(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{descriptor.hex}"
