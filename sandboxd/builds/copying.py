"""COPY: files of one tree put into another. No disk is touched; links are followed in the tree they are in."""

import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.builds.globs import Ignore, matches, pattern_parts
from sandboxd.images.content import Contents
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.tree import Tally

_LINKS: Final = 40
_STEPS: Final = 1_000_000
"""Names gone through because links say so: some bytes can ask for thousands."""
_LARGEST_ID: Final = 2**32 - 2
_ACCOUNTS_BYTES: Final = 1024 * 1024


class NothingToCopyError(ImageBuildError):
    """A source that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What is asked for."""

    sources: tuple[str, ...]
    to: str
    mode: int | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    path: bytes
    node: int


class Copying:
    """Files of `source`, on their way. Both trees' contents are `contents`."""

    def __init__(self, source: FileTree, contents: Contents, tally: Tally) -> None:
        self._source = source
        self._contents = contents
        self._tally = tally

    def digest(self, copy: Copy) -> str:
        """Return a digest of all that a copy takes; times do not count. NothingToCopyError."""
        digest = hashlib.sha256()
        for found in self._find(copy.sources):
            digest.update(b"\0source" + len(found.path).to_bytes(4) + found.path)
            for name, node in self._below(found):
                self._add(digest, name, node)
        return digest.hexdigest()

    def run(self, copy: Copy, tree: FileTree) -> None:
        """Put them into `tree`. NothingToCopyError, ImageBuildError."""
        found = self._find(copy.sources)
        into = Destination(tree)
        owner = into.owner(copy.owner, self._contents) if copy.owner is not None else (0, 0)
        put = _Put(self._source, tree, self._tally, owner, copy.mode)
        directory = copy.to.endswith("/") or len(found) > 1 or len(copy.sources) > 1
        for each in found:
            if self._source.is_directory(each.node):
                put.merge(each.node, into.directory(copy.to.encode()))
                continue
            name = each.path.rpartition(b"/")[2]
            there = into.find(copy.to.encode())
            if directory or (there is not None and tree.is_directory(there)):
                put.one(each.node, into.directory(copy.to.encode()), name)
            else:
                parent, _, last = copy.to.encode().rstrip(b"/").rpartition(b"/")
                put.one(each.node, into.directory(parent), last)

    def _find(self, sources: Sequence[str]) -> list[_Found]:
        found: list[_Found] = []
        for source in sources:
            some = sorted(self._matching(pattern_parts(source)), key=lambda each: each.path)
            if not some:
                raise NothingToCopyError(f"there is nothing to copy at {source[:200]!r}")
            found += [self._followed(each) for each in some]
        return found

    def _followed(self, found: _Found) -> _Found:
        """A source that is a link stands for what it leads to; links below a directory stay links."""
        if not self._source.is_symlink(found.node):
            return found
        node = Destination(self._source).find(found.path)
        if node is None:
            raise NothingToCopyError(f"the link {found.path[:200].decode(errors='replace')} leads to nothing")
        return _Found(found.path, node)

    def _matching(self, pattern: Sequence[str]) -> Iterator[_Found]:
        """Go down the tree as long as the pattern may still fit."""
        if not pattern:
            yield _Found(b"", ROOT)
            return
        walker = Destination(self._source)
        pending: list[tuple[tuple[str, ...], bytes, int]] = [((), b"", ROOT)]
        while pending:
            names, path, node = pending.pop()
            if not self._source.is_directory(node):
                continue
            for name, child in self._source.children(node).items():
                self._tally.go_on()
                below = (*names, name.decode("utf-8", "surrogateescape"))
                whole = path + b"/" + name if path else name
                if matches(pattern, below):
                    yield _Found(whole, child)
                elif "**" in pattern:
                    pending.append((below, whole, child))
                elif len(below) < len(pattern) and matches(pattern[: len(below)], below):
                    led = walker.find(whole)  # as often as the pattern has parts
                    pending += [] if led is None else [(below, whole, led)]

    def _below(self, found: _Found) -> Iterator[tuple[bytes, int]]:
        pending = [(b"", found.node)]
        while pending:
            name, node = pending.pop()
            yield name, node
            if self._source.is_directory(node):
                self._tally.go_on()
                below = self._source.sort(node)
                pending += reversed([(name + b"/" + child, under) for child, under in below.items()])

    def _add(self, digest: "hashlib._Hash", name: bytes, node: int) -> None:
        source = self._source
        row = f"\0{len(name)}:{source.modes[node]}:{source.uids[node]}:{source.gids[node]}:".encode()
        digest.update(row + name)
        if source.is_symlink(node):
            digest.update(source.target(node))
        elif stat.S_ISREG(source.modes[node]):
            for unit in self._contents.units(source.content(node)):
                digest.update(self._contents.sink.units.digest(unit))


class _Put:
    """Nodes of one tree made again in another."""

    def __init__(
        self, source: FileTree, tree: FileTree, tally: Tally, owner: tuple[int, int], mode: int | None
    ) -> None:
        self._source = source
        self._tree = tree
        self._tally = tally
        self._owner = owner
        self._mode = mode

    def merge(self, directory: int, into: int) -> None:
        """Put what a directory has into another one."""
        pending = [(directory, into)]
        while pending:
            at, to = pending.pop()
            for name, node in self._source.children(at).items():
                self._tally.entry(name, 0)
                if not self._source.is_directory(node):
                    self.one(node, to, name)
                    continue
                there = self._tree.child(to, name)
                if there is None or not self._tree.is_directory(there):
                    self._tree.remove(to, name)
                    there = self._tree.directory(to, name)
                self._describe(there, node)
                pending.append((node, there))

    def one(self, node: int, parent: int, name: bytes) -> None:
        """Put a file or a link where whatever had its name gives way; a directory does not."""
        source, tree = self._source, self._tree
        there = tree.child(parent, name)
        if there is not None and tree.is_directory(there):
            raise ImageBuildError(f"there is a directory where {name[:100]!r} is to go")
        tree.remove(parent, name)
        if source.is_symlink(node):
            made = tree.symlink(parent, name, source.target(node))
        else:
            made = tree.file(parent, name, source.content(node))
        self._describe(made, node)

    def _describe(self, made: int, node: int) -> None:
        mode = self._source.modes[node] if self._mode is None else self._mode
        if self._source.is_symlink(node):
            mode = 0o777
        self._tree.describe(made, mode, *self._owner, self._source.mtimes[node])


class Destination:
    """Paths in a tree, where links lead nowhere else than in the tree."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self._steps = 0

    def find(self, path: bytes) -> int | None:
        """Return what a path names, all links followed."""
        return self._walk(path, None)

    def directory(self, path: bytes, owner: tuple[int, int] = (0, 0)) -> int:
        """Return a directory, made with all that lead there. ImageBuildError."""
        node = self._walk(path, owner)
        if node is None or not self._tree.is_directory(node):
            raise ImageBuildError(f"{path[:200].decode(errors='replace')} is no directory of the image")
        return node

    def owner(self, text: str, contents: Contents) -> tuple[int, int]:
        """Return the numbers of `user[:group]`, names looked up in the image. ImageBuildError."""
        user, colon, group = text.partition(":")
        uid = int(user) if user.isdecimal() else None
        if uid is None:
            row = self._account(b"/etc/passwd", user, contents)
            uid, primary = int(row[2]), int(row[3])
        else:
            primary = uid
        if not colon:
            return _checked(uid, primary)
        gid = int(group) if group.isdecimal() else int(self._account(b"/etc/group", group, contents)[2])
        return _checked(uid, gid)

    def _account(self, path: bytes, name: str, contents: Contents) -> list[str]:
        node = self.find(path)
        data = b""
        if node is not None and stat.S_ISREG(self._tree.modes[node]):
            content = self._tree.content(node)
            if contents.size(content) <= _ACCOUNTS_BYTES:
                data = b"".join(contents.sink.get(unit) or b"" for unit in contents.units(content))
        for line in data.decode(errors="replace").splitlines():
            row = line.split(":")
            if (
                row[0] == name
                and len(row) >= 4
                and row[2].isdecimal()
                and (row[3].isdecimal() or path != b"/etc/passwd")
            ):
                return row
        raise ImageBuildError(f"the image's {path.decode()} has no {name[:64]!r}")

    def _walk(self, path: bytes, make: tuple[int, int] | None) -> int | None:
        tree = self._tree
        pending = [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]
        way, links = [ROOT], 0
        while pending:
            part = pending.pop()
            if part == b"..":
                way = way[:-1] or [ROOT]
                continue
            if not tree.is_directory(way[-1]):
                return None
            node = tree.child(way[-1], part)
            if node is not None and tree.is_symlink(node):
                links += 1
                words = [word for word in reversed(tree.target(node).split(b"/")) if word not in {b"", b"."}]
                self._steps += len(words)
                if links > _LINKS or self._steps > _STEPS:
                    raise ImageBuildError(f"{path[:200]!r} leads through links without end")
                way = [ROOT] if tree.target(node).startswith(b"/") else way
                pending += words
                continue
            if node is None:
                if make is None:
                    return None
                node = tree.directory(way[-1], part)
                tree.describe(node, 0o755, *make, 0)
            way.append(node)
        return way[-1]


def _checked(uid: int, gid: int) -> tuple[int, int]:
    if max(uid, gid) > _LARGEST_ID:
        raise ImageBuildError(f"{uid}:{gid} is no possible owner")
    return uid, gid


def leave_out(tree: FileTree, ignore: Ignore) -> None:
    """Take from a tree what a `.dockerignore` says; a directory stays while something in it does."""

    def empty(node: int, prefix: bytes) -> bool:
        for name, child in list(tree.children(node).items()):
            path = prefix + name
            inside = tree.is_directory(child) and bool(tree.children(child))
            gone = ignore.ignores(path)
            if (inside and empty(child, path + b"/") and gone) or (not inside and gone):
                tree.remove(node, name)
        return not tree.children(node)

    empty(ROOT, b"")
