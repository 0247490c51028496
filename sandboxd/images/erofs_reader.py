"""Reads an EROFS image into a tree: what we wrote, and what `mkfs.erofs` writes without compression and chunks.

Contents are not copied: each is a unit that is read from the image again when it is needed. The image is one of ours;
it is read as if it were not: whatever leads out of the file, or round in circles, is ImageBuildError.
"""

import mmap
import stat
import struct
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from sandboxd.images.content import UNIT_BYTES, Contents, Spool, Units
from sandboxd.images.erofs import SUPERBLOCK_OFFSET, ImageBuildError
from sandboxd.images.filetree import LONGEST_TARGET, ROOT, FileTree
from sandboxd.images.tree import Tally
from sandboxd.images.unit_sums import KnownUnits

_MAGIC: Final = 0xE0F5E1E2
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sI")
_COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
_EXTENDED: Final = struct.Struct("<HHHHQIIIIQII")
_DIRENT: Final = struct.Struct("<QHBB")
_SLOT: Final = 32
_PLAIN, _INLINE = 0, 2
_XATTR_HEADER: Final = 12
_SECOND: Final = 1_000_000_000
_FROM_IMAGES: Final = -2
"""A place from here on down is one in an image; above it, the spool's."""


class ImageContents:
    """Units of a spool, and units that lie in images which stay open meanwhile."""

    def __init__(self, spool: Spool) -> None:
        self.units: Units = spool.units
        self._spool = spool
        self._images: list[tuple[int, mmap.mmap]] = []
        """Each with the number that its first byte has among the places."""
        self._end = 0
        self._next: int | None = None

    def add_image(self, data: mmap.mmap) -> int:
        """Make an image known; return the number of its first byte."""
        first = self._end
        self._images.append((first, data))
        self._end += len(data)
        return first

    def know(self, digest: bytes, length: int, place: int, *, zeros: bool) -> int:
        """Know a unit that lies in an image, by its digest."""
        return self._spool.know(digest, length, _FROM_IMAGES - place, zeros=zeros)

    def place(self, unit: int) -> int | None:
        """Return where a unit lies that an image brought."""
        place = self.units.places[unit]
        return None if place > _FROM_IMAGES else _FROM_IMAGES - place

    def at(self, place: int) -> None:
        """Say where the next unit lies already."""
        self._next = place

    def put(self, data: bytes) -> int:
        place, self._next = self._next, None
        return self._spool.put(data) if place is None else self._spool.note(data, _FROM_IMAGES - place)

    def get(self, unit: int) -> bytes | None:
        place = self.units.places[unit]
        if place > _FROM_IMAGES:
            return self._spool.get(unit)
        place = _FROM_IMAGES - place
        first, data = next(row for row in reversed(self._images) if row[0] <= place)
        return data[place - first : place - first + self.units.lengths[unit]]


class ErofsImage:
    """One image, mapped. ImageBuildError from everything."""

    def __init__(self, descriptor: int) -> None:
        self.data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        fields = self._unpack(_SUPERBLOCK, SUPERBLOCK_OFFSET)
        magic, _, _, bits, _, root = fields[:6]
        if magic != _MAGIC or fields[14] or not 12 <= bits <= 16:
            raise ImageBuildError("the image is none that can be built on")
        self._block = 1 << bits
        self._made_ns = fields[7] * _SECOND + fields[8]
        self._inodes = fields[10] << bits
        self._root = root
        self._units: KnownUnits | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.data.close()

    def read(
        self,
        tree: FileTree,
        contents: Contents,
        sink: ImageContents,
        tally: Tally,
        units: KnownUnits | None = None,
    ) -> None:
        """Fill an empty tree, whose contents are `contents` over `sink`. `units`: what need not be hashed again."""
        self._units = units
        first = sink.add_image(self.data)
        known: dict[int, int] = {}
        parts = self._inode(self._root)
        self._describe(tree, ROOT, parts)
        pending = [(ROOT, parts, 0)]
        while pending:
            parent, inode, depth = pending.pop()
            for name, nid in self._entries(inode):
                tally.entry(name, depth + 1)
                if nid in known:
                    if tree.is_directory(known[nid]):
                        raise ImageBuildError("a directory of the image has two places")
                    tree.link(parent, name, known[nid])
                    continue
                made = self._inode(nid)
                known[nid] = node = self._node(tree, parent, name, made, contents, sink, first, tally)
                self._describe(tree, node, made)
                if stat.S_ISDIR(made.mode):
                    pending.append((node, made, depth + 1))

    def _node(
        self,
        tree: FileTree,
        parent: int,
        name: bytes,
        inode: "_Inode",
        contents: Contents,
        sink: ImageContents,
        first: int,
        tally: Tally,
    ) -> int:
        if stat.S_ISDIR(inode.mode):
            return tree.directory(parent, name)
        if stat.S_ISLNK(inode.mode):
            if inode.size > LONGEST_TARGET:
                raise ImageBuildError("a link of the image is too long")
            return tree.symlink(parent, name, b"".join(self._pieces(inode)))
        if not stat.S_ISREG(inode.mode):
            raise ImageBuildError("the image holds something that is no file, directory or link")
        tally.data(inode.size)
        if inode.size > len(self.data):
            raise ImageBuildError("a file of the image is larger than the image")
        if inode.tail:
            return tree.file(parent, name, contents.add(self._pieces(inode)))
        known = self._known(inode, sink, first)
        content = contents.add(self._placed(inode, sink, first)) if known is None else contents.row(known)
        return tree.file(parent, name, content)

    def _known(self, inode: "_Inode", sink: ImageContents, first: int) -> "array[int] | None":
        """Return a file's units by what is known of them; None where something is not."""
        if self._units is None or not inode.size or inode.start + inode.size > len(self.data):
            return None
        made = array("I")
        for at in range(0, inode.size, UNIT_BYTES):
            begin, length = inode.start + at, min(UNIT_BYTES, inode.size - at)
            digest = self._units.find(begin, length)
            if digest is None:
                return None
            zeros = not self.data[begin] and not self.data[begin : begin + length].lstrip(b"\0")
            made.append(sink.know(digest, length, first + begin, zeros=zeros))
        return made

    def _placed(self, inode: "_Inode", sink: ImageContents, first: int) -> Iterator[bytes]:
        """Read a file by its units, each with its place."""
        for at in range(0, inode.size, UNIT_BYTES):
            begin = inode.start + at
            piece = self._slice(begin, min(UNIT_BYTES, inode.size - at))
            sink.at(first + begin)
            yield piece

    def _pieces(self, inode: "_Inode") -> Iterator[bytes]:
        whole = inode.size - inode.tail
        if whole:
            yield self._slice(inode.start, whole)
        if inode.tail:
            yield self._slice(inode.tail_at, inode.tail)

    def _entries(self, inode: "_Inode") -> Iterator[tuple[bytes, int]]:
        data = b"".join(self._pieces(inode))
        for at in range(0, len(data), self._block):
            block = data[at : at + self._block]
            (_, name_at, _, _) = self._unpack(_DIRENT, 0, block)
            count = name_at // _DIRENT.size
            if not 0 < count <= len(block) // _DIRENT.size:
                raise ImageBuildError("a directory of the image is damaged")
            rows = [self._unpack(_DIRENT, number * _DIRENT.size, block) for number in range(count)]
            ends = [row[1] for row in rows[1:]] + [len(block)]
            for (nid, begin, _, _), end in zip(rows, ends, strict=True):
                name = block[begin:end].split(b"\0", 1)[0]
                if name not in {b".", b".."}:
                    yield name, nid

    def _inode(self, nid: int) -> "_Inode":
        at = self._inodes + nid * _SLOT
        (form,) = struct.unpack_from("<H", self._slice(at, 2))
        layout = form >> 1 & 7
        if layout not in (_PLAIN, _INLINE):
            raise ImageBuildError("the image is compressed, or in chunks: nothing can be built on it")
        if form & 1:
            row = self._unpack(_EXTENDED, at)
            xattrs, mode, size, start, uid, gid = row[1], row[2], row[4], row[5], row[7], row[8]
            mtime_ns, length = row[9] * _SECOND + row[10], 64
        else:
            row = self._unpack(_COMPACT, at)
            xattrs, mode, size, start, uid, gid = row[1], row[2], row[4], row[6], row[8], row[9]
            mtime_ns, length = self._made_ns, 32
        tail = 0
        if layout == _INLINE and size:
            tail = size - (-(-size // self._block) - 1) * self._block
        behind = at + length + (_XATTR_HEADER + (xattrs - 1) * 4 if xattrs else 0)
        return _Inode(mode, uid, gid, mtime_ns, size, start * self._block, tail, behind)

    @staticmethod
    def _describe(tree: FileTree, node: int, inode: "_Inode") -> None:
        tree.describe(node, inode.mode, inode.uid, inode.gid, inode.mtime_ns)

    def _slice(self, begin: int, length: int) -> bytes:
        if begin < 0 or begin + length > len(self.data):
            raise ImageBuildError("the image is cut off, or damaged")
        return self.data[begin : begin + length]

    def _unpack(self, row: struct.Struct, at: int, data: bytes | None = None) -> tuple[int, ...]:
        try:
            return row.unpack_from(self.data if data is None else data, at)
        except struct.error as error:
            raise ImageBuildError("the image is cut off, or damaged") from error


class _Inode:
    """What an inode says."""

    __slots__ = ("gid", "mode", "mtime_ns", "size", "start", "tail", "tail_at", "uid")

    def __init__(
        self, mode: int, uid: int, gid: int, mtime_ns: int, size: int, start: int, tail: int, tail_at: int
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = size
        self.start = start
        self.tail = tail
        self.tail_at = tail_at
