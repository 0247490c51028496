"""Unpacking a tar that nobody vouches for: every step is taken by descriptor, from inside the target, over no link."""

import os
import stat
import tarfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, cast

from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.tree import ImportLimits, Tally

_CHUNK: Final = 1024 * 1024
_HEADER_LIMIT: Final = 1024 * 1024
_LARGEST_ID: Final = 2**32 - 2
_LARGEST_TIME: Final = 2**40
_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {tarfile.CHRTYPE: "character device", tarfile.BLKTYPE: "block device", tarfile.FIFOTYPE: "named pipe"}


class Member(tarfile.TarInfo):
    """A member whose extended header is bounded: the library reads it into memory whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _HEADER_LIMIT:
            raise ImageBuildError(f"tar has a header of {self.size} bytes")
        return super()._proc_member(tar)  # pyright: ignore - the library's one hook before it reads a header


def unpack(source: Path, target: Path, limits: ImportLimits) -> int:
    """Unpack a tar (plain, gzip, bzip2, xz) into an empty directory; return the newest modification time.

    Owners, modes, times, symbolic and hard links are kept. ImageBuildError for devices, pipes, names that lead out of
    the root or through a link, and for more than the limits allow.
    """
    tally = Tally(limits)
    root = os.open(target, DIRECTORY)
    try:
        with tarfile.open(source, mode="r|*", tarinfo=Member, errorlevel=2) as archive:
            Unpacking(root, tally).run(archive)
    except tarfile.ReadError as error:
        raise ImageBuildError(f"{source.name} is no tar archive (plain, gzip, bzip2 or xz): {error}") from error
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ImageBuildError(f"{source.name} is damaged: {error}") from error
    finally:
        os.close(root)
    return tally.newest_mtime


class Unpacking:
    """One archive on its way into one directory."""

    def __init__(self, root: int, tally: Tally) -> None:
        self._root = root
        self._tally = tally
        self._directories: dict[tuple[str, ...], tarfile.TarInfo | None] = {(): None}

    def run(self, archive: tarfile.TarFile) -> None:
        while (member := archive.next()) is not None:
            cast("Any", archive).members.clear()  # the library would remember every one of them
            self.take(archive, member)
        self.finish_directories()

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one member."""
        parts = parts_of(member.name)
        self._tally.entry("/".join(parts), _time(member))
        if member.isdir():
            self._directory(parts, member)
        elif not parts:
            raise ImageBuildError("the root of the tar is no directory")
        else:
            self._file(archive, parts, member)

    def forget(self, parts: tuple[str, ...]) -> None:
        """Say that a directory, with all below it, is gone."""
        for path in [path for path in self._directories if path[: len(parts)] == parts]:
            del self._directories[path]

    def _file(self, archive: tarfile.TarFile, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        with self._parent(parts) as parent:
            name = parts[-1]
            self._make_room(parent, parts)
            if member.issym():
                if not member.linkname or "\0" in member.linkname:
                    raise ImageBuildError(f"{member.name} is a symbolic link to nothing")
                os.symlink(member.linkname, name, dir_fd=parent)
                self._own(parent, name, member)
            elif member.islnk():
                self._hard_link(parent, name, member)
            elif member.isreg():
                self._regular(archive, parent, name, member)
            else:
                kind = _KINDS.get(member.type, f"member of type {member.type!r}")
                raise ImageBuildError(f"{member.name} is a {kind}: images hold files, directories and links only")

    def _regular(self, archive: tarfile.TarFile, parent: int, name: str, member: tarfile.TarInfo) -> None:
        descriptor = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        with os.fdopen(descriptor, "wb") as file:
            data = archive.extractfile(member)
            if data is not None:
                with data:
                    self._copy(data, file)
        self._own(parent, name, member)
        os.chmod(name, stat.S_IMODE(member.mode), dir_fd=parent)
        _set_time(parent, name, member)

    def _copy(self, data: IO[bytes], file: IO[bytes]) -> None:
        while chunk := data.read(_CHUNK):
            self._tally.data(len(chunk))
            file.write(chunk)

    def _hard_link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        target = parts_of(member.linkname)
        if not target:
            raise ImageBuildError(f"{member.name} is a hard link to nothing")
        try:
            with self._parent(target, make=False) as directory:
                os.link(target[-1], name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise ImageBuildError(f"{member.name} is a hard link to {member.linkname}: {error.strerror}") from error

    def _directory(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        if parts:
            with self._parent(parts) as parent:
                name = parts[-1]
                if not _is_directory(parent, name):
                    self._make_room(parent, parts)
                    os.mkdir(name, 0o700, dir_fd=parent)
        self._directories[parts] = member

    def finish_directories(self) -> None:
        """Give directories their owners, modes and times last, deepest first: what is put into one changes them."""
        for parts in sorted(self._directories, key=len, reverse=True):
            member = self._directories[parts]
            with self.open(parts) as descriptor:
                if member is None:
                    os.fchmod(descriptor, 0o755)
                    os.utime(descriptor, (0, 0))
                else:
                    os.fchown(descriptor, _id(member.uid, member), _id(member.gid, member))
                    os.fchmod(descriptor, stat.S_IMODE(member.mode))
                    os.utime(descriptor, (_time(member), _time(member)))

    def _make_room(self, parent: int, parts: tuple[str, ...]) -> None:
        """A name that comes again replaces what it was before, but no directory that has something in it."""
        name = parts[-1]
        try:
            if _is_directory(parent, name):
                os.rmdir(name, dir_fd=parent)
                self._directories.pop(parts, None)
            else:
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ImageBuildError(f"{'/'.join(parts)} comes twice in the tar: {error.strerror}") from error

    @contextmanager
    def _parent(self, parts: tuple[str, ...], *, make: bool = True) -> Generator[int]:
        if make:
            self._make_parents(parts[:-1])
        with self.open(parts[:-1]) as descriptor:
            yield descriptor

    def _make_parents(self, parts: tuple[str, ...]) -> None:
        if parts in self._directories:
            return
        self._make_parents(parts[:-1])
        with self.open(parts[:-1]) as parent, suppress(FileExistsError):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
            self._directories[parts] = None

    @contextmanager
    def open(self, parts: tuple[str, ...]) -> Generator[int]:
        descriptor = os.dup(self._root)
        try:
            for part in parts:
                try:
                    following = os.open(part, DIRECTORY, dir_fd=descriptor)
                except OSError as error:
                    raise ImageBuildError(f"{'/'.join(parts)} leads through what is no directory: {part}") from error
                os.close(descriptor)
                descriptor = following
            yield descriptor
        finally:
            os.close(descriptor)

    def _own(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        os.chown(name, _id(member.uid, member), _id(member.gid, member), dir_fd=parent, follow_symlinks=False)
        if member.issym():
            _set_time(parent, name, member)


def parts_of(name: str) -> tuple[str, ...]:
    """Take a name apart; the root itself has no parts."""
    if "\0" in name:
        raise ImageBuildError(f"{name!r} is no name")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise ImageBuildError(f"{name} leads out of the root")
    return parts


def _is_directory(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _id(number: int, member: tarfile.TarInfo) -> int:
    if not 0 <= number <= _LARGEST_ID:
        raise ImageBuildError(f"{member.name} has no possible owner: {number}")
    return number


def _time(member: tarfile.TarInfo) -> int:
    return min(max(int(member.mtime), 0), _LARGEST_TIME)


def _set_time(parent: int, name: str, member: tarfile.TarInfo) -> None:
    os.utime(name, (_time(member), _time(member)), dir_fd=parent, follow_symlinks=False)
