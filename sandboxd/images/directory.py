"""A directory of this machine read into a tree, by descriptors that follow no link."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxd.images.content import UNIT_BYTES, Contents
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.stack import Dropped
from sandboxd.images.tar_stream import shown
from sandboxd.images.tree import Tally

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DROPPED: Final = {
    stat.S_IFBLK: "devices",
    stat.S_IFCHR: "devices",
    stat.S_IFIFO: "pipes",
    stat.S_IFSOCK: "sockets",
}


def read_directory(root: Path, tree: FileTree, contents: Contents, tally: Tally, dropped: Dropped) -> None:
    """Fill an empty tree. ImageBuildError for what no image may hold, and for another file system inside."""
    _Reading(tree, contents, tally, dropped, root.stat().st_dev).run(os.fsencode(root))


class _Reading:
    def __init__(self, tree: FileTree, contents: Contents, tally: Tally, dropped: Dropped, device: int) -> None:
        self._tree = tree
        self._contents = contents
        self._tally = tally
        self._dropped = dropped
        self._device = device
        self._linked: dict[int, int] = {}

    def run(self, root: bytes) -> None:
        tally = self._tally
        tally.entry(b"", 0)
        pending = [(root, b"", 0, ROOT)]
        while pending:
            place, prefix, depth, node = pending.pop()
            descriptor = os.open(place, _OPEN | os.O_DIRECTORY)
            try:
                self._describe(node, prefix, os.fstat(descriptor))
                self._note_xattrs(descriptor, prefix)
                for name in map(os.fsencode, os.listdir(descriptor)):  # noqa: PTH208 - of a descriptor
                    path = prefix + name
                    tally.entry(path, depth + 1)
                    below = self._entry(descriptor, node, name, path)
                    if below is not None:
                        pending.append((place + b"/" + name, path + b"/", depth + 1, below))
            finally:
                os.close(descriptor)

    def _entry(self, directory: int, parent: int, name: bytes, path: bytes) -> int | None:
        """Read one entry; return its node when it is a directory."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind in _DROPPED:
            self._dropped.add(_DROPPED[kind], path)
            return None
        if status.st_dev != self._device:
            raise ImageBuildError(f"{shown(path)} lies on another file system: something is mounted in the directory")
        if kind == stat.S_IFDIR:
            return self._tree.directory(parent, name)
        if (known := self._linked.get(status.st_ino)) is not None:
            self._tree.link(parent, name, known)
            return None
        if kind == stat.S_IFLNK:
            node = self._tree.symlink(parent, name, os.readlink(name, dir_fd=directory))
            self._describe(node, path, status)
        else:
            node = self._file(directory, parent, name, path)
        if status.st_nlink > 1:
            self._linked[status.st_ino] = node
        return None

    def _file(self, directory: int, parent: int, name: bytes, path: bytes) -> int:
        descriptor = os.open(name, _OPEN | os.O_NONBLOCK, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageBuildError(f"{shown(path)} changes while it is read")
            self._tally.data(status.st_size)
            if status.st_size < UNIT_BYTES:
                content = self._contents.sink.put(_all(descriptor, status.st_size, path))
            else:
                content = self._contents.add(_pieces(descriptor, status.st_size, path))
            node = self._tree.file(parent, name, content)
            self._describe(node, path, status)
            self._note_xattrs(descriptor, path)
            return node
        finally:
            os.close(descriptor)

    def _describe(self, node: int, path: bytes, status: os.stat_result) -> None:
        try:
            self._tree.describe(node, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        except ImageBuildError as error:
            raise ImageBuildError(f"{shown(path)}: {error}") from error

    def _note_xattrs(self, descriptor: int, path: bytes) -> None:
        try:
            names = os.listxattr(descriptor)
        except OSError:
            return
        if names:
            self._dropped.note_xattrs(path, [os.fsencode(name) for name in names])


def _all(descriptor: int, size: int, path: bytes) -> bytes:
    data = os.read(descriptor, size + 1)
    if len(data) != size:
        raise ImageBuildError(f"{shown(path)} changes while it is read")
    return data


def _pieces(descriptor: int, size: int, path: bytes) -> Iterator[bytes | int]:
    """Read a file stretch by stretch, over its holes."""
    at = 0
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            data = size
        if data > at:
            yield min(data, size) - at
            at = data
            continue
        end = min(os.lseek(descriptor, at, os.SEEK_HOLE), size)
        while at < end:
            piece = os.pread(descriptor, min(UNIT_BYTES, end - at), at)
            if not piece:
                raise ImageBuildError(f"{shown(path)} changes while it is read")
            yield piece
            at += len(piece)
