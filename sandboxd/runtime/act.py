"""Running runsc: each command in an act group, its stdio on nothing, its words read from a file in memory.

The sandbox's own processes inherit what a command has open and outlive it, so nothing a command is given is ever
waited on, and no pipe is handed out.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from sandboxd.cgroups import Cgroups, pidfds
from sandboxd.runtime.base import RuntimeFailedError

_LOG_LIMIT: Final = 64 * 1024
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_IGNORED_HERE: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores and a child would go on ignoring."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left."""

    returncode: int
    output: str
    words: str
    """Its last error in its own words; empty when it had none."""
    log: str = ""
    """The end of what it logged."""


class Act:
    """Runs commands of one runsc binary."""

    def __init__(self, runsc: Path, cgroups: Cgroups) -> None:
        self._runsc = runsc
        self._cgroups = cgroups

    async def run(
        self,
        name: str,
        arguments: Sequence[str],
        first: Callable[[], None] | None = None,
        keeps: Sequence[int] = (),
    ) -> Finished:
        """Run one command in the act group of `name` (a sandbox id, or a word). Ends it when cancelled.

        `first`: blocking work that comes before it, in the same thread. `keeps`: descriptors that it has as well, under
        their numbers.
        """
        log, output = os.memfd_create("runsc-log"), os.memfd_create("runsc-output")
        keeps_stdout = arguments[0] == "--version"

        def begin() -> int:
            if first is not None:
                first()
            prefix = self._cgroups.make_act(name)
            # The log goes by descriptor, not by name: a named log is handed on to the sentry, which would fill it for
            # the rest of its life.
            command = [*prefix, str(self._runsc), f"--log-fd={log}", "--log-format=json", *arguments]
            return _spawn(command, stdout=output if keeps_stdout else None, keeps=(log, *keeps))

        try:
            returncode = await _ended(begin)
            logged = _read(log)
            return Finished(returncode, _read(output), _last_error(logged), logged)
        finally:
            os.close(log)
            os.close(output)

    async def demand(
        self,
        name: str,
        arguments: Sequence[str],
        first: Callable[[], None] | None = None,
        keeps: Sequence[int] = (),
    ) -> Finished:
        """Run one command; RuntimeFailedError with its words when it fails."""
        finished = await self.run(name, arguments, first, keeps)
        if finished.returncode != 0:
            error = RuntimeFailedError(finished.words or f"runsc ended with {finished.returncode} and said nothing")
            error.log = finished.log
            raise error
        return finished


def _spawn(command: list[str], *, stdout: int | None, keeps: Sequence[int]) -> int:
    """Start a program and return its pid.

    Not by the library's subprocesses: on this loop they fork, and to copy the page tables of a program as large as this
    one, and every page either side touches next, costs more than all else that a command costs here.
    """
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    answer = (os.POSIX_SPAWN_DUP2, 0 if stdout is None else stdout, 1)
    return os.posix_spawn(
        command[0],
        command,
        _ENVIRONMENT,
        # every other descriptor of this program is closed by the exec; onto itself means: this one is not
        file_actions=(
            nothing,
            answer,
            (os.POSIX_SPAWN_DUP2, 0, 2),
            *((os.POSIX_SPAWN_DUP2, one, one) for one in keeps),
        ),
        setsigmask=(),
        setsigdef=_IGNORED_HERE,
    )


async def _ended(begin: Callable[[], int]) -> int:
    """Wait for the child that `begin` starts in a thread; return its exit code, negative for a signal.

    Cancelled, it kills the child.
    """
    begun = asyncio.get_running_loop().run_in_executor(None, begin)
    try:
        pid = await asyncio.shield(begun)
    except asyncio.CancelledError:
        await asyncio.wait([begun])
        if not begun.cancelled() and begun.exception() is None:
            await _kill(begun.result())
        raise
    pidfd = os.pidfd_open(pid)
    try:
        await pidfds.ended(pidfd)
        status = pidfds.reap(pidfd)
    except asyncio.CancelledError:
        await _kill(pid)
        raise
    finally:
        os.close(pidfd)
    if status is None:
        raise RuntimeFailedError("somebody else took the exit status of a runsc command")
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


async def _kill(pid: int) -> None:
    """Kill a child that nobody has waited for, so that its pid is still its own."""
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, _LOG_LIMIT, max(0, size - _LOG_LIMIT))
    return data.decode(errors="replace")


def _last_error(log: str) -> str:
    words = ""
    for line in log.splitlines():
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        fields = cast("dict[str, Any]", entry)
        if fields.get("level") == "error":
            words = str(fields.get("msg", ""))
    return words.strip()
