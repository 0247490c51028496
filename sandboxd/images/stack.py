"""Archives laid over a tree, the lowest first: what an upper one has replaces what it names, and hides what it says.

A whiteout (`.wh.name`) hides what lower layers have; `.wh..wh..opq` hides everything they have in its directory.
Neither touches what the layer itself brings, wherever in it that stands. As everywhere, a layer writes through the
symbolic links that stand in the place of directories: they are followed in the tree, where there is no outside.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from sandboxd.images.content import UNIT_BYTES, Contents
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.tar_entry import Entry, Kind
from sandboxd.images.tar_stream import TarStream, shown
from sandboxd.images.tree import Tally

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_META: Final = b".wh..wh."
_LINKS: Final = 40
_STEPS: Final = 20_000_000
"""Names gone through because links say so, in all: a few bytes of archive can ask for thousands."""
_SPECIAL: Final = {
    # Root file systems bring a /dev of their own; what a sandbox has there is the runtime's.
    Kind.CHARACTER_DEVICE: "devices",
    Kind.BLOCK_DEVICE: "devices",
    Kind.PIPE: "pipes",
}
_NAMED: Final = 5


class Dropped(Mapping[str, int]):
    """How many entries were left out, or lost something, by what it was; with the first few names of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, what: str, name: bytes) -> None:
        self._counts[what] += 1
        names = self._names.setdefault(what, [])
        if len(names) < _NAMED:
            names.append(shown(name))

    def names(self, what: str) -> list[str]:
        """Return a few of them."""
        return list(self._names.get(what, ()))

    def __getitem__(self, what: str) -> int:
        if what not in self._counts:
            raise KeyError(what)
        return self._counts[what]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"Dropped({dict(self._counts)})"

    def note_xattrs(self, name: bytes, xattrs: list[bytes]) -> None:
        """Count what EROFS as the sentry reads it cannot hold."""
        if b"security.capability" in xattrs:
            self.add("file capabilities", name)
        if any(xattr != b"security.capability" for xattr in xattrs):
            self.add("extended attributes", name)


class Stack:
    """Layers so far. ImageBuildError for what no image may hold."""

    def __init__(self, tree: FileTree, contents: Contents, tally: Tally) -> None:
        self._tree = tree
        self._contents = contents
        self._tally = tally
        self.dropped = Dropped()
        self._layers = bytearray()
        """Whether a node was made or described by the layer at hand: one byte each, grown with the tree."""
        self._linked: set[tuple[int, bytes]] = set()
        """Names of this layer for files of lower ones."""
        self._emptied: set[int] = set()
        """Directories in which nothing of lower layers is left."""
        self._steps = 0
        self._way: tuple[bytes, int] | None = None

    def add(self, archive: TarStream, *, strict: bool = False) -> None:
        """Lay an archive over what is there. `strict`: it stands alone, and nothing in it is led astray."""
        self._layers = bytearray(len(self._tree))
        self._linked.clear()
        self._emptied.clear()
        self._way = None
        for entry in archive:
            parts = parts_of(entry.name)
            self._tally.entry(entry.name, len(parts))
            if strict:
                if not parts and entry.kind is not Kind.DIRECTORY:
                    raise ImageBuildError("the root of the tar is no directory")
            elif parts and parts[-1].startswith(_WHITEOUT):
                self._hide(parts, entry.name)
                continue
            elif _META in entry.name:
                continue  # the same in a directory
            if entry.xattrs:
                self.dropped.note_xattrs(entry.name, entry.xattrs)
            self._take(archive, parts, entry, strict=strict)

    def _take(self, archive: TarStream, parts: list[bytes], entry: Entry, *, strict: bool) -> None:
        tree = self._tree
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise ImageBuildError("the root of a layer is no directory")
            self._describe(ROOT, entry)
            return
        name = parts[-1]
        parent = self._directory(parts[:-1], entry.name, strict=strict)
        there = tree.child(parent, name)
        if entry.kind is Kind.DIRECTORY:
            if there is None or not tree.is_directory(there):
                self._clear(parent, name, there, entry, strict=strict)
                there = tree.directory(parent, name)
            self._describe(there, entry)
        elif entry.kind is Kind.HARD_LINK:
            self._link(parent, name, there, entry, strict=strict)
        else:
            self._clear(parent, name, there, entry, strict=strict)
            if entry.kind in _SPECIAL:
                self.dropped.add(_SPECIAL[entry.kind], entry.name)
            elif entry.kind is Kind.SYMLINK:
                self._describe(tree.symlink(parent, name, entry.link), entry)
            else:
                self._describe(tree.file(parent, name, self._content(archive, entry)), entry)

    def _content(self, archive: TarStream, entry: Entry) -> int:
        self._tally.data(entry.size)
        if entry.size <= UNIT_BYTES:
            return self._contents.sink.put(archive.whole(entry))
        return self._contents.add(archive.pieces(entry))

    def _link(self, parent: int, name: bytes, there: int | None, entry: Entry, *, strict: bool) -> None:
        target = parts_of(entry.link)
        node = self._find(target, strict=strict) if target else None
        if node is None or self._tree.is_directory(node):
            what = "nothing" if node is None else "a directory"
            raise ImageBuildError(f"{shown(entry.name)} is a hard link to {what}: {shown(entry.link)}")
        if node == there:
            return
        self._clear(parent, name, there, entry, strict=strict)
        self._tree.link(parent, name, node)
        if not self._is_fresh(node):
            self._linked.add((parent, name))

    def _describe(self, node: int, entry: Entry) -> None:
        self._tree.describe(node, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        self._touch(node)

    def _touch(self, node: int) -> None:
        if node >= len(self._layers):
            self._layers += bytes(max(node + 1 - len(self._layers), 1024))
        self._layers[node] = 1

    def _is_fresh(self, node: int) -> bool:
        return node < len(self._layers) and self._layers[node] == 1

    def _clear(self, parent: int, name: bytes, there: int | None, entry: Entry, *, strict: bool) -> None:
        """A name that comes again replaces what it was before."""
        if there is None:
            return
        if strict and self._tree.is_directory(there) and self._tree.children(there):
            raise ImageBuildError(
                f"{shown(entry.name)} comes twice in the tar, first as a directory with something in it"
            )
        self._tree.remove(parent, name)
        self._linked.discard((parent, name))
        self._way = None

    def _hide(self, parts: list[bytes], whole: bytes) -> None:
        name = parts[-1]
        parent = self._walk(parts[:-1], make=False, strict=False, whole=whole)
        if name == _OPAQUE:
            if parent is not None and self._tree.is_directory(parent):
                self._hide_below(parent)
            return
        if name.startswith(_META):
            return  # notes of the file system that some builders work on
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in {b"", b".", b".."}:
            raise ImageBuildError(f"a layer hides what has no name: {shown(whole)}")
        if parent is not None and self._tree.is_directory(parent):
            self._hide_name(parent, hidden)

    def _hide_name(self, parent: int, name: bytes) -> None:
        node = self._tree.child(parent, name)
        if node is None or (parent, name) in self._linked:
            return
        if not self._is_fresh(node):
            self._tree.remove(parent, name)
            self._way = None
        elif self._tree.is_directory(node):
            self._hide_below(node)

    def _hide_below(self, directory: int) -> None:
        """Take away what lower layers have in a directory and in those of its directories that this layer has too."""
        pending = [directory]
        while pending:
            at = pending.pop()
            if at in self._emptied:
                continue
            self._emptied.add(at)
            for name, node in list(self._tree.children(at).items()):
                if (at, name) in self._linked:
                    continue
                if not self._is_fresh(node):
                    self._tree.remove(at, name)
                elif self._tree.is_directory(node):
                    pending.append(node)
        self._way = None

    def _directory(self, parts: list[bytes], whole: bytes, *, strict: bool) -> int:
        """Find the directory an entry belongs into, or make it."""
        way = b"/".join(parts)
        if self._way is not None and self._way[0] == way:
            return self._way[1]
        node = self._walk(parts, make=True, strict=strict, whole=whole)
        if node is None or not self._tree.is_directory(node):
            raise ImageBuildError(f"{shown(whole)} leads through what is no directory")
        self._way = way, node
        return node

    def _find(self, parts: list[bytes], *, strict: bool) -> int | None:
        """Return what has that name; a link at the end is not followed."""
        if not parts:
            return ROOT
        parent = self._walk(parts[:-1], make=False, strict=strict, whole=b"/".join(parts))
        if parent is None or not self._tree.is_directory(parent):
            return None
        return self._tree.child(parent, parts[-1])

    def _walk(self, parts: list[bytes], *, make: bool, strict: bool, whole: bytes) -> int | None:
        """Go from the root, through links; None when something is missing and not to be made."""
        tree = self._tree
        pending = list(reversed(parts))
        way = [ROOT]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                way = way[:-1] or [ROOT]
                continue
            node = tree.child(way[-1], part)
            if node is not None and tree.is_symlink(node):
                if strict:
                    raise ImageBuildError(f"{shown(whole)} leads through a symbolic link: {shown(part)}")
                links += 1
                words = [word for word in reversed(tree.target(node).split(b"/")) if word not in {b"", b"."}]
                self._steps += len(words)
                if links > _LINKS or self._steps > _STEPS:
                    raise ImageBuildError(f"{shown(whole)} leads through links without end")
                if tree.target(node).startswith(b"/"):
                    way = [ROOT]
                pending += words
                continue
            if node is None or not tree.is_directory(node):
                if not make:
                    return None
                node = self._make(way[-1], part, node, whole, strict=strict)
            way.append(node)
            if make:
                self._touch(node)
        return way[-1]

    def _make(self, parent: int, name: bytes, there: int | None, whole: bytes, *, strict: bool) -> int:
        """Make a directory that no entry described; in the place of a file that a lower layer has there."""
        if there is not None:
            if strict or self._is_fresh(there) or (parent, name) in self._linked:
                raise ImageBuildError(f"{shown(whole)} leads through what is no directory: {shown(name)}")
            self._tree.remove(parent, name)
        return self._tree.directory(parent, name)


def parts_of(name: bytes) -> list[bytes]:
    """Take a name apart; the root itself has no parts. Absolute names begin at the root. ImageBuildError."""
    if b"\0" in name:
        raise ImageBuildError(f"{shown(name)} is no name")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise ImageBuildError(f"{shown(name)} leads out of the root")
    return parts
