"""Whole trees of this machine to and from tar, without trusting what a sandbox packed. Blocking, but for no network."""

import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Final

from sandlot.errors import UnsafeArchiveError

Progress = Callable[[int, int | None], object]
"""Called with the bytes done and, where that is known, all of them."""

_PIECE_BYTES: Final = 256 * 1024
_BLOCK: Final = 512
_MODE: Final = 0o777
"""Set-uid and its like are for the sandbox's users, who are nobody here."""


def pieces(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """Yield the rest of a file, or exactly `size` bytes of it: padded if it shrank, since a promise was sent before."""
    left = size
    while left is None or left > 0:
        data = file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
        if not data:
            break
        yield data
        left = None if left is None else left - len(data)
    while left:
        padding = min(left, _PIECE_BYTES)
        yield bytes(padding)
        left -= padding


def pack(root: Path, exclude: Sequence[str] = ()) -> Iterator[bytes]:
    """Yield a tar of what is below `root`, or of the one file it is. Devices, sockets and pipes are left out.

    `exclude` are patterns, matched against the path below `root` and against each name in it.
    """
    for path, name in entries(root, exclude):
        try:
            info = _tar_info(path, name)
            if info is None:
                continue
            if not info.isreg():
                yield info.tobuf(tarfile.PAX_FORMAT)
                continue
            with path.open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                yield info.tobuf(tarfile.PAX_FORMAT)
                yield from pieces(file, info.size)
            yield bytes(-info.size % _BLOCK)
        except FileNotFoundError:
            continue  # it went away while we looked
    yield bytes(2 * _BLOCK)


def packed_bytes(root: Path, exclude: Sequence[str] = ()) -> int:
    """Return about how long the tar will be."""
    total = 2 * _BLOCK
    for path, _ in entries(root, exclude):
        info = path.lstat()
        total += _BLOCK + ((info.st_size + _BLOCK - 1) // _BLOCK * _BLOCK if stat.S_ISREG(info.st_mode) else 0)
    return total


def entries(root: Path, exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield every path below `root` with its name in the archive, parents first, links not followed."""
    if not root.is_dir():
        yield root, root.name
        return
    pending = [root]
    while pending:
        directory = pending.pop()
        for path in sorted(directory.iterdir()):
            name = path.relative_to(root).as_posix()
            if any(fnmatch(name, one) or fnmatch(path.name, one) for one in exclude):
                continue
            yield path, name
            if path.is_dir() and not path.is_symlink():
                pending.append(path)


def _tar_info(path: Path, name: str) -> tarfile.TarInfo | None:
    found = path.lstat()
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(found.st_mode)
    info.mtime = int(found.st_mtime)
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif not stat.S_ISREG(found.st_mode):
        return None
    return info


class Unpacker:
    """Writes the entries of a tar below one directory, and nowhere else, whatever they say.

    Every step goes through a descriptor of the directory it is in, and follows no link, so that not even an entry
    of the same archive can lead another one out. Links are made last. Raises UnsafeArchiveError at the first entry
    that would leave; what was written before it stays.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._links: list[tuple[str, str]] = []
        self.files = 0

    def unpack(self, file: IO[bytes]) -> int:
        """Unpack all of it, and return the number of files."""
        self._root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                self._take(archive, member)
        for name, target in self._links:
            self._link(name, target)
        return self.files

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = parts_of(member.name)
        if member.isdir():
            os.close(self._directory(parts))
        elif member.issym():
            self._links.append((member.name, member.linkname))
        elif member.isreg() and not member.issparse() and parts:
            source = archive.extractfile(member)
            if source is not None:
                self._write(parts, source, member)
        else:
            raise UnsafeArchiveError(f"{member.name!r} is neither a file nor a directory nor a link")

    def _write(self, parts: list[str], source: IO[bytes], member: tarfile.TarInfo) -> None:
        directory = self._directory(parts[:-1])
        try:
            _make_way(directory, parts[-1])
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(parts[-1], flags, 0o600, dir_fd=directory), "wb") as target:
                for data in pieces(source):
                    target.write(data)
                os.fchmod(target.fileno(), member.mode & _MODE)
                os.utime(target.fileno(), (member.mtime, member.mtime))
        finally:
            os.close(directory)
        self.files += 1

    def _link(self, name: str, target: str) -> None:
        parts = parts_of(name)
        if not parts or leaves(parts, target):
            raise UnsafeArchiveError(f"the link {name!r} leads out to {target!r}")
        directory = self._directory(parts[:-1])
        try:
            _make_way(directory, parts[-1])
            os.symlink(target, parts[-1], dir_fd=directory)
        finally:
            os.close(directory)

    def _directory(self, parts: Sequence[str]) -> int:
        """Open a directory below the root, making what is missing."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        current = os.open(self._root, flags)
        try:
            for part in parts:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=current)
                os.close(current)
                current = deeper
        except OSError as error:
            os.close(current)
            raise UnsafeArchiveError(f"{'/'.join(parts)!r} is not a directory here: {error.strerror}") from error
        return current


def parts_of(name: str) -> list[str]:
    """Return the components of an entry's name. UnsafeArchiveError if they could lead out.

    >>> parts_of("./a//b/")
    ['a', 'b']
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    if path.is_absolute() or ".." in parts or "\0" in name:
        raise UnsafeArchiveError(f"{name!r} would be written outside the directory")
    return parts


def leaves(parts: Sequence[str], target: str) -> bool:
    """Tell whether a link at `parts` may point outside the tree. `..` behind a name counts: that may be a link.

    >>> leaves(["a", "b"], "../c"), leaves(["a", "b"], "../../c"), leaves(["a"], "/etc"), leaves(["a"], "b/../c")
    (False, True, True, True)
    """
    steps = PurePosixPath(target).parts
    ups = steps.count("..")
    return target.startswith("/") or "\0" in target or ups >= len(parts) or ".." in steps[ups:]


def _make_way(directory: int, name: str) -> None:
    """Remove a file or link of that name, so that nothing is written through it."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafeArchiveError(f"{name!r} is in the way: {error.strerror}") from error
