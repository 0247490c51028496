"""The runtime that is used: runsc, one sentry and one gofer for each sandbox, on host control groups."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from programs.libc import PR_SET_CHILD_SUBREAPER, prctl
from sandboxd.cgroups import Cgroups
from sandboxd.contract.messages import Resources
from sandboxd.guest_client.base import Guest
from sandboxd.runtime import bundle, procfs
from sandboxd.runtime.act import Act
from sandboxd.runtime.base import (
    GuestFactory,
    ImageUnreadableError,
    Incarnation,
    Launch,
    RuntimeEnd,
    RuntimeFailedError,
    RuntimeUsage,
    RuntimeVersion,
)
from sandboxd.runtime.control import Places
from sandboxd.runtime.live import Live

OLDEST_BUILD: Final = 20260822
"""Before it, a device node in an image could be opened on the host (CVE-2026-96812)."""

DEFAULT_RESERVE_BYTES: Final = 512 * bundle.MIB
_NODE_ACT: Final = "node"
_ROOT_UNREADABLE: Final = "mounting root with overlay"
"""In runsc's words for a root file system that is none."""


class RunscRuntime:
    """Verbs of runsc. Its own undo is complete: `runsc delete` is not used, because it leaves things behind."""

    def __init__(
        self,
        *,
        runsc: Path,
        run_dir: Path,
        cgroups: Cgroups,
        connect: GuestFactory,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
    ) -> None:
        self._runsc = runsc.resolve()
        self._places = Places(run_dir.resolve())
        self._cgroups = cgroups
        self._connect = connect
        self._reserve_bytes = reserve_bytes
        self._act = Act(self._runsc, cgroups)
        self._live: dict[str, Live] = {}

    async def open(self) -> None:
        """Become the parent of orphaned sentries, and end the commands that an earlier node agent left at work."""
        try:
            prctl(PR_SET_CHILD_SUBREAPER, 1, "cannot become a child subreaper")
        except OSError as error:
            raise RuntimeFailedError("cannot become a child subreaper") from error
        await asyncio.to_thread(self._places.make)
        await asyncio.to_thread(self._cgroups.set_up, self._reserve_bytes)
        for name in await asyncio.to_thread(self._cgroups.acting):
            await self._cgroups.end_act(name)

    async def close(self) -> None:
        for live in self._live.values():
            live.stop()
        self._live.clear()

    async def clear(self) -> None:
        await self.close()
        await self._cgroups.remove_all()
        await asyncio.to_thread(self._places.clear)

    async def version(self) -> RuntimeVersion:
        if not self._runsc.is_file():
            raise RuntimeFailedError(f"there is no runsc at {self._runsc}")
        try:
            finished = await self._act.demand(_NODE_ACT, ["--version"])
        finally:
            await self._cgroups.end_act(_NODE_ACT)
        found = re.search(r"runsc version (\S+)", finished.output)
        version = found.group(1) if found else "unknown"
        date = re.search(r"20\d{6}", version)
        if date is None or int(date.group()) < OLDEST_BUILD:
            raise RuntimeFailedError(f"runsc {version} is older than {OLDEST_BUILD}, or does not say its date")
        return RuntimeVersion(name="runsc", version=version, platform="systrap")

    async def create(self, launch: Launch) -> None:
        sandbox_id = launch.sandbox_id
        flags = bundle.flags(self._places.root, self._places.panic_log(sandbox_id), launch)
        create = [*flags, "create", f"--bundle={self._places.bundle(sandbox_id)}", sandbox_id]
        await self._command(sandbox_id, create, launch.image_path, lambda: self._prepare(launch))
        # From here on an end of either process is seen, also one before `start`.
        await self._attach(sandbox_id)
        self._cgroups.limit(sandbox_id, bundle.limits(launch.resources, background=launch.background))

    async def start(self, sandbox_id: str) -> Incarnation:
        live = self._live.get(sandbox_id) or await self._attach(sandbox_id)
        await self._command(sandbox_id, [f"--root={self._places.root}", "start", sandbox_id], None)
        return live.incarnation

    async def recover(self, sandbox_id: str, incarnation: Incarnation) -> bool:
        live = Live(incarnation, self._cgroups.claimed)
        if not live.begin():
            return False
        if (old := self._live.pop(sandbox_id, None)) is not None:
            old.stop()
        self._live[sandbox_id] = live
        return True

    async def wait(self, sandbox_id: str) -> RuntimeEnd:
        live = self._live.get(sandbox_id)
        if live is None:
            return RuntimeEnd()
        await live.over.wait()
        return live.end

    async def kill(self, sandbox_id: str) -> None:
        self._expect_end(sandbox_id)
        await self._cgroups.end_act(sandbox_id)
        await self._cgroups.kill(sandbox_id)
        await self.wait(sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        self._expect_end(sandbox_id)
        # The order is the proof: without its act group no command can come in any more; one that is inside the
        # sandbox's group for the moment is killed there; only then is nobody left to write files.
        await self._cgroups.end_act(sandbox_id)
        await self._cgroups.end(sandbox_id)
        await self.wait(sandbox_id)
        await asyncio.to_thread(self._places.forget, sandbox_id)
        if (live := self._live.pop(sandbox_id, None)) is not None:
            live.stop()

    async def known(self) -> set[str]:
        groups = await asyncio.to_thread(self._cgroups.ids)
        files = await asyncio.to_thread(self._places.ids)
        return (groups | files | set(self._live)) - {_NODE_ACT}

    def usage(self, sandbox_id: str) -> RuntimeUsage | None:
        meters = self._cgroups.meters(sandbox_id)
        if meters is None:
            return None
        return RuntimeUsage(
            cpu_used_seconds=meters.cpu_used_seconds,
            memory_used_bytes=meters.memory_used_bytes,
            memory_peak_bytes=meters.memory_peak_bytes,
            memory_limit_bytes=meters.memory_limit_bytes,
            oom_kills=meters.oom_kills,
            processes=meters.processes,
        )

    def cpu_used_seconds(self, sandbox_id: str) -> float | None:
        return self._cgroups.cpu_used_seconds(sandbox_id)

    def cached_bytes(self, sandbox_id: str) -> int:
        return self._cgroups.cached_bytes(sandbox_id)

    def panicked(self, sandbox_id: str) -> bool:
        return self._places.panicked(sandbox_id)

    def panic_log(self, sandbox_id: str) -> str:
        return self._places.read_panic_log(sandbox_id).decode(errors="replace")

    def guest(self, sandbox_id: str, address: str, token: str) -> Guest:  # noqa: ARG002 - every runtime is asked so
        return self._connect(address, token)

    async def difference(self, sandbox_id: str, into: int) -> None:
        # Not its standard output: runsc says something there as well.
        arguments = [f"--root={self._places.root}", "tar", "rootfs-upper", f"--file=/proc/self/fd/{into}", sandbox_id]
        await self._act.demand(sandbox_id, arguments, keeps=(into,))

    async def update(self, sandbox_id: str, resources: Resources) -> None:
        """Change memory, processors and processes on the host; the sandbox goes on believing its first ones."""
        try:
            await asyncio.to_thread(self._cgroups.limit, sandbox_id, bundle.limits(resources))
        except OSError as error:
            raise RuntimeFailedError(f"limits of {sandbox_id} cannot be changed: {error}") from error

    def _prepare(self, launch: Launch) -> None:
        sandbox_id = launch.sandbox_id
        if not launch.image_path.is_file():
            raise ImageUnreadableError("the image file is gone")
        try:
            configuration = bundle.configuration(
                launch, self._places.empty_root(sandbox_id), self._cgroups.path(sandbox_id)
            )
            self._places.write_bundle(sandbox_id, configuration)
            self._cgroups.make(sandbox_id, bundle.limits_at_create(launch.resources, background=launch.background))
        except OSError as error:
            raise RuntimeFailedError(f"{sandbox_id} cannot be prepared: {error}") from error

    def _expect_end(self, sandbox_id: str) -> None:
        if (live := self._live.get(sandbox_id)) is not None:
            live.expect_end()

    async def _command(
        self, sandbox_id: str, arguments: list[str], image: Path | None, first: Callable[[], None] | None = None
    ) -> None:
        try:
            await self._act.demand(sandbox_id, arguments, first)
        except RuntimeFailedError as error:
            words = str(error)
            if _ROOT_UNREADABLE in words or (image is not None and str(image) in words):
                unreadable = ImageUnreadableError(words)
                unreadable.log = error.log
                raise unreadable from error
            raise

    async def _attach(self, sandbox_id: str) -> Live:
        processes = await asyncio.to_thread(self._places.host_processes, sandbox_id)
        sentry = procfs.identity(processes.sentry)
        gofer = None if processes.gofer is None else procfs.identity(processes.gofer)
        if sentry is None:
            raise RuntimeFailedError("the sandbox ended before it was started")
        live = Live(Incarnation(sentry=sentry, gofer=gofer), self._cgroups.claimed)
        if not live.begin():
            raise RuntimeFailedError("the sandbox ended before it was started")
        self._live[sandbox_id] = live
        return live
