"""Runs a command in a sandbox as if it ran here: output, input, signals, exit code."""

import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from sandlot._async.client import AsyncClient
from sandlot._async.process import AsyncOutput, AsyncProcess
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import show
from sandlot.errors import NotFoundError, ProcessEndedError, SandboxEndedError, SandlotError, StdinClosedError
from sandlot.models import Frame, ProcessExit

_READ_BYTES: Final = 65_536
_PIPE_BUF: Final = 4096
"""A pipe that is ready for writing takes this much without blocking."""
_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_EXIT_PIPE: Final = 128 + signal.SIGPIPE
_ESCALATION: Final = ("SIGINT", "SIGTERM", "SIGKILL")


@dataclass(frozen=True)
class Command:
    """What to run, and how to show it."""

    argv: Sequence[str]
    env: dict[str, str]
    user: str | None
    cwd: str | None
    as_json: bool


async def run_in_new(
    client: AsyncClient, create: Callable[[AsyncClient], Awaitable[AsyncSandbox]], command: Command
) -> int:
    """Run in a sandbox made for it, and return the exit code. The sandbox is ended whatever happens."""

    async def work(control: "_Control") -> int:
        # A create that is broken off half-way may have made a sandbox that nobody would end.
        sandbox: AsyncSandbox | None = None
        with control.patiently():
            sandbox = await create(client)
        if sandbox is None:
            return _EXIT_INTERRUPTED
        async with sandbox:
            return await _run(sandbox, command, control)

    return await _controlled(work)


async def run_in_present(client: AsyncClient, sandbox_id: str, command: Command) -> int:
    """Run in a sandbox that is there already, and return the exit code."""

    async def work(control: "_Control") -> int:
        return await _run(await AsyncSandbox.get(sandbox_id, client=client), command, control)

    return await _controlled(work)


async def stop_all(client: AsyncClient, sandbox_ids: Sequence[str], *, as_json: bool) -> bool:
    """End sandboxes one after the other and tell whether all of them are gone."""
    stopped: list[dict[str, object]] = []
    well = True
    for sandbox_id in sandbox_ids:
        try:
            sandbox = await AsyncSandbox.get(sandbox_id, client=client)
            info = await sandbox.stop()
        except (NotFoundError, SandboxEndedError) as error:
            show.failure(error, as_json=as_json)
            well = False
            continue
        stopped.append(show.without_access(info.raw))
        if not as_json:
            show.print_line(sandbox_id)
    if as_json:
        show.print_json(stopped)
    return well


class _Control:
    """Passes signals on to the process; before there is one, they end the attempt."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._process: AsyncProcess | None = None
        self._patient = CancelScope()
        self._count = 0
        self.exit_code: int | None = None
        """What to leave with when a signal came before the process did."""

    def attach(self, process: AsyncProcess) -> None:
        """Name the process that signals go to from now on."""
        self._process = process

    def patiently(self) -> CancelScope:
        """Return a block that is left at the second signal, not at the first."""
        self._patient = CancelScope(shield=True)
        return self._patient

    async def watch(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            self._count += 1
            if self._process is None or self._count > len(_ESCALATION):
                # Nothing is there to be told, or it was told three times and its end was still not seen.
                self.exit_code = 128 + number
                self._tasks.cancel_scope.cancel()
                if self._count > 1:
                    self._patient.cancel()
            else:
                step = max(self._count - 1, 1 if number == signal.SIGTERM else 0)
                # In a task of its own: while one is under way the next must be heard.
                self._tasks.start_soon(self._send, self._process, _ESCALATION[step])

    async def _send(self, process: AsyncProcess, name: str) -> None:
        try:
            await process.signal(name)
        except ProcessEndedError:
            return
        except SandlotError as error:
            show.note(f"{name} could not be sent: {error}")


async def _controlled(work: Callable[[_Control], Awaitable[int]]) -> int:
    """Do `work` while signals are passed on. Its own error comes out bare, not in a group."""
    code = _EXIT_PIPE
    failure: SandlotError | None = None
    tasks = anyio.create_task_group()
    control = _Control(tasks)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with tasks:
            tasks.start_soon(control.watch, signals)
            try:
                code = await work(control)
            except SandlotError as error:
                failure = error
            except BrokenPipeError:
                # Nobody reads our output any more; Python must not complain of that while it leaves.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            tasks.cancel_scope.cancel()
    if control.exit_code is not None:
        return control.exit_code
    if failure is not None:
        raise failure
    return code


async def _run(sandbox: AsyncSandbox, command: Command, control: _Control) -> int:
    takes_input = _has_input()
    process = await sandbox.start(command.argv, stdin=takes_input, env=command.env, user=command.user, cwd=command.cwd)
    control.attach(process)
    failure: SandlotError | BrokenPipeError | None = None
    code = 0
    async with anyio.create_task_group() as tasks:

        async def pump() -> None:
            nonlocal failure
            try:
                await _send_input(process)
            except SandlotError as error:
                failure = error
                tasks.cancel_scope.cancel()

        if takes_input:
            tasks.start_soon(pump)
        try:
            code = await (_collect if command.as_json else _stream)(sandbox, process)
        except (SandlotError, BrokenPipeError) as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


async def _collect(sandbox: AsyncSandbox, process: AsyncProcess) -> int:
    result = await process.wait()
    show.print_json({"sandbox_id": sandbox.id, **result.raw})
    return result.exit_code if result.exit_code is not None else _EXIT_PIPE


async def _stream(sandbox: AsyncSandbox, process: AsyncProcess) -> int:
    async with process.output() as output:
        async for frame in output:
            await _write(frame)
        return await _explain(sandbox, output)


async def _write(frame: Frame) -> None:
    if frame.kind == "lost":
        show.note(f"{frame.lost_bytes} bytes of output were dropped: they were not read in time")
    elif frame.data:
        await _write_all(2 if frame.kind == "stderr" else 1, frame.data)


async def _explain(sandbox: AsyncSandbox, output: AsyncOutput) -> int:
    """Return the exit code, and say in words what a program's exit code cannot."""
    ended = output.exit or ProcessExit(None, None, None, None, None, None)
    if ended.start_error is not None:
        show.note(ended.start_error.message)
    elif ended.reason == "sandbox_stopped":
        info = await sandbox.refresh()
        show.note(f"the sandbox is {info.state}: {info.reason or 'no reason is known yet'}")
    elif ended.reason not in {"exited", "signaled", "killed"}:
        show.note(ended.message or f"the process ended: {ended.reason}")
    return ended.exit_code if ended.exit_code is not None else _EXIT_PIPE


async def _send_input(process: AsyncProcess) -> None:
    """Pass our standard input on until its end, or until nobody wants more of it."""
    waits = _may_block(0)
    try:
        while True:
            if waits:
                await anyio.wait_readable(0)
            data = os.read(0, _READ_BYTES)
            if not data:
                await process.close_stdin()
                return
            await process.write_stdin(data)
    except (StdinClosedError, ProcessEndedError, SandboxEndedError):
        # Nobody will read it. Why, the output says.
        return


async def _write_all(descriptor: int, data: bytes) -> None:
    """Write without ever blocking the loop, or a signal would not be seen while a reader is slow."""
    waits = _may_block(descriptor)
    rest = memoryview(data)
    while rest:
        if waits:
            await anyio.wait_writable(descriptor)
        rest = rest[os.write(descriptor, rest[:_PIPE_BUF] if waits else rest) :]


def _has_input() -> bool:
    try:
        os.fstat(0)
    except OSError:
        return False
    return not os.isatty(0)


def _may_block(descriptor: int) -> bool:
    """Tell pipes, sockets and terminals from files, which are always ready and cannot be waited for."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
