"""What a root file system may consist of, and how much of it: the limits of an import, and the check of a directory."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.images.erofs import ImageBuildError

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLimits:
    """More than this is no image but an attack, or a mistake."""

    size_bytes: int = 64 * GIB
    entries: int = 2_000_000
    depth: int = 128
    path_bytes: int = 4096


KINDS: Final = {
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}


class Tally:
    """Counts what comes in; ImageBuildError at the first thing too many."""

    def __init__(self, limits: ImportLimits) -> None:
        self._limits = limits
        self._entries = 0
        self._bytes = 0
        self.newest_mtime = 0

    def entry(self, path: str, mtime: float) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ImageBuildError(f"more than {self._limits.entries} files")
        if path.count("/") >= self._limits.depth or len(os.fsencode(path)) > self._limits.path_bytes:
            raise ImageBuildError(f"path is too long or too deep: {path[:80]}…")
        self.newest_mtime = max(self.newest_mtime, int(mtime))

    def data(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.size_bytes:
            raise ImageBuildError(f"more than {self._limits.size_bytes} bytes")


def check(root: Path, limits: ImportLimits) -> int:
    """Walk a directory that is to become an image; return its newest modification time. ImageBuildError."""
    tally = Tally(limits)
    device = root.stat().st_dev
    seen: set[int] = set()
    tally.entry("", root.stat().st_mtime)
    pending = [("", root)]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                _check_entry(path, status, device)
                tally.entry(path, status.st_mtime)
                if stat.S_ISDIR(status.st_mode):
                    pending.append((f"{path}/", Path(entry.path)))
                elif stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    tally.data(status.st_size)
    return tally.newest_mtime


def _check_entry(path: str, status: os.stat_result, device: int) -> None:
    kind = KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise ImageBuildError(f"{path} is a {kind}: images hold files, directories and links only")
    if status.st_dev != device:
        raise ImageBuildError(f"{path} lies on another file system: something is mounted in the directory")
