"""What the host has left: memory and disk."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

_MIB: Final = 1024 * 1024
_BLOCK_BYTES: Final = 512
_FULL_MIB: Final = 64
"""With less than this a file system is full for anything that matters."""


class Host(Protocol):
    """The machine under the node."""

    def cpus(self) -> int:
        """Return how many processors may be used."""
        ...

    def memory_mib(self) -> int:
        """Return how much memory there is."""
        ...

    def memory_available_mib(self) -> int:
        """Return how much memory could be had now without pushing anything out."""
        ...

    def disk_mib(self) -> int:
        """Return how large the file system of the upper directories is."""
        ...

    def disk_free_mib(self) -> int:
        """Return how much of it is free."""
        ...

    def written_mib(self) -> dict[str, int]:
        """Return what each sandbox wrote on it, by handle; one that is missing wrote nothing.

        Slow: looks at every process.
        """
        ...


class LinuxHost:
    """The machine this process runs on."""

    def __init__(self, upper_dir: Path, meminfo: Path = Path("/proc/meminfo")) -> None:
        self._upper_dir = upper_dir
        self._meminfo = meminfo

    def cpus(self) -> int:
        return len(os.sched_getaffinity(0))

    def memory_mib(self) -> int:
        return self._meminfo_mib("MemTotal")

    def memory_available_mib(self) -> int:
        return self._meminfo_mib("MemAvailable")

    def disk_mib(self) -> int:
        status = os.statvfs(self._upper_dir)
        return status.f_blocks * status.f_frsize // _MIB

    def disk_free_mib(self) -> int:
        status = os.statvfs(self._upper_dir)
        return status.f_bavail * status.f_frsize // _MIB

    def written_mib(self) -> dict[str, int]:
        # The sentry's file has no name any more, so only the descriptors of live processes lead to it.
        sandbox_ids = {each.name for each in self._upper_dir.iterdir()}
        found: dict[int, tuple[str, int]] = {}
        for process in os.scandir("/proc"):
            if process.name.isdecimal():
                found |= self._open_files(Path(process.path, "fd"), sandbox_ids)
        written: dict[str, int] = {}
        for sandbox_id, size in found.values():
            written[sandbox_id] = written.get(sandbox_id, 0) + size
        return {sandbox_id: size // _MIB for sandbox_id, size in written.items()}

    def _open_files(self, descriptors: Path, sandbox_ids: set[str]) -> dict[int, tuple[str, int]]:
        """Return whose each open file in the upper directories is, and what it takes, by inode."""
        found: dict[int, tuple[str, int]] = {}
        disk = self._upper_dir.stat().st_dev
        with suppress(OSError):  # it ended meanwhile: what it held is given back
            for each in descriptors.iterdir():
                with suppress(OSError):
                    # In another mount namespace the path may begin anywhere; where it ends is enough.
                    sandbox_id = each.readlink().parent.name
                    if sandbox_id in sandbox_ids and (status := each.stat()).st_dev == disk:
                        found[status.st_ino] = (sandbox_id, status.st_blocks * _BLOCK_BYTES)
        return found

    def _meminfo_mib(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB$", self._meminfo.read_text(), re.MULTILINE)
        return int(found[1]) // 1024 if found else 0


class FakeHost:
    """A machine that has what it is told to have."""

    def __init__(self, *, cpus: int = 64, memory_mib: int = 1_048_576, disk_mib: int = 67_108_864) -> None:
        self.processors = cpus
        self.memory = memory_mib
        self.memory_available = memory_mib
        self.disk = disk_mib
        self.disk_free = disk_mib
        self.written: dict[str, int] = {}

    def cpus(self) -> int:
        return self.processors

    def memory_mib(self) -> int:
        return self.memory

    def memory_available_mib(self) -> int:
        return self.memory_available

    def disk_mib(self) -> int:
        return self.disk

    def disk_free_mib(self) -> int:
        return self.disk_free

    def written_mib(self) -> dict[str, int]:
        return self.written


def is_full(host: Host) -> bool:
    """Tell whether the disk has no space left, as a write would find."""
    try:
        return host.disk_free_mib() < _FULL_MIB
    except OSError:
        return False
