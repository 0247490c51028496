"""Running runsc: each command in an act group, its stdio on nothing, its words read from a file in memory.

The sandbox's own processes inherit what a command has open and outlive it, so nothing a command is given is ever
waited on, and no pipe is handed out.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from sandboxd.cgroups import Cgroups
from sandboxd.runtime.base import RuntimeFailedError

Result = TypeVar("Result")

_LOG_LIMIT: Final = 64 * 1024
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left."""

    returncode: int
    output: str
    words: str
    """Its last error in its own words; empty when it had none."""


class Act:
    """Runs commands of one runsc binary."""

    def __init__(self, runsc: Path, cgroups: Cgroups) -> None:
        self._runsc = runsc
        self._cgroups = cgroups

    async def run(self, name: str, arguments: Sequence[str]) -> Finished:
        """Run one command in the act group of `name` (a sandbox id, or a word). Ends it when cancelled."""
        prefix = await settled(lambda: self._cgroups.make_act(name))
        log, output = os.memfd_create("runsc-log"), os.memfd_create("runsc-output")
        # The log goes by descriptor, not by name: a named log is handed on to the sentry, which would fill it for the
        # rest of its life.
        command = [*prefix, str(self._runsc), f"--log-fd={log}", "--log-format=json", *arguments]
        keeps_stdout = arguments[0] == "--version"
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output if keeps_stdout else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(log,),
                env=_ENVIRONMENT,
                cwd="/",
            )
            returncode = await _wait(process)
            return Finished(returncode, _read(output), _last_error(_read(log)))
        finally:
            os.close(log)
            os.close(output)

    async def demand(self, name: str, arguments: Sequence[str]) -> Finished:
        """Run one command; RuntimeFailedError with its words when it fails."""
        finished = await self.run(name, arguments)
        if finished.returncode != 0:
            raise RuntimeFailedError(finished.words or f"runsc ended with {finished.returncode} and said nothing")
        return finished


async def settled(work: Callable[[], Result]) -> Result:
    """Run blocking work in a thread; a cancellation waits for it, so that nothing is made after an undo."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def _wait(process: asyncio.subprocess.Process) -> int:
    try:
        return await process.wait()
    except asyncio.CancelledError:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise


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
