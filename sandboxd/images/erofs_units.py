"""Reads what lies where in an EROFS file that this node has, whoever wrote it: only its inodes, never its data.

The file is ours, but it may be damaged: every number is looked at before it is used.
"""

import mmap
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.images.base import ImageDamagedError
from sandboxd.images.erofs import SUPERBLOCK_OFFSET, read_superblock

_BLOCK: Final = 4096
_SLOT: Final = 32
_EXTENDED: Final = struct.Struct("<HHHHQIIIIQII16x")
_COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
_DIRENT: Final = struct.Struct("<QHBB")
_PLAIN, _INLINE = 0, 2
_MOST_FILES: Final = 4_000_000
_UNIT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode, as it lies in the file."""

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    layout: int
    block: int
    mtime_ns: int
    links: int
    tail: int
    """Where an inline end of its data lies."""


class ErofsReader:
    """An image, mapped."""

    def __init__(self, path: Path) -> None:
        """Map the file. ImageDamagedError."""
        read_superblock(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        except ValueError as error:
            raise ImageDamagedError("image file is empty") from error
        finally:
            os.close(descriptor)
        self.size = len(self._map)
        head = self._map[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + 128]
        (self.root,) = struct.unpack_from("<H", head, 14)
        self._build = struct.unpack_from("<QI", head, 24)
        (meta_block,) = struct.unpack_from("<I", head, 40)
        self._meta = meta_block * _BLOCK

    def close(self) -> None:
        self._map.close()

    def inode(self, nid: int) -> Inode:
        """Read an inode. ImageDamagedError."""
        at = self._meta + nid * _SLOT
        try:
            (kind,) = struct.unpack_from("<H", self._map, at)
            if kind & 1:
                _, xattrs, mode, _, size, block, _, uid, gid, seconds, rest, links = _EXTENDED.unpack_from(
                    self._map, at
                )
                end = at + _EXTENDED.size
            else:
                _, xattrs, mode, links, size, _, block, _, uid, gid, _ = _COMPACT.unpack_from(self._map, at)
                seconds, rest = self._build
                end = at + _COMPACT.size
        except struct.error as error:
            raise ImageDamagedError("image file has an inode beyond its end") from error
        if xattrs:
            raise ImageDamagedError("image file has extended attributes")
        layout = (kind >> 1) & 7
        if layout not in {_PLAIN, _INLINE}:
            raise ImageDamagedError(f"image file has data in a layout that gVisor lacks: {layout}")
        return Inode(nid, mode, uid, gid, size, layout, block, seconds * 10**9 + rest, links, end)

    def data(self, inode: Inode) -> bytes:
        """Read all of a directory or symbolic link. ImageDamagedError."""
        whole = inode.size // _BLOCK * _BLOCK if inode.layout == _INLINE else inode.size
        start = inode.block * _BLOCK
        data = self._map[start : start + whole] if whole else b""
        if inode.layout == _INLINE:
            data += self._map[inode.tail : inode.tail + inode.size - whole]
        if len(data) != inode.size:
            raise ImageDamagedError("image file has data beyond its end")
        return data

    def read(self, start: int, length: int) -> bytes:
        """Read what lies there."""
        return self._map[start : start + length]

    def entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Go through a directory's names and their inodes, without its own two. ImageDamagedError."""
        data = self.data(inode)
        for at in range(0, len(data), _BLOCK):
            block = data[at : at + _BLOCK]
            if len(block) < _DIRENT.size:
                raise ImageDamagedError("image file has a damaged directory")
            first = _DIRENT.unpack_from(block)[1]
            if first % _DIRENT.size or not _DIRENT.size <= first <= len(block):
                raise ImageDamagedError("image file has a damaged directory")
            rows = list(_DIRENT.iter_unpack(block[:first]))
            ends = [row[1] for row in rows[1:]] + [len(block)]
            for (nid, start, _, _), end in zip(rows, ends, strict=True):
                if not first <= start <= end <= len(block):
                    raise ImageDamagedError("image file has a damaged directory")
                name = block[start:end].rstrip(b"\0")
                if name not in {b".", b".."}:
                    yield name, nid

    def walk(self) -> Iterator[Inode]:
        """Go through every inode once. ImageDamagedError."""
        pending = [self.root]
        seen = {self.root}
        while pending:
            inode = self.inode(pending.pop())
            yield inode
            if stat.S_ISDIR(inode.mode):
                for _, nid in self.entries(inode):
                    if nid not in seen:
                        seen.add(nid)
                        pending.append(nid)
                if len(seen) > _MOST_FILES:
                    raise ImageDamagedError("image file has too many files")


def units_of(path: Path) -> Iterator[tuple[int, int]]:
    """Go through the units of an image's files, by where they lie: offset and length. ImageDamagedError."""
    reader = ErofsReader(path)
    try:
        sizes: dict[int, int] = {}
        for inode in reader.walk():
            if stat.S_ISREG(inode.mode) and inode.layout == _PLAIN and inode.size:
                sizes[inode.block] = max(inode.size, sizes.get(inode.block, 0))
        total = reader.size
    finally:
        reader.close()
    starts = array("Q", sorted(sizes))
    at = 0
    for block in starts:
        start, size = block * _BLOCK, sizes[block]
        if start < at or start + size > total:
            raise ImageDamagedError("image file has data beyond its end, or over other data")
        for offset in range(0, size, _UNIT_BYTES):
            yield start + offset, min(_UNIT_BYTES, size - offset)
        at = start + size + -size % _BLOCK


def meta_bytes_of(path: Path) -> int:
    """Return how much of the start of an image has no content of files: all of it, if there is none."""
    first = next(units_of(path), None)
    return path.stat().st_size if first is None else first[0]
