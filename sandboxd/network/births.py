"""Starting a program of the router namespace: its process, its group, its descriptors."""

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from netpolicy.birth import CHANNEL_FD, NETNS_FD, UPSTREAM_FD
from sandboxd.cgroups import Cgroups, pidfds
from sandboxd.network.base import NetworkError

USERS: Final = {"resolver": 60_901, "proxy": 60_902}
"""Users without an account, from a range that distributions leave alone: no file and no other program is theirs."""
_MOST_FILES: Final = 65_536
_STDERR_BYTES: Final = 4096
_IGNORED_HERE: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Running(Protocol):
    """A program that was started."""

    channel: socket.socket
    upstream: socket.socket

    async def ended(self) -> str:
        """Wait for its end; return how it ended, in words."""
        ...

    async def kill(self) -> None:
        """End it at once, with everything it may have started. Idempotent."""
        ...

    def close(self) -> None:
        """Let go of what is left of a dead one."""
        ...


class Birth(Protocol):
    """Starts one program, again and again."""

    async def start(self) -> Running:
        """Start it, after whatever is left of an earlier one is dead. NetworkError if it cannot be started."""
        ...

    async def clear(self) -> None:
        """Kill whatever is left of it. Idempotent."""
        ...


@dataclass(slots=True)
class _Child:
    """A child process in a group of its own."""

    channel: socket.socket
    upstream: socket.socket
    pidfd: int
    stderr: int
    group: str
    cgroups: Cgroups

    async def ended(self) -> str:
        await pidfds.ended(self.pidfd)
        status = pidfds.reap(self.pidfd)
        words = os.pread(self.stderr, _STDERR_BYTES, max(0, os.fstat(self.stderr).st_size - _STDERR_BYTES))
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        if status is None:
            return last or "ended"
        how = f"exit code {status.si_status}" if status.si_code == os.CLD_EXITED else f"signal {status.si_status}"
        return f"{how}: {last}" if last else how

    async def kill(self) -> None:
        await self.cgroups.end_program(self.group)

    def close(self) -> None:
        pidfds.reap(self.pidfd)
        os.close(self.pidfd)
        os.close(self.stderr)
        self.channel.close()
        self.upstream.close()


class RouterBirth:
    """`Birth` inside a pinned router namespace. `empty` is a directory of root's in which there is nothing, ever."""

    def __init__(self, name: str, *, cgroups: Cgroups, router_pin: Path, empty: Path) -> None:
        self._name = name
        self._cgroups = cgroups
        self._router_pin = router_pin
        self._empty = empty

    async def start(self) -> Running:
        await self.clear()
        return await asyncio.to_thread(self._spawn)

    async def clear(self) -> None:
        await self._cgroups.end_program(self._name)

    def _spawn(self) -> Running:
        ours: list[int] = []
        channel, far_channel = socket.socketpair()
        upstream, far_upstream = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stderr = os.memfd_create(f"sandlot-{self._name}")
        try:
            self._empty.mkdir(mode=0o500, parents=True, exist_ok=True)
            namespace = os.open(self._router_pin, os.O_RDONLY | os.O_CLOEXEC)
            ours.append(namespace)
            prefix = self._cgroups.make_program(self._name)
            pid = _spawned(
                [*prefix, *self._command()],
                {0: None, 1: None, 2: stderr},
                {NETNS_FD: namespace, CHANNEL_FD: far_channel.fileno(), UPSTREAM_FD: far_upstream.fileno()},
            )
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            for end in (channel, upstream):
                end.close()
            os.close(stderr)
            raise NetworkError(f"the {self._name} cannot be started: {error}") from error
        finally:
            for end in (far_channel, far_upstream):
                end.close()
            for descriptor in ours:
                os.close(descriptor)
        return _Child(channel, upstream, pidfd, stderr, self._name, self._cgroups)

    def _command(self) -> list[str]:
        options = [self._name, str(self._empty), str(USERS[self._name]), str(_MOST_FILES)]
        return [sys.executable, "-I", "-m", "netpolicy.birth", *options]


def _spawned(command: list[str], stdio: dict[int, int | None], given: dict[int, int]) -> int:
    """Spawn with nothing else open and nothing in the environment; return the pid."""
    # A target may be the number of another source: first out of the way, then into place.
    clear = 100 + max(given.values())
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    for place, source in enumerate(given.values()):
        actions.append((os.POSIX_SPAWN_DUP2, source, clear + place))
    for target, source in stdio.items():
        if source is None:
            actions.append((os.POSIX_SPAWN_OPEN, target, os.devnull, os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    for place, target in enumerate(given):
        actions.append((os.POSIX_SPAWN_DUP2, clear + place, target))
        actions.append((os.POSIX_SPAWN_CLOSE, clear + place))
    return os.posix_spawn(command[0], command, {}, file_actions=actions, setsigmask=(), setsigdef=_IGNORED_HERE)
