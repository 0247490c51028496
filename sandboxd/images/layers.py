"""A stack of layers becomes one image: each is checked against its uncompressed digest, then laid over those below it.

A whiteout (`.wh.name`) hides what lower layers have; `.wh..wh..opq` hides everything they have in its directory. As
everywhere, a layer writes through the symbolic links that lower layers have in the place of directories, but never out
of the root: links are followed by us, name by name, and every step is taken by descriptor over no link.
"""

import asyncio
import gzip
import hashlib
import io
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

import zstandard

from sandboxd.images import erofs
from sandboxd.images.erofs import ImageBuildError, Sum
from sandboxd.images.failures import corrupt, too_large
from sandboxd.images.tree import ImportLimits, Tally
from sandboxd.images.unpack import DIRECTORY, Member, Unpacking, parts_of

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_PIECE: Final = 1024 * 1024
_DROPPED: Final = {tarfile.CHRTYPE: "devices", tarfile.BLKTYPE: "devices", tarfile.FIFOTYPE: "pipes"}
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW: Final = 128 * 1024 * 1024
_LINKS: Final = 40


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
    """How many entries were left out, or lost something, by what it was."""


def build_from_layers(layers: Sequence[LayerFile], target: Path, *, spool: Path, limits: ImportLimits) -> Built:
    """Write the image of these layers, lowest first. Blocks. ImageBuildError, ImageSourceError."""
    root = spool / "root"
    root.mkdir(mode=0o755)
    tally = Tally(limits)
    descriptor = os.open(root, DIRECTORY)
    try:
        stack = _Stack(descriptor, tally)
        for layer in layers:
            hidden = _look_through(layer, limits)
            stack.hide(hidden)
            with _opened(layer) as reader, _tar(reader) as archive:
                stack.add(archive)
        stack.finish_directories()
    except (tarfile.TarError, EOFError, UnicodeError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise corrupt(f"a layer is no whole tar archive: {error}") from error
    finally:
        os.close(descriptor)
    asyncio.run(erofs.build(root, target, tally.newest_mtime))
    shutil.rmtree(root)
    return Built(erofs.sum_up(target), dict(stack.dropped))


class _Counted(io.RawIOBase):
    """Bytes on their way, with their digest and a limit."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self.digest = hashlib.sha256()
        self._source = source
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size if size >= 0 else _PIECE)
        self._left -= len(data)
        if self._left < 0:
            raise too_large("a layer has more bytes than an image may have")
        self.digest.update(data)
        return data


def _look_through(layer: LayerFile, limits: ImportLimits) -> list[tuple[str, ...]]:
    """Read a layer for its digest and for what it hides: nothing of it is used before. ImageSourceError.

    Headers and padding count as well, so that the limit is a generous one.
    """
    hidden: list[tuple[str, ...]] = []
    with _opened(layer) as source:
        reader = _Counted(source, 2 * limits.size_bytes + 1024 * limits.entries)
        with _tar(cast("IO[bytes]", reader)) as archive:
            for seen, member in enumerate(_members(archive)):
                if seen > limits.entries:
                    raise too_large(f"more than {limits.entries} files")
                parts = parts_of(member.name)
                if parts and parts[-1].startswith(_WHITEOUT):
                    hidden.append(parts)
        while reader.read(_PIECE):
            pass
    digest = f"sha256:{reader.digest.hexdigest()}"
    if layer.diff_id is not None and digest != layer.diff_id:
        raise corrupt(f"a layer is {digest} uncompressed, not {layer.diff_id}")
    return hidden


@contextmanager
def _opened(layer: LayerFile) -> Generator[IO[bytes]]:
    """Open a layer, decompressed by what it is and not by what it is called."""
    with layer.path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start.startswith(_GZIP):
            with gzip.GzipFile(fileobj=file) as reader:
                yield cast("IO[bytes]", reader)
        elif start == _ZSTD:
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
            with decompressor.stream_reader(file, read_across_frames=True) as reader:
                yield cast("IO[bytes]", reader)
        else:
            yield file


def _tar(reader: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=reader, mode="r|", tarinfo=Member, errorlevel=2)


def _members(archive: tarfile.TarFile) -> Generator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        cast("Any", archive).members.clear()  # the library would remember every one of them
        yield member


class _Stack(Unpacking):
    """The layers so far, in a directory of ours."""

    def __init__(self, root: int, tally: Tally) -> None:
        super().__init__(root, tally)
        self.dropped: Counter[str] = Counter()

    def hide(self, whiteouts: Sequence[tuple[str, ...]]) -> None:
        """Take away what a layer hides of those below, before anything of its own is there."""
        for *place, name in whiteouts:
            parent = self._real(tuple(place))
            if name == _OPAQUE:
                self._empty(parent)
            else:
                self._remove((*parent, name.removeprefix(_WHITEOUT)))

    def add(self, archive: tarfile.TarFile) -> None:
        for member in _members(archive):
            parts = parts_of(member.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                continue
            if member.type in _DROPPED:
                self.dropped[_DROPPED[member.type]] += 1
                continue
            if any(name.startswith("SCHILY.xattr.") for name in member.pax_headers):
                self.dropped["extended attributes"] += 1
            if parts:
                parts = (*self._real(parts[:-1]), parts[-1])
                self._over(parts, member)
            member.name = "/".join(parts)
            if member.islnk() and (link := parts_of(member.linkname)):
                member.linkname = "/".join((*self._real(link[:-1]), link[-1]))
            self.take(archive, member)

    def _over(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        """What is not a directory stands in the place of whatever was there; parents that are files go too."""
        if parts[:-1] not in self._directories:
            for end in range(1, len(parts)):
                mode = self._mode(parts[:end])
                if mode is not None and not stat.S_ISDIR(mode):
                    self._remove(parts[:end])
        if not member.isdir():
            self._remove(parts)

    def _real(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Follow the links on the way to a directory, within the root. ImageBuildError when they have no end."""
        if parts in self._directories:
            return parts
        pending, real, links = list(reversed(parts)), list[str](), 0
        while pending:
            part = pending.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                del real[-1:]
                continue
            target = self._link((*real, part))
            if target is None:
                real.append(part)
                continue
            links += 1
            if links > _LINKS:
                raise ImageBuildError(f"{'/'.join(parts)} leads through links without end")
            if target.startswith("/"):
                real.clear()
            pending += reversed(target.split("/"))
        return tuple(real)

    def _link(self, parts: tuple[str, ...]) -> str | None:
        """Return where a symbolic link leads; None when there is none."""
        mode = self._mode(parts)
        if mode is None or not stat.S_ISLNK(mode):
            return None
        with self.open(parts[:-1]) as parent:
            return os.readlink(parts[-1], dir_fd=parent)

    def _mode(self, parts: tuple[str, ...]) -> int | None:
        with suppress(FileNotFoundError, ImageBuildError), self.open(parts[:-1]) as parent:
            return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode
        return None

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
