"""A file tree in memory: what an image will hold, before it is one. Content is elsewhere, by reference.

Everything about a node is in columns: with its name, about 160 bytes a file. Nodes that go stay in the columns, so that
the limit on entries bounds the memory whatever a source does. Nothing here follows a link on any disk.
"""

import stat
from array import array
from collections.abc import Iterator
from typing import Final

from sandboxd.images.content import EMPTY
from sandboxd.images.erofs import ImageBuildError, SourceTooLargeError
from sandboxd.images.tree import ImportLimits

ROOT: Final = 0
LONGEST_NAME: Final = 255
LONGEST_TARGET: Final = 4095
LARGEST_ID: Final = 2**32 - 2
_LARGEST_TIME: Final = 2**63 - 1
_IMPLIED_MODE: Final = 0o755


class FileTree:
    """Nodes are numbers; the root is 0."""

    def __init__(self, limits: ImportLimits) -> None:
        self._limits = limits
        self.modes = array("H")
        """With the bits that say what a node is."""
        self.uids = array("I")
        self.gids = array("I")
        self.mtimes = array("q")
        """In nanoseconds since 1970."""
        self.link_counts = array("I")
        """Names of a file; 0: it is gone."""
        self._refs = array("q")
        self._children: list[dict[bytes, int] | None] = []
        self.targets: list[bytes] = []
        self._text = 0
        self.directory(None, b"")

    def __len__(self) -> int:
        """Count the nodes that were ever made."""
        return len(self.modes)

    def directory(self, parent: int | None, name: bytes) -> int:
        """Make a directory that nobody described yet."""
        node = self._node(stat.S_IFDIR | _IMPLIED_MODE, len(self._children))
        self._children.append(None)
        if parent is not None:
            self._enter(parent, name, node)
        return node

    def file(self, parent: int, name: bytes, content: int) -> int:
        node = self._node(stat.S_IFREG, content)
        self._enter(parent, name, node)
        return node

    def symlink(self, parent: int, name: bytes, target: bytes) -> int:
        if not target or len(target) > LONGEST_TARGET or b"\0" in target:
            raise ImageBuildError("a symbolic link leads nowhere: its target is empty, too long, or no name")
        self._remember(target)
        node = self._node(stat.S_IFLNK, len(self.targets))
        self.targets.append(target)
        self._enter(parent, name, node)
        return node

    def link(self, parent: int, name: bytes, node: int) -> None:
        """Give what is no directory one more name."""
        self._enter(parent, name, node)
        self.link_counts[node] += 1

    def describe(self, node: int, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        """Set what a node is apart from its content."""
        if not (0 <= uid <= LARGEST_ID and 0 <= gid <= LARGEST_ID):
            raise ImageBuildError(f"a file has no possible owner: {uid}:{gid}")
        self.modes[node] = stat.S_IFMT(self.modes[node]) | stat.S_IMODE(mode)
        self.uids[node] = uid
        self.gids[node] = gid
        self.mtimes[node] = min(max(mtime_ns, 0), _LARGEST_TIME)

    def is_directory(self, node: int) -> bool:
        return stat.S_ISDIR(self.modes[node])

    def is_symlink(self, node: int) -> bool:
        return stat.S_ISLNK(self.modes[node])

    def target(self, node: int) -> bytes:
        return self.targets[self._refs[node]]

    def content(self, node: int) -> int:
        return self._refs[node] if stat.S_ISREG(self.modes[node]) else EMPTY

    def child(self, parent: int, name: bytes) -> int | None:
        children = self._children[self._refs[parent]]
        return None if children is None else children.get(name)

    def children(self, node: int) -> dict[bytes, int]:
        """Return the names of a directory and their nodes. Not to be changed."""
        return self._children[self._refs[node]] or {}

    def sort(self, node: int) -> dict[bytes, int]:
        """Bring a directory's names in order, byte by byte, and return them."""
        index = self._refs[node]
        ordered = dict(sorted((self._children[index] or {}).items()))
        self._children[index] = ordered or None
        return ordered

    def remove(self, parent: int, name: bytes) -> None:
        """Take a name away, with everything below it."""
        children = self._children[self._refs[parent]]
        node = None if children is None else children.pop(name, None)
        if node is None:
            return
        pending = [node]
        while pending:
            gone = pending.pop()
            self.link_counts[gone] -= 1
            if self.is_directory(gone):
                pending += self.children(gone).values()
                self._children[self._refs[gone]] = None

    def walk(self) -> Iterator[int]:
        """Go through every node once, directory by directory, names in order."""
        seen = bytearray(len(self) // 8 + 1)
        yield ROOT
        pending = [ROOT]
        while pending:
            below: list[int] = []
            for node in self.sort(pending.pop()).values():
                if self.is_directory(node):
                    below.append(node)
                elif self.link_counts[node] > 1:
                    if seen[node >> 3] & 1 << (node & 7):
                        continue
                    seen[node >> 3] |= 1 << (node & 7)
                yield node
            pending += reversed(below)

    def _enter(self, parent: int, name: bytes, node: int) -> None:
        if not 0 < len(name) <= LONGEST_NAME or name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise ImageBuildError(f"{name[:LONGEST_NAME]!r} is no name a file can have")
        self._remember(name)
        index = self._refs[parent]
        children = self._children[index]
        if children is None:
            self._children[index] = {name: node}
        else:
            children[name] = node

    def _remember(self, text: bytes) -> None:
        self._text += len(text)
        if self._text > self._limits.text_bytes:
            raise SourceTooLargeError(f"names and links have more than {self._limits.text_bytes} bytes")

    def _node(self, mode: int, ref: int) -> int:
        node = len(self.modes)
        if node > self._limits.entries:
            raise SourceTooLargeError(f"more than {self._limits.entries} files")
        self.modes.append(mode)
        self.uids.append(0)
        self.gids.append(0)
        self.mtimes.append(0)
        self.link_counts.append(1)
        self._refs.append(ref)
        return node
