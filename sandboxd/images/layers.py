"""From sources to one image: layers, a tar with a whole root file system, or a directory. Nothing is unpacked.

All of this blocks and computes: call it in a thread or a process of its own. `stop` set from outside ends it soon.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sandboxd.images.ahead import ahead
from sandboxd.images.content import Contents, Spool
from sandboxd.images.directory import read_directory
from sandboxd.images.erofs import SourceDamagedError, Sum
from sandboxd.images.erofs_writer import Extents, write_image
from sandboxd.images.filetree import FileTree
from sandboxd.images.inflate import Inflated
from sandboxd.images.stack import Dropped, Stack
from sandboxd.images.tar_stream import ByteStream, TarStream
from sandboxd.images.tree import ImportLimits, Tally


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer on the disk, as it was transferred: plain, gzip or zstd, whatever its media type says."""

    path: Path
    media_type: str
    diff_id: str | None
    """The digest of its uncompressed bytes, when it is known."""


@dataclass(frozen=True, slots=True)
class Built:
    """What came of it."""

    sum: Sum
    dropped: Dropped
    extents: Extents


def build_from_layers(
    layers: Sequence[LayerFile],
    target: Path,
    *,
    spool: Path,
    limits: ImportLimits,
    apart: bytes = b"",
    stop: Event | None = None,
) -> Built:
    """Write the image of these layers, lowest first. ImageBuildError.

    `spool` is a directory for the work. `apart` is whatever else makes an image another one than its tree does.
    """
    with _workbench(spool, limits, stop) as bench:
        for layer in layers:
            bench.add(layer.path, layer.diff_id, strict=False)
        return bench.write(target, apart)


def build_from_tar(
    source: Path, target: Path, *, spool: Path, limits: ImportLimits, apart: bytes = b"", stop: Event | None = None
) -> Built:
    """Write the image of a tar (plain, gzip, bzip2, xz, zstd) that holds a whole root file system. ImageBuildError.

    It stands alone: devices and pipes, names through links and hard links to nothing make no image.
    """
    with _workbench(spool, limits, stop) as bench:
        bench.add(source, None, strict=True)
        return bench.write(target, apart)


def build_from_directory(
    source: Path, target: Path, *, spool: Path, limits: ImportLimits, stop: Event | None = None
) -> Built:
    """Write the image of a directory of this machine. ImageBuildError."""
    with _workbench(spool, limits, stop) as bench:
        read_directory(source, bench.tree, bench.contents, bench.tally, bench.stack.dropped)
        return bench.write(target, b"")


class _Workbench:
    """A tree and what its files hold, on their way into an image."""

    def __init__(self, spool: Spool, limits: ImportLimits, stop: Event | None) -> None:
        self._limits = limits
        self.tally = Tally(limits, stop)
        self.tree = FileTree(limits)
        self.contents = Contents(spool)
        self.stack = Stack(self.tree, self.contents, self.tally)

    def add(self, path: Path, diff_id: str | None, *, strict: bool) -> None:
        inflated = Inflated(path, self._limits)
        with ahead(inflated) as chunks:
            stream = ByteStream(chunks)
            archive = TarStream(stream)
            self.stack.add(archive, strict=strict)
            stream.drain()
        if not archive.ended and not inflated.whole_is_known:
            raise SourceDamagedError(f"{path.name} is damaged: it is cut off")
        if diff_id is not None and inflated.digest != diff_id:
            raise SourceDamagedError(f"a layer is {inflated.digest} uncompressed, not {diff_id}")

    def write(self, target: Path, apart: bytes) -> Built:
        summed, extents = write_image(self.tree, self.contents, target, apart=apart, tick=self.tally.go_on)
        return Built(summed, self.stack.dropped, extents)


@contextmanager
def _workbench(spool: Path, limits: ImportLimits, stop: Event | None) -> Generator[_Workbench]:
    place = spool / "content"
    try:
        with Spool(place) as sink:
            yield _Workbench(sink, limits, stop)
    finally:
        place.unlink(missing_ok=True)
