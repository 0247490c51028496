"""Files of a directory or of a tar, read by name where they lie: nothing is unpacked, no link leads out of a tar."""

import gzip
import os
import posixpath
import stat
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, cast

from sandboxd.images.failures import ImageSourceError, corrupt, too_large, unsafe
from sandboxd.images.partial import no_room

_PIECE: Final = 1024 * 1024
_MEMBERS: Final = 65_536
_NAME_BYTES: Final = 4096
_HOPS: Final = 4
_HEADER_LIMIT: Final = 1024 * 1024
_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_GZIP: Final = b"\x1f\x8b"


class _Member(tarfile.TarInfo):
    """A member whose extended header is bounded: the library reads it into memory whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _HEADER_LIMIT:
            raise too_large(f"the archive has a header of {self.size} bytes")
        return super()._proc_member(tar)  # pyright: ignore - the library's one hook before it reads a header


class Files(Protocol):
    """Files by name. All methods block."""

    def size(self, name: str) -> int | None:
        """Return how many bytes a file has; None when there is no such file."""
        ...

    def pieces(self, name: str) -> Iterator[bytes]:
        """Read a file that is there, piece by piece."""
        ...

    def close(self) -> None: ...


class DirectoryFiles:
    """The files of a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        try:
            status = (self._root / name).lstat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def pieces(self, name: str) -> Iterator[bytes]:
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise corrupt(f"{name} cannot be read: {error.strerror}") from error
        try:
            while piece := os.read(descriptor, _PIECE):
                yield piece
        finally:
            os.close(descriptor)

    def close(self) -> None:
        pass


class TarFiles:
    """The files of a tar, by the place of their bytes in it."""

    def __init__(self, path: Path) -> None:
        """Read the headers. ImageSourceError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            with (
                os.fdopen(os.dup(self._descriptor), "rb") as file,
                tarfile.open(fileobj=file, mode="r:", tarinfo=_Member, errorlevel=2) as archive,
            ):
                self._read(archive)
        except (tarfile.TarError, EOFError, UnicodeError, OSError) as error:
            self.close()
            raise corrupt(f"{path.name} is no whole tar archive: {error}") from error
        except BaseException:
            self.close()
            raise

    def size(self, name: str) -> int | None:
        place = self._place(name)
        return None if place is None else place[1]

    def pieces(self, name: str) -> Iterator[bytes]:
        place = self._place(name)
        if place is None:
            raise corrupt(f"{name} is not in the archive")
        offset, left = place
        while left:
            piece = os.pread(self._descriptor, min(left, _PIECE), offset)
            if not piece:
                raise corrupt("the archive is cut off")
            offset, left = offset + len(piece), left - len(piece)
            yield piece

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, archive: tarfile.TarFile) -> None:
        total = os.fstat(self._descriptor).st_size
        seen = 0
        while (member := archive.next()) is not None:
            cast("Any", archive).members.clear()  # the library would remember every one of them
            seen += 1
            name = posixpath.normpath(member.name).lstrip("/")
            if seen > _MEMBERS or len(name) > _NAME_BYTES:
                raise too_large(f"the archive has more than {_MEMBERS} members, or one with an endless name")
            if name in self._places or name in self._links:
                raise corrupt(f"{name[:200]} is twice in the archive")
            if member.issym():
                self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                self._links[name] = posixpath.normpath(member.linkname)
            elif member.isreg() and not member.issparse():
                if member.offset_data + member.size > total:
                    raise corrupt("the archive is cut off")
                self._places[name] = member.offset_data, member.size
            elif not member.isdir():
                raise unsafe(f"{name[:200]} in the archive is no plain file")

    def _place(self, name: str) -> tuple[int, int] | None:
        """Find a file; older archives link a layer that comes twice to its first place."""
        name = posixpath.normpath(name)
        for _ in range(_HOPS):
            if name in self._places:
                return self._places[name]
            name = self._links.get(name, "")
        return None


def has_member(path: Path, names: Collection[str]) -> bool:
    """Whether a tar, compressed or not, has one of these at its top; what is no tar has none."""
    with (
        suppress(tarfile.TarError, OSError, EOFError, zlib.error, ImageSourceError),
        tarfile.open(path, mode="r|*" if is_gzip(path) else "r:", tarinfo=_Member) as archive,
    ):
        for _ in range(_MEMBERS):
            if (member := archive.next()) is None:
                break
            cast("Any", archive).members.clear()
            if member.isreg() and posixpath.normpath(member.name) in names:
                return True
    return False


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def inflate(source: Path, target: Path, limit: int) -> None:
    """Decompress a whole archive beside our work, so that its members have places. ImageSourceError."""
    total = 0
    try:
        with gzip.open(source) as reader, target.open("xb") as writer:
            while piece := reader.read(_PIECE):
                total += len(piece)
                if total > limit:
                    raise too_large(f"the archive has more than {limit} bytes")
                try:
                    writer.write(piece)
                except OSError as error:
                    raise no_room(error) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise corrupt(f"{source.name} is damaged: {error}") from error
