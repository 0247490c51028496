"""What one control group tree of the kernel can do, whichever version it is of: limits, meters, members, removal."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

CPU_PERIOD_US: Final = 100_000
_BUSY: Final = frozenset({errno.EBUSY, errno.ENOTEMPTY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the processes of one group may use together."""

    memory_bytes: int
    cpus: float
    weight: float
    """The share when all want more than there is, in units of a processor."""
    pids: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """What they used, by the kernel's count."""

    cpu_used_seconds: float
    memory_used_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    oom_kills: int
    processes: int


class Tree(Protocol):
    """Control groups by relative path (`a/b/c`). Every call is a few writes to kernel files, and blocks that long."""

    def make(self, group: str) -> None:
        """Make a group that can be limited and metered; nothing happens when it is there."""
        ...

    def make_plain(self, group: str) -> None:
        """Make a group that only names its members."""
        ...

    def limit(self, group: str, limits: Limits) -> None:
        """Set limits, of a live group as well."""
        ...

    def limit_memory(self, group: str, memory_bytes: int) -> None:
        """Bound the memory of a whole subtree."""
        ...

    def meters(self, group: str) -> Meters | None:
        """Read the meters; None when the group is gone."""
        ...

    def cpu_used_seconds(self, group: str) -> float | None:
        """Read the one meter that says whether anything happened; None when the group is gone."""
        ...

    def cached_bytes(self, group: str) -> int:
        """Read how much of the memory is files' contents; 0 when the group is gone."""
        ...

    def members(self, group: str) -> set[int]:
        """List the processes in the group and below it."""
        ...

    def procs_file(self, group: str) -> Path:
        """Return the file a process writes itself into to join."""
        ...

    def kill(self, group: str) -> None:
        """Send SIGKILL to all members at once where the kernel has a call for that; else nothing."""
        ...

    def children(self, group: str) -> set[str]:
        """List the names of the groups right below."""
        ...

    def drop(self, group: str) -> bool:
        """Remove the group and those below it. False: a process is still (or not yet quite not) in it."""
        ...


def read(path: Path) -> str:
    """Read a small file of the kernel in as few calls as it takes: meters are read all the time."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while data := os.read(descriptor, 65536):
            text += data
        return text.decode()
    finally:
        os.close(descriptor)


def write(path: Path, value: object) -> None:
    """Write one value into a file of the kernel."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def read_number(path: Path) -> int:
    """Read a file with one number; `max` is 0, which no limit is."""
    text = read(path).strip()
    return 0 if text == "max" else int(text)


def read_table(path: Path) -> dict[str, int]:
    """Read a file of `name number` lines."""
    rows = (line.split() for line in read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def read_members(directory: Path) -> set[int]:
    """Read the members of a group directory and of those below it."""
    found: set[int] = set()
    for group in (directory, *(below for below in _below(directory))):
        try:
            found.update(int(line) for line in read(group / "cgroup.procs").split())
        except (FileNotFoundError, OSError) as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENODEV:
                continue  # removed while it was read
            raise
    return found


def remove_directories(directory: Path) -> bool:
    """Remove a group directory, deepest first. False when one is busy."""
    for group in (*reversed(_below(directory)), directory):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
    return True


def subdirectories(directory: Path) -> set[str]:
    """List the names of directories right below; none when there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in entries if entry.is_dir()}
    except FileNotFoundError:
        return set()


def _below(directory: Path) -> list[Path]:
    found: list[Path] = []
    for name in sorted(subdirectories(directory)):
        found.append(directory / name)
        found.extend(_below(directory / name))
    return found
