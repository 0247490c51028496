"""What a worker made becomes a whole image: what its parent has is copied by the kernel while all of it is hashed.

Nothing that a worker says is believed: the digest is worked out here, from the bytes of the file that the worker left
(it has ended) and those of its parent, which nobody changes.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from sandboxd.builds import table as tables
from sandboxd.builds.table import Table
from sandboxd.contract.images import ImageReason
from sandboxd.images.base import ImageDamagedError
from sandboxd.images.erofs import Sum, read_superblock
from sandboxd.images.erofs_layout import BLOCK
from sandboxd.images.runners import JobError
from sandboxd.images.unit_sums import Row, UnitSums, hashed

_PIECE: Final = 256 * 1024
_COPIED: Final = 16 * 1024 * 1024


def assemble(built: Path, said: Path, parent: Path | None) -> tuple[Sum, Table]:
    """Make `built` whole, and put it on the disk; return what it is known by. JobError, OSError."""
    own = _opened(built, os.O_RDWR)
    try:
        size = os.fstat(own).st_size
        if size % BLOCK or size < BLOCK:
            raise _wrong("no image")
        beside = None if parent is None else os.open(parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            table = _table(said, size, 0 if beside is None else os.fstat(beside).st_size)
            with ThreadPoolExecutor(1) as copying:
                copied = copying.submit(_copy, own, beside, table)
                digest = _digest(own, beside, size, table)
                copied.result()
        finally:
            if beside is not None:
                os.close(beside)
        os.fchown(own, os.geteuid(), os.getegid())
    finally:
        os.close(own)
    try:
        return Sum(digest=f"sha256:{digest}", size_bytes=size, superblock=read_superblock(built)), table
    except ImageDamagedError as error:
        raise _wrong(str(error)) from error


def learn(sums: UnitSums, image: Path, parent: Path | None, table: Table) -> None:
    """Keep what is known of an image's units: of those that its parent has without reading them. Blocks."""
    rows = list(hashed(image, table.units))
    if parent is not None and table.moves:
        known = sums.known(parent)
        for to, start, count in table.moves:
            shift = (to - start) * BLOCK
            rows += [_moved(row, shift) for row in known.within(start * BLOCK, (start + count) * BLOCK)]
    sums.keep(image, rows)


def _moved(row: Row, shift: int) -> Row:
    offset, length, digest = row
    return offset + shift, length, digest


def _opened(path: Path, flags: int) -> int:
    """Open what a worker left: a file, and the only name of it. JobError."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _wrong("no file") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise _wrong("no file")
    return descriptor


def _table(said: Path, size: int, parent_size: int) -> Table:
    with os.fdopen(_opened(said, os.O_RDONLY), "rb") as file:
        data = file.read(tables.MOST_BYTES + 1)
    if len(data) > tables.MOST_BYTES:
        raise _wrong("no image: too much is said of it")
    try:
        return tables.parse(data, size, parent_size)
    except ValueError as error:
        raise _wrong(f"no image: {error}") from error


def _copy(own: int, beside: int | None, table: Table) -> None:
    """Copy what the parent has, and put the file on the disk while others still hash."""
    if beside is not None:
        for to, start, count in table.moves:
            _copy_range(beside, start * BLOCK, own, to * BLOCK, count * BLOCK)
    os.fsync(own)


def _copy_range(source: int, start: int, target: int, to: int, left: int) -> None:
    while left:
        try:
            count = os.copy_file_range(source, target, min(left, _COPIED), start, to)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            count = os.pwrite(target, os.pread(source, min(left, _PIECE), start), to)
        if not count:
            raise _wrong("no image: its parent is cut off")
        start, to, left = start + count, to + count, left - count


def _digest(own: int, beside: int | None, size: int, table: Table) -> str:
    """Hash the image as it will be."""
    digest = hashlib.sha256()
    view = memoryview(bytearray(_PIECE))
    for descriptor, start, length in _stretches(own, beside, size, table):
        at, end = start, start + length
        while at < end:
            count = os.preadv(descriptor, [view[: end - at]], at)
            if not count:
                raise _wrong("no image: it is cut off")
            digest.update(view[:count])
            at += count
    return digest.hexdigest()


def _stretches(own: int, beside: int | None, size: int, table: Table) -> Iterator[tuple[int, int, int]]:
    at = 0
    if beside is not None:
        for to, start, count in table.moves:
            yield own, at, to * BLOCK - at
            yield beside, start * BLOCK, count * BLOCK
            at = (to + count) * BLOCK
    yield own, at, size - at


def _wrong(what: str) -> JobError:
    return JobError(ImageReason.CORRUPT, f"What was put together is {what}.")
