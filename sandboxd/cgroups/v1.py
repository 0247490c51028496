"""Control groups, version 1: a hierarchy for each controller; the runtime adds its own to the ones made here."""

import contextlib
from pathlib import Path
from typing import Final

from sandboxd.cgroups.tree import (
    CPU_PERIOD_US,
    Limits,
    Meters,
    read_members,
    read_number,
    read_table,
    remove_directories,
    subdirectories,
    write,
)

_LIMITING: Final = ("memory", "cpu", "cpuacct", "pids")
"""Controllers whose groups are made before the runtime comes, so that it takes our limits and sets none of its own."""

_SHARES_PER_CPU: Final = 1024


class V1:
    """All version 1 hierarchies mounted below one directory.

    Membership is asked of the memory hierarchy alone: a process that moves, moves in all of them, one after another,
    and in any single one it is at each moment in exactly one group.
    """

    def __init__(self, root: Path) -> None:
        found = (entry for entry in sorted(root.iterdir()) if (entry / "cgroup.procs").exists())
        unified = (entry / "cgroup.controllers" for entry in root.iterdir())
        skipped = {path.parent for path in unified if path.exists()}
        # cpu and cpuacct are often two names of one mount
        self._hierarchies = sorted({entry.resolve() for entry in found if entry not in skipped})
        self._root = root
        missing = [name for name in _LIMITING if not (root / name).is_dir()]
        if missing:
            raise OSError(f"control group hierarchies are missing below {root}: {', '.join(missing)}")

    def make(self, group: str) -> None:
        for controller in _LIMITING:
            (self._root / controller / group).mkdir(parents=True, exist_ok=True)

    def make_plain(self, group: str) -> None:
        (self._root / "memory" / group).mkdir(parents=True, exist_ok=True)

    def limit(self, group: str, limits: Limits) -> None:
        self.limit_memory(group, limits.memory_bytes)
        cpu = self._root / "cpu" / group
        write(cpu / "cpu.cfs_period_us", CPU_PERIOD_US)
        write(cpu / "cpu.cfs_quota_us", int(limits.cpus * CPU_PERIOD_US))
        write(cpu / "cpu.shares", max(2, int(limits.weight * _SHARES_PER_CPU)))
        write(self._root / "pids" / group / "pids.max", limits.pids)

    def limit_memory(self, group: str, memory_bytes: int) -> None:
        memory = self._root / "memory" / group
        write(memory / "memory.limit_in_bytes", memory_bytes)
        with contextlib.suppress(OSError):
            # absent without swap accounting, refused by a kernel whose swap is bounded otherwise
            write(memory / "memory.swappiness", 0)

    def meters(self, group: str) -> Meters | None:
        memory = self._root / "memory" / group
        try:
            return Meters(
                cpu_used_seconds=read_number(self._root / "cpuacct" / group / "cpuacct.usage") / 1e9,
                memory_used_bytes=read_number(memory / "memory.usage_in_bytes"),
                memory_peak_bytes=read_number(memory / "memory.max_usage_in_bytes"),
                memory_limit_bytes=read_number(memory / "memory.limit_in_bytes"),
                oom_kills=read_table(memory / "memory.oom_control").get("oom_kill", 0),
                processes=len(read_members(memory)),
            )
        except FileNotFoundError:
            return None

    def cpu_used_seconds(self, group: str) -> float | None:
        try:
            return read_number(self._root / "cpuacct" / group / "cpuacct.usage") / 1e9
        except FileNotFoundError:
            return None

    def cached_bytes(self, group: str) -> int:
        try:
            return read_table(self._root / "memory" / group / "memory.stat").get("total_cache", 0)
        except FileNotFoundError:
            return 0

    def members(self, group: str) -> set[int]:
        return read_members(self._root / "memory" / group)

    def procs_file(self, group: str) -> Path:
        return self._root / "memory" / group / "cgroup.procs"

    def kill(self, group: str) -> None:
        """Version 1 has no such call: the members are killed one by one."""

    def children(self, group: str) -> set[str]:
        return set[str]().union(*(subdirectories(hierarchy / group) for hierarchy in self._hierarchies))

    def drop(self, group: str) -> bool:
        # in each hierarchy, also when one is busy
        freed = [remove_directories(hierarchy / group) for hierarchy in self._hierarchies]
        return all(freed)
