"""Control groups, version 2: one hierarchy; controllers are switched on from the root downwards."""

import contextlib
from pathlib import Path, PurePosixPath
from typing import Final

from sandboxd.cgroups.tree import (
    CPU_PERIOD_US,
    Limits,
    Meters,
    read,
    read_members,
    read_number,
    read_table,
    remove_directories,
    subdirectories,
    write,
)

_CONTROLLERS: Final = ("cpu", "memory", "pids")
_DEFAULT_WEIGHT: Final = 100


class V2:
    """The one version 2 hierarchy, mounted at `root`."""

    def __init__(self, root: Path) -> None:
        present = (root / "cgroup.controllers").read_text().split()
        missing = [name for name in _CONTROLLERS if name not in present]
        if missing:
            raise OSError(f"control group controllers are missing in {root}: {', '.join(missing)}")
        self._root = root

    def make(self, group: str) -> None:
        (self._root / group).mkdir(parents=True, exist_ok=True)
        # a controller reaches a group when every one of its ancestors passes it on
        for ancestor in reversed(PurePosixPath(group).parents):
            control = self._root / ancestor / "cgroup.subtree_control"
            on = read(control).split()
            if any(name not in on for name in _CONTROLLERS):
                write(control, " ".join(f"+{name}" for name in _CONTROLLERS))

    def make_plain(self, group: str) -> None:
        (self._root / group).mkdir(parents=True, exist_ok=True)

    def limit(self, group: str, limits: Limits) -> None:
        directory = self._root / group
        self.limit_memory(group, limits.memory_bytes)
        write(directory / "cpu.max", f"{int(limits.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}")
        write(directory / "cpu.weight", min(10_000, max(1, int(limits.weight * _DEFAULT_WEIGHT))))
        write(directory / "pids.max", limits.pids)

    def limit_memory(self, group: str, memory_bytes: int) -> None:
        directory = self._root / group
        write(directory / "memory.max", memory_bytes)
        with contextlib.suppress(FileNotFoundError, PermissionError):  # a kernel without swap
            write(directory / "memory.swap.max", 0)

    def meters(self, group: str) -> Meters | None:
        directory = self._root / group
        try:
            used = read_number(directory / "memory.current")
            try:
                peak = read_number(directory / "memory.peak")
            except FileNotFoundError:  # before Linux 5.19
                peak = used
            return Meters(
                cpu_used_seconds=read_table(directory / "cpu.stat").get("usage_usec", 0) / 1e6,
                memory_used_bytes=used,
                memory_peak_bytes=peak,
                memory_limit_bytes=read_number(directory / "memory.max"),
                oom_kills=read_table(directory / "memory.events").get("oom_kill", 0),
                processes=len(read_members(directory)),
            )
        except FileNotFoundError:
            return None

    def cpu_used_seconds(self, group: str) -> float | None:
        try:
            return read_table(self._root / group / "cpu.stat").get("usage_usec", 0) / 1e6
        except FileNotFoundError:
            return None

    def cached_bytes(self, group: str) -> int:
        try:
            return read_table(self._root / group / "memory.stat").get("file", 0)
        except FileNotFoundError:
            return 0

    def members(self, group: str) -> set[int]:
        return read_members(self._root / group)

    def procs_file(self, group: str) -> Path:
        return self._root / group / "cgroup.procs"

    def kill(self, group: str) -> None:
        """Since Linux 5.14; before, the members are killed one by one."""
        kill = self._root / group / "cgroup.kill"
        with contextlib.suppress(FileNotFoundError):
            if kill.exists():
                write(kill, 1)

    def children(self, group: str) -> set[str]:
        return subdirectories(self._root / group)

    def drop(self, group: str) -> bool:
        return remove_directories(self._root / group)
