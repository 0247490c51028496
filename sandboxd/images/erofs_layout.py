"""Where everything of an image lies: pure arithmetic, from a tree and the order of its data.

An image is a superblock, the inodes (64 bytes each, in the order of a walk, the root first), the full blocks of
directories, then data: each content once, at a block of its own. Symbolic links and the tails of directories lie behind
their inodes where they fit into the same block; files never do, for the sentry cannot map them there. Inodes number
their 32-byte slots from the start of the file, so the first has number 128.
"""

import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sandboxd.images.content import Contents
from sandboxd.images.filetree import ROOT, FileTree

BLOCK: Final = 4096
INODE: Final = 64
DIRENT: Final = 12
SLOT: Final = 32
MOST_BLOCKS: Final = 2**32 - 1
_LARGEST_TAIL: Final = 2048
"""A longer tail would leave too much of a block empty."""


@dataclass(slots=True)
class Layout:
    """Numbers by node, and the totals."""

    walk: "array[int]" = field(default_factory=lambda: array("I"))
    nids: "array[int]" = field(default_factory=lambda: array("I"))
    parents: dict[int, int] = field(default_factory=dict[int, int])
    directories: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Size, and the first of its full blocks."""
    units: "array[int]" = field(default_factory=lambda: array("I"))
    rows: dict[int, int] = field(default_factory=dict[int, int])
    """The first block of each content that is a unit, and of each that is a row of them; 0: it has none yet."""
    links: dict[int, int] = field(default_factory=dict[int, int])
    """The block of each symbolic link that is too long to lie inline."""
    contents: "array[int]" = field(default_factory=lambda: array("q"))
    """In the order of the data."""
    meta_blocks: int = 0
    total_blocks: int = 0
    newest: int = 0

    def block(self, content: int) -> int:
        """Return where a content begins; 0 for one without bytes."""
        return self.units[content] if content >= 0 else self.rows.get(content, 0)


def lay_out(tree: FileTree, contents: Contents, first: Sequence[int] = ()) -> Layout:
    """Give every inode, directory and content its place; `first` are the nodes whose data comes first, in order."""
    layout = Layout(nids=array("I", bytes(4 * len(tree))))
    room = _Room()
    layout.parents[ROOT] = ROOT
    for node in tree.walk():
        layout.walk.append(node)
        tail = 0
        if tree.is_directory(node):
            size, tail = _measure(tree, layout, node)
            layout.directories[node] = size, 0
        elif tree.is_symlink(node):
            tail = len(tree.target(node))
        layout.nids[node] = room.take(INODE + (tail if tail <= _LARGEST_TAIL else 0)) // SLOT
        layout.newest = max(layout.newest, tree.mtimes[node])
    block = -(-room.end // BLOCK)
    for node, (size, _) in layout.directories.items():
        layout.directories[node] = size, block
        block += full_blocks(size)
    for node in layout.walk:
        if tree.is_symlink(node) and len(tree.target(node)) > _LARGEST_TAIL:
            layout.links[node] = block
            block += 1
    layout.meta_blocks = block
    _place_data(layout, contents, (tree.content(node) for node in _data_order(tree, layout, first)))
    return layout


def full_blocks(size: int) -> int:
    """Count the blocks of a directory that do not lie behind its inode."""
    return size // BLOCK + (size % BLOCK > _LARGEST_TAIL)


def is_inline(size: int) -> bool:
    """Whether the end of a directory, or a symbolic link, lies behind its inode."""
    return 0 < size % BLOCK <= _LARGEST_TAIL


def dirent_blocks(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Spread names, in order, over blocks: none goes across a border."""
    block: list[bytes] = []
    used = 0
    for name in names:
        need = DIRENT + len(name)
        if used + need > BLOCK:
            yield block
            block, used = [], 0
        block.append(name)
        used += need
    yield block


def listed(names: Iterable[bytes]) -> list[bytes]:
    """Return a directory's names as they are listed: with its own two, in order byte by byte."""
    return sorted([*names, b".", b".."])


class _Room:
    """Hands out places for inodes: none with its tail goes across a block's border; gaps are filled with small ones."""

    def __init__(self) -> None:
        self.end = BLOCK
        self._gap = self._gap_end = 0

    def take(self, count: int) -> int:
        if count == INODE and self._gap < self._gap_end:
            place = self._gap
            self._gap += INODE
            return place
        place = self.end
        if place % BLOCK + count > BLOCK:
            following = place + -place % BLOCK
            if following - place > self._gap_end - self._gap:
                self._gap, self._gap_end = place, following
            place = following
        self.end = place + count + -count % INODE
        return place


def _measure(tree: FileTree, layout: Layout, node: int) -> tuple[int, int]:
    """Return the size of a directory, and how much of it is behind its last full block."""
    children = tree.sort(node)
    for child in children.values():
        if tree.is_directory(child):
            layout.parents[child] = node
    used = full = 0
    for name in listed(children):
        need = DIRENT + len(name)
        if used + need > BLOCK:
            full += BLOCK
            used = 0
        used += need
    return full + used, used % BLOCK


def _data_order(tree: FileTree, layout: Layout, first: Sequence[int]) -> Iterator[int]:
    yield from first
    for node in layout.walk:
        if stat.S_ISREG(tree.modes[node]):
            yield node


def _place_data(layout: Layout, contents: Contents, order: Iterable[int]) -> None:
    block = layout.meta_blocks
    layout.units = array("I", bytes(4 * len(contents.sink.units)))
    for content in order:
        size = contents.size(content)
        if not size or layout.block(content):
            continue
        if content >= 0:
            layout.units[content] = min(block, MOST_BLOCKS)
        else:
            layout.rows[content] = block
        layout.contents.append(content)
        block += -(-size // BLOCK)
    layout.total_blocks = block
