"""The difference between a sandbox and its image: an overlay's upper layer as runsc writes it, laid over a tree.

A name that is gone is a character device 0:0, or a hard link to one: runsc keeps one such inode under many names. A
directory with the overlay's mark hides what the image has in it. Names come in no order; the tree does not show that.
All of it is made by whoever had the sandbox: hostile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.builds.globs import Globs
from sandboxd.images.content import UNIT_BYTES, Contents
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.stack import Dropped, parts_of
from sandboxd.images.tar_entry import Entry, Kind
from sandboxd.images.tar_stream import TarStream, shown
from sandboxd.images.tree import Tally

Path = tuple[bytes, ...]

OURS: Final = frozenset({(b".sandlot",), (b"etc", b"hosts"), (b"etc", b"hostname"), (b"etc", b"resolv.conf")})
"""What is put into every sandbox, and is of no image."""
_MOUNTS: Final = frozenset({b"proc", b"sys", b"dev"})
_GONE: Final = (0, 0)
_SPECIAL: Final = {Kind.CHARACTER_DEVICE: "devices", Kind.BLOCK_DEVICE: "devices", Kind.PIPE: "pipes"}


@dataclass(slots=True)
class _Change:
    entry: Entry
    content: int
    node: int | None = None

    @property
    def hides(self) -> bool:
        return self.entry.kind is Kind.CHARACTER_DEVICE and self.entry.device == _GONE


class Upper:
    """Lays one upper layer over a tree. ImageBuildError for what no overlay can have written."""

    def __init__(self, tree: FileTree, contents: Contents, tally: Tally, dropped: Dropped) -> None:
        self._tree = tree
        self._contents = contents
        self._tally = tally
        self._dropped = dropped

    def apply(self, archive: TarStream, exclude: Sequence[str] = ()) -> None:
        """Read it all, then change the tree. `exclude`: globs of paths that are to stay as the image has them."""
        changes: dict[Path, _Change] = {}
        for entry in archive:
            path = tuple(parts_of(entry.name))
            self._tally.entry(entry.name, len(path))
            content = self._content(archive, entry) if entry.kind is Kind.FILE else 0
            changes[path] = _Change(entry, content)
        globs = Globs(exclude)
        skipped: set[Path] = set()
        for path in sorted(changes):
            inside = len(path) > 1 and (path[0] in _MOUNTS or path[:-1] in skipped)
            if path and (inside or path in OURS or globs.match(b"/".join(path))):
                skipped.add(path)
            else:
                self._change(path, changes[path], changes)

    def _content(self, archive: TarStream, entry: Entry) -> int:
        self._tally.data(entry.size)
        if entry.size <= UNIT_BYTES:
            return self._contents.sink.put(archive.whole(entry))
        return self._contents.add(archive.pieces(entry))

    def _change(self, path: Path, change: _Change, changes: dict[Path, _Change]) -> None:
        entry = change.entry
        if entry.kind is Kind.HARD_LINK:
            change = self._target(entry, changes)
        if not path:
            if entry.kind is not Kind.DIRECTORY:
                raise ImageBuildError("the root of the difference is no directory")
            self._describe(ROOT, entry)
            return
        parent = self._parent(path)
        if change.hides:
            self._tree.remove(parent, path[-1])
        elif change.entry.kind is Kind.DIRECTORY:
            self._directory(parent, path[-1], entry)
        else:
            self._leaf(parent, path[-1], change, entry.name)

    def _target(self, entry: Entry, changes: dict[Path, _Change]) -> _Change:
        target = changes.get(tuple(parts_of(entry.link)))
        if target is None or target.entry.kind in {Kind.HARD_LINK, Kind.DIRECTORY}:
            raise ImageBuildError(f"{shown(entry.name)} is a hard link to nothing: {shown(entry.link)}")
        return target

    def _parent(self, path: Path) -> int:
        node = ROOT
        for part in path[:-1]:
            below = self._tree.child(node, part)
            if below is None or not self._tree.is_directory(below):
                raise ImageBuildError(f"{shown(b'/'.join(path))} lies in what is no directory")
            node = below
        return node

    def _directory(self, parent: int, name: bytes, entry: Entry) -> None:
        tree = self._tree
        there = tree.child(parent, name)
        if there is None or not tree.is_directory(there):
            tree.remove(parent, name)
            there = tree.directory(parent, name)
        elif entry.opaque:
            for child in list(tree.children(there)):
                tree.remove(there, child)
        self._describe(there, entry)

    def _leaf(self, parent: int, name: bytes, change: _Change, path: bytes) -> None:
        tree, entry = self._tree, change.entry
        tree.remove(parent, name)
        if entry.kind in _SPECIAL:
            self._dropped.add(_SPECIAL[entry.kind], path)
            return
        if change.node is not None:
            tree.link(parent, name, change.node)
            return
        if entry.kind is Kind.SYMLINK:
            change.node = tree.symlink(parent, name, entry.link)
        else:
            change.node = tree.file(parent, name, change.content)
        self._describe(change.node, entry)

    def _describe(self, node: int, entry: Entry) -> None:
        if entry.xattrs:
            self._dropped.note_xattrs(entry.name, entry.xattrs)
        self._tree.describe(node, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
