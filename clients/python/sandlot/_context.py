"""The files that a build takes along, packed into one tar: the same files give the same bytes."""

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sandlot._ignore import Ignore
from sandlot._trees import pieces
from sandlot.errors import ConfigurationError

_BLOCK: Final = 512
_IGNORE: Final = ".dockerignore"


@dataclass(frozen=True)
class Files:
    """A file or directory of this machine, and what it is called in the context; the empty name is its root."""

    name: str
    path: Path
    ignore: tuple[str, ...] = ()


def write(target: IO[bytes], files: Sequence[Files]) -> None:
    """Pack them. ConfigurationError for what is not there."""
    for each in files:
        if not each.path.exists():
            raise ConfigurationError(f"there is no {each.path}")
        for path, name in _entries(each):
            _write(target, path, name)
    target.write(bytes(2 * _BLOCK))


def _entries(files: Files) -> Iterator[tuple[Path, str]]:
    """Yield what is to be packed, names in order; directories that hold nothing of it are left out with it."""
    ignore = Ignore("\n".join([_rules(files), *files.ignore]))
    if not files.path.is_dir():
        yield files.path, files.name
        return
    pending = [(files.path, "")]
    while pending:
        directory, prefix = pending.pop()
        below: list[tuple[Path, str]] = []
        for entry in sorted(os.scandir(directory), key=lambda found: found.name):
            name = prefix + entry.name
            path = Path(entry.path)
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory:
                below.append((path, name + "/"))
            if not ignore.ignores(os.fsencode(name)):
                yield path, "/".join(part for part in (files.name, name) if part)
        pending += reversed(below)


def _rules(files: Files) -> str:
    place = files.path / _IGNORE
    return place.read_text(errors="surrogateescape") if files.path.is_dir() and place.is_file() else ""


def _write(target: IO[bytes], path: Path, name: str) -> None:
    try:
        status = path.lstat()
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
        elif not stat.S_ISREG(status.st_mode):
            return  # a socket, a pipe, a device
        if not stat.S_ISREG(status.st_mode):
            target.write(_header(info))
            return
        with path.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            target.write(_header(info))
            for piece in pieces(file, info.size):
                target.write(piece)
            target.write(bytes(-info.size % _BLOCK))
    except FileNotFoundError:
        return  # it went away while we looked


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
