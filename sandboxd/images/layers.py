"""A stack of layers becomes one image: each is checked against its uncompressed digest, then laid over those below it.

A whiteout (`.wh.name`) hides what a lower layer has; `.wh..wh..opq` hides everything in its directory.
"""

import asyncio
import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from sandboxd.images import erofs
from sandboxd.images.erofs import ImageBuildError, Sum
from sandboxd.images.tree import ImportLimits, Tally
from sandboxd.images.unpack import DIRECTORY, Member, Unpacking, parts_of

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_PIECE: Final = 1024 * 1024
_DEVICES: Final = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer on the disk, as it was transferred."""

    path: Path
    media_type: str
    diff_id: str | None
    """The digest of its uncompressed bytes."""


@dataclass(frozen=True, slots=True)
class Built:
    """What came of it."""

    sum: Sum
    dropped: Mapping[str, int]
    """How much was left out, by kind."""
    extents: int


def build_from_layers(layers: Sequence[LayerFile], target: Path, *, spool: Path, limits: ImportLimits) -> Built:
    """Write the image of these layers, lowest first. Blocks. ImageBuildError."""
    root = spool / "root"
    root.mkdir(mode=0o755)
    try:
        tally = Tally(limits)
        descriptor = os.open(root, DIRECTORY)
        try:
            stack = _Stack(descriptor, tally)
            for layer in layers:
                _check(layer, limits)
                with _opened(layer) as archive:
                    stack.hide(archive)
                with _opened(layer) as archive:
                    stack.add(archive)
            stack.finish()
        except (tarfile.TarError, EOFError, UnicodeError, zlib.error, gzip.BadGzipFile) as error:
            raise ImageBuildError(f"a layer is no whole tar archive: {error}") from error
        finally:
            os.close(descriptor)
        asyncio.run(erofs.build(root, target, tally.newest_mtime))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Built(erofs.sum_up(target), dict(stack.dropped), 0)


def _check(layer: LayerFile, limits: ImportLimits) -> None:
    """Read the layer once for its digest: nothing of it is used before."""
    digest, total = hashlib.sha256(), 0
    try:
        with _plain(layer) as reader:
            while piece := reader.read(_PIECE):
                total += len(piece)
                if total > limits.size_bytes:
                    raise ImageBuildError(f"more than {limits.size_bytes} bytes")
                digest.update(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageBuildError(f"layer is damaged: {error}") from error
    if layer.diff_id is not None and f"sha256:{digest.hexdigest()}" != layer.diff_id:
        raise ImageBuildError(f"layer is sha256:{digest.hexdigest()} uncompressed, not {layer.diff_id}")


def _plain(layer: LayerFile) -> IO[bytes]:
    if layer.media_type.endswith("zstd"):
        raise ImageBuildError("layers compressed with zstd are not taken yet")
    with layer.path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(layer.path)) if compressed else layer.path.open("rb")


@contextmanager
def _opened(layer: LayerFile) -> Generator[tarfile.TarFile]:
    with _plain(layer) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=Member, errorlevel=2) as archive:
        yield archive


class _Stack(Unpacking):
    """The layers so far, in a directory of ours."""

    def __init__(self, root: int, tally: Tally) -> None:
        super().__init__(root, tally)
        self.dropped: Counter[str] = Counter()

    def hide(self, archive: tarfile.TarFile) -> None:
        """Take away what a layer hides of those below, before anything of its own is there."""
        while (member := archive.next()) is not None:
            cast("Any", archive).members.clear()
            *place, name = parts_of(member.name) or ("",)
            if name == _OPAQUE:
                self._empty(tuple(place))
            elif name.startswith(_WHITEOUT):
                self._remove((*place, name.removeprefix(_WHITEOUT)))

    def add(self, archive: tarfile.TarFile) -> None:
        while (member := archive.next()) is not None:
            cast("Any", archive).members.clear()
            parts = parts_of(member.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                continue
            if member.type in _DEVICES:
                self.dropped["devices"] += 1
                continue
            if any(name.startswith("SCHILY.xattr.") for name in member.pax_headers):
                self.dropped["xattrs"] += 1
            self._over(parts, member)
            self.take(archive, member)

    def finish(self) -> None:
        self.finish_directories()

    def _over(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        """What is not a directory stands in the place of whatever was there; parents that are files go too."""
        for end in range(1, len(parts)):
            if not self._is_directory(parts[:end]):
                self._remove(parts[:end])
        if parts and not member.isdir():
            self._remove(parts)

    def _is_directory(self, parts: tuple[str, ...]) -> bool:
        with suppress(FileNotFoundError, ImageBuildError), self.open(parts[:-1]) as parent:
            return stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode)
        return True

    def _empty(self, parts: tuple[str, ...]) -> None:
        with suppress(ImageBuildError), self.open(parts) as directory:
            for name in os.listdir(directory):  # noqa: PTH208 - of a descriptor
                self._remove((*parts, name))

    def _remove(self, parts: tuple[str, ...]) -> None:
        if parts[-1] in {"", ".", ".."}:
            raise ImageBuildError("a layer hides what has no name")
        with suppress(ImageBuildError, FileNotFoundError), self.open(parts[:-1]) as parent:
            try:
                os.unlink(parts[-1], dir_fd=parent)
            except IsADirectoryError:
                shutil.rmtree(parts[-1], dir_fd=parent)
                self.forget(parts)
