"""The control groups of one node: `sandlot-<instance>` with `act` (runtime commands), `programs` (what sandboxd starts
beside itself) and `sandboxes` below it.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from sandboxd.cgroups import pidfds
from sandboxd.cgroups.tree import Limits, Meters, Tree
from sandboxd.cgroups.v1 import V1
from sandboxd.cgroups.v2 import V2

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ENTER: Final = 'umask 077 && cd / && echo $$ >"$1" && shift && exec "$@"'
"""A shell puts itself into the group, then becomes the command: there is no moment in which it runs outside.

Where the group has been removed meanwhile, the command never runs.
"""
_KILL_BATCH: Final = 128
_BUSY_PAUSE_SECONDS: Final = 0.002


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Cgroups:
    """Groups of one instance, made, metered, killed and removed. Knows nothing of what runs in them.

    Killing reaps orphans that came to us. It leaves two kinds to their owners: commands, which are in our own session,
    and what stands in `claimed`.
    """

    def __init__(
        self, instance: str, root: Path = Path("/sys/fs/cgroup"), total_memory: Callable[[], int] = _total_memory
    ) -> None:
        self._tree: Tree = V2(root) if (root / "cgroup.controllers").exists() else V1(root)
        self._parent = f"sandlot-{instance}"
        self._total_memory = total_memory
        self.claimed: set[int] = set()

    def set_up(self, reserve_bytes: int) -> None:
        """Make the groups of the node; all sandboxes together leave `reserve_bytes` of memory to the platform."""
        total = self._total_memory()
        self._tree.make(f"{self._parent}/sandboxes")
        self._tree.make_plain(f"{self._parent}/act")
        self._tree.limit_memory(self._parent, max(total - reserve_bytes, total // 4))

    def path(self, sandbox_id: str) -> str:
        """Return the path of a sandbox's group from the root of every hierarchy, as OCI's `cgroupsPath` wants it."""
        return "/" + self._sandbox(sandbox_id)

    def make(self, sandbox_id: str, limits: Limits) -> None:
        group = self._sandbox(sandbox_id)
        self._tree.make(group)
        self._tree.limit(group, limits)

    def limit(self, sandbox_id: str, limits: Limits) -> None:
        """Change the limits of a live sandbox."""
        self._tree.limit(self._sandbox(sandbox_id), limits)

    def meters(self, sandbox_id: str) -> Meters | None:
        return self._tree.meters(self._sandbox(sandbox_id))

    def cpu_used_seconds(self, sandbox_id: str) -> float | None:
        return self._tree.cpu_used_seconds(self._sandbox(sandbox_id))

    def cached_bytes(self, sandbox_id: str) -> int:
        return self._tree.cached_bytes(self._sandbox(sandbox_id))

    def ids(self) -> set[str]:
        """List what has a group: of its own, or of a command that acts for it."""
        return self._tree.children(f"{self._parent}/sandboxes") | self.acting()

    def acting(self) -> set[str]:
        """List the names of act groups."""
        return self._tree.children(f"{self._parent}/act")

    def make_act(self, name: str) -> list[str]:
        """Make the act group of `name`; return what to put before a command so that it runs in that group."""
        group = self._act(name)
        self._tree.make_plain(group)
        return ["/bin/sh", "-c", _ENTER, "sh", str(self._tree.procs_file(group))]

    async def end_act(self, name: str) -> None:
        """Kill the commands that act for `name` and remove the group: whoever comes late finds no way in."""
        await self._end(self._act(name))

    def make_program(self, name: str) -> list[str]:
        """Make the group of a program; return what to put before its command so that it runs there."""
        group = f"{self._parent}/programs/{_checked(name)}"
        self._tree.make_plain(f"{self._parent}/programs")
        self._tree.make_plain(group)
        return ["/bin/sh", "-c", _ENTER, "sh", str(self._tree.procs_file(group))]

    async def end_program(self, name: str) -> None:
        """Kill whatever is in a program's group, an earlier agent's too, and remove the group. Idempotent."""
        await self._end(f"{self._parent}/programs/{_checked(name)}")

    async def kill(self, sandbox_id: str) -> None:
        """Kill everything in a sandbox's group, and wait until it is empty. Its meters stay."""
        await self._kill(self._sandbox(sandbox_id))

    async def end(self, sandbox_id: str) -> None:
        """Kill everything in a sandbox's group and remove the group."""
        await self._end(self._sandbox(sandbox_id))

    async def remove_all(self) -> None:
        """Kill and remove everything of this instance."""
        await self._end(self._parent)

    def _sandbox(self, sandbox_id: str) -> str:
        return f"{self._parent}/sandboxes/{_checked(sandbox_id)}"

    def _act(self, name: str) -> str:
        return f"{self._parent}/act/{_checked(name)}"

    async def _end(self, group: str) -> None:
        while True:
            await self._kill(group)
            if await asyncio.to_thread(self._tree.drop, group):
                return
            # Either somebody came in (killed in the next round) or the kernel has not let go of the last one, of
            # which version 1 tells nobody.
            await asyncio.sleep(_BUSY_PAUSE_SECONDS)

    async def _kill(self, group: str) -> None:
        while members := self._tree.members(group):
            self._tree.kill(group)
            await self._kill_members(group, sorted(members)[:_KILL_BATCH])

    async def _kill_members(self, group: str, pids: Iterable[int]) -> None:
        opened = {pid: pidfd for pid in pids if (pidfd := pidfds.open_pidfd(pid)) is not None}
        try:
            # The pid may have changed hands before it was opened; what is still a member now is what was opened.
            members = self._tree.members(group)
            victims = {pid: pidfd for pid, pidfd in opened.items() if pid in members}
            for pidfd in victims.values():
                pidfds.send_kill(pidfd)
            await pidfds.all_ended(victims.values())
            for pid, pidfd in victims.items():
                if pid not in self.claimed and not pidfds.in_our_session(pid):
                    pidfds.reap(pidfd)
        finally:
            for pidfd in opened.values():
                os.close(pidfd)


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"not a name of a group: {name!r}")
    return name
