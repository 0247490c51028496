"""Writes an EROFS image from a tree: its bytes depend on nothing but the tree and the order of its data.

What lies where is decided first (`erofs_layout`). The metadata is put together in the mapped file itself, then the data
follows in one pass, hashed as it goes; zeros become holes. The file system is named after its content before that is
written: after the metadata and the digests of the data's units, and `apart`, by which equal trees can be told apart.
"""

import hashlib
import mmap
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.images.content import Contents
from sandboxd.images.crc32c import crc32c
from sandboxd.images.erofs import SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, SourceTooLargeError, Sum
from sandboxd.images.erofs_layout import (
    BLOCK,
    DIRENT,
    MOST_BLOCKS,
    SLOT,
    Layout,
    dirent_blocks,
    full_blocks,
    is_inline,
    lay_out,
    listed,
)
from sandboxd.images.filetree import ROOT, FileTree

_MAGIC: Final = 0xE0F5E1E2
_BLOCK_BITS: Final = 12
_CHECKSUM: Final = 1
_TIMES_ARE_OF_CONTENT: Final = 2
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sI")
_INODE: Final = struct.Struct("<HHHHQIIIIQII")
_DIRENT: Final = struct.Struct("<QHBB")
_EXTENDED: Final = 1
_INLINE: Final = 2 << 1
_REGULAR, _DIRECTORY, _SYMLINK = 1, 2, 7
_GATHERED: Final = 1 << 20
_SECOND: Final = 1_000_000_000


@dataclass(slots=True)
class Extents:
    """Which content lies where: what a store needs to serve the image without the file."""

    meta_bytes: int
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    units: "array[int]" = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Go through (offset in the image, unit), by offset."""
        return zip(self.offsets, self.units, strict=True)


def write_image(
    tree: FileTree,
    contents: Contents,
    target: Path,
    *,
    first: Sequence[int] = (),
    apart: bytes = b"",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Sum, Extents]:
    """Write the image; `tick` is called now and then and may raise. SourceTooLargeError."""
    layout = _laid_out(tree, contents, first)
    descriptor = _create(target, layout)
    try:
        with mmap.mmap(descriptor, layout.meta_blocks * BLOCK) as meta:
            superblock = _write_metadata(meta, tree, contents, layout, apart, tick)
            digest = hashlib.sha256(meta)
            extents = Extents(meta_bytes=len(meta))
        _Data(descriptor, layout.meta_blocks * BLOCK, digest.update, extents).write(contents, layout, tick)
    finally:
        os.close(descriptor)
    summed = Sum(
        digest=f"sha256:{digest.hexdigest()}",
        size_bytes=layout.total_blocks * BLOCK,
        superblock=hashlib.sha256(superblock).hexdigest(),
    )
    return summed, extents


@dataclass(slots=True)
class Moves:
    """What a file of an image still lacks, for it lies in another one; and what it has."""

    rows: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Where it belongs, where it lies in the other one, how much of it: in blocks."""
    units: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Offset and length of each unit that the file has."""

    def add(self, to: int, start: int, count: int) -> None:
        if self.rows:
            last_to, last_start, last_count = self.rows[-1]
            if (last_to + last_count, last_start + last_count) == (to, start):
                self.rows[-1] = last_to, last_start, last_count + count
                return
        self.rows.append((to, start, count))


def write_without(
    tree: FileTree,
    contents: Contents,
    target: Path,
    lies: Callable[[int], int | None],
    *,
    apart: bytes = b"",
    tick: Callable[[], None] = lambda: None,
) -> Moves:
    """Write the same image as `write_image`, without the units that lie in another one, and without a digest.

    `lies` says where a unit lies there, with zeros up to its block's end. SourceTooLargeError.
    """
    layout = _laid_out(tree, contents, ())
    descriptor = _create(target, layout)
    moves = Moves()
    try:
        with mmap.mmap(descriptor, layout.meta_blocks * BLOCK) as meta:
            _write_metadata(meta, tree, contents, layout, apart, tick)
            extents = Extents(meta_bytes=len(meta))
        data = _Data(descriptor, layout.meta_blocks * BLOCK, lambda _: None, extents)
        data.write(contents, layout, tick, lies, moves)
    finally:
        os.close(descriptor)
    return moves


def _laid_out(tree: FileTree, contents: Contents, first: Sequence[int]) -> Layout:
    layout = lay_out(tree, contents, first)
    if layout.total_blocks > MOST_BLOCKS:
        raise SourceTooLargeError("the image has more blocks than a file system can have")
    return layout


def _create(target: Path, layout: Layout) -> int:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, layout.total_blocks * BLOCK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_metadata(
    meta: mmap.mmap, tree: FileTree, contents: Contents, layout: Layout, apart: bytes, tick: Callable[[], None]
) -> bytes:
    """Write all that lies before the data; return the superblock."""
    _Metadata(tree, contents, layout, meta).write(tick)
    return _write_superblock(meta, layout, _identity(meta, contents, layout, apart))


class _Metadata:
    """Inodes and directories, into the mapped file."""

    def __init__(self, tree: FileTree, contents: Contents, layout: Layout, meta: mmap.mmap) -> None:
        self._tree = tree
        self._contents = contents
        self._layout = layout
        self._meta = meta

    def write(self, tick: Callable[[], None]) -> None:
        for number, node in enumerate(self._layout.walk, 1):
            if not number % 1024:
                tick()
            mode = self._tree.modes[node]
            if stat.S_ISDIR(mode):
                self._directory(number, node)
            elif stat.S_ISLNK(mode):
                self._symlink(number, node)
            else:
                content = self._tree.content(node)
                size = self._contents.size(content)
                self._inode(number, node, size, self._layout.block(content))

    def _directory(self, number: int, node: int) -> None:
        tree, layout = self._tree, self._layout
        children = tree.children(node)
        own = {b".": node, b"..": layout.parents[node]}
        size, block = layout.directories[node]
        subdirectories = sum(tree.is_directory(child) for child in children.values())
        tail = self._inode(number, node, size, block, 2 + subdirectories, inline=is_inline(size))
        last = full_blocks(size)
        for index, names in enumerate(dirent_blocks(listed(children))):
            nodes = [own[name] if name in own else children[name] for name in names]
            data = self._dirents(names, nodes)
            at = (block + index) * BLOCK if index < last else tail
            self._meta[at : at + len(data)] = data

    def _dirents(self, names: Sequence[bytes], nodes: Sequence[int]) -> bytes:
        offset = DIRENT * len(names)
        rows: list[bytes] = []
        nids, modes = self._layout.nids, self._tree.modes
        for name, node in zip(names, nodes, strict=True):
            kind = modes[node] & 0o170000
            word = _REGULAR if kind == stat.S_IFREG else _DIRECTORY if kind == stat.S_IFDIR else _SYMLINK
            rows.append(_DIRENT.pack(nids[node], offset, word, 0))
            offset += len(name)
        return b"".join((*rows, *names))

    def _symlink(self, number: int, node: int) -> None:
        target = self._tree.target(node)
        block = self._layout.links.get(node)
        tail = self._inode(number, node, len(target), block or 0, inline=block is None)
        at = tail if block is None else block * BLOCK
        self._meta[at : at + len(target)] = target

    def _inode(
        self, number: int, node: int, size: int, block: int, links: int | None = None, *, inline: bool = False
    ) -> int:
        """Write one inode; return where its tail goes."""
        tree = self._tree
        seconds, rest = divmod(tree.mtimes[node], _SECOND)
        at = self._layout.nids[node] * SLOT
        _INODE.pack_into(
            self._meta,
            at,
            _EXTENDED | (_INLINE if inline else 0),
            0,
            tree.modes[node],
            0,
            size,
            block,
            number,
            tree.uids[node],
            tree.gids[node],
            seconds,
            rest,
            tree.link_counts[node] if links is None else links,
        )
        return at + 64


def _identity(meta: mmap.mmap, contents: Contents, layout: Layout, apart: bytes) -> bytes:
    """Name the file system after all that is in it, so that no other can stand in for it at a restore."""
    digest = hashlib.sha256(meta)
    for content in layout.contents:
        for unit in contents.units(content):
            digest.update(contents.sink.units.digest(unit))
    digest.update(apart)
    return digest.digest()[:16]


def _write_superblock(meta: mmap.mmap, layout: Layout, uuid: bytes) -> bytes:
    seconds, rest = divmod(layout.newest, _SECOND)
    fields = (
        _CHECKSUM | _TIMES_ARE_OF_CONTENT,
        _BLOCK_BITS,
        0,
        layout.nids[ROOT],
        len(layout.walk),
        seconds,
        rest,
        layout.total_blocks,
        0,
        0,
        uuid,
        bytes(16),
        0,
    )
    _SUPERBLOCK.pack_into(meta, SUPERBLOCK_OFFSET, _MAGIC, 0, *fields)
    checksum = crc32c(meta[SUPERBLOCK_OFFSET:BLOCK])
    _SUPERBLOCK.pack_into(meta, SUPERBLOCK_OFFSET, _MAGIC, checksum, *fields)
    return meta[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES]


class _Data:
    """The data behind the metadata, in one pass."""

    def __init__(
        self, descriptor: int, start: int, digest: "Callable[[bytes | memoryview], None]", extents: Extents
    ) -> None:
        self._descriptor = descriptor
        self._written = start
        self._digest = digest
        self._extents = extents
        self._gathered: list[bytes] = []
        self._waiting = 0

    def write(
        self,
        contents: Contents,
        layout: Layout,
        tick: Callable[[], None],
        lies: Callable[[int], int | None] = lambda _: None,
        moves: Moves | None = None,
    ) -> None:
        for content in layout.contents:
            for unit in contents.units(content):
                if moves is not None and self._leave_out(contents.sink.units.lengths[unit], lies(unit), moves):
                    continue
                self._extents.offsets.append(self._written + self._waiting)
                self._extents.units.append(unit)
                data = contents.sink.get(unit)
                length = contents.sink.units.lengths[unit]
                if data is None:
                    self._hole(length + -length % BLOCK)
                else:
                    self._gather(data)
                    if length % BLOCK:
                        self._gather(bytes(-length % BLOCK))
            tick()
        self._flush()

    def _leave_out(self, length: int, place: int | None, moves: Moves) -> bool:
        """Leave room for what lies elsewhere."""
        if place is None:
            moves.units.append((self._written + self._waiting, length))
            return False
        self._flush()
        blocks = -(-length // BLOCK)
        moves.add(self._written // BLOCK, place // BLOCK, blocks)
        self._written += blocks * BLOCK
        return True

    def _gather(self, data: bytes) -> None:
        self._gathered.append(data)
        self._waiting += len(data)
        if self._waiting >= _GATHERED:
            self._flush()

    def _hole(self, count: int) -> None:
        self._flush()
        self._digest(bytes(count))
        self._written += count

    def _flush(self) -> None:
        if not self._gathered:
            return
        view = memoryview(b"".join(self._gathered))
        self._gathered.clear()
        self._waiting = 0
        self._digest(view)
        while view:
            count = os.pwrite(self._descriptor, view, self._written)
            self._written += count
            view = view[count:]
