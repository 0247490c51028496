"""Runs a command in a sandbox as if it ran here: output, input, signals, exit code."""

import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from sandlot._async.client import AsyncClient
from sandlot._async.process import AsyncProcess
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import show, terminal
from sandlot.cli.work import EXIT_INTERRUPTED, EXIT_PIPE, stop_writing
from sandlot.errors import ProcessEndedError, ProcessNotFoundError, SandboxEndedError, SandlotError, StdinClosedError
from sandlot.models import Frame, ProcessExit

_READ_BYTES: Final = 65_536
_PIPE_BUF: Final = 4096
"""A pipe that is ready for writing takes this much without blocking."""
_ESCALATION: Final = ("SIGINT", "SIGTERM", "SIGKILL")


@dataclass(frozen=True)
class Command:
    """What to run, and how to show it."""

    argv: Sequence[str]
    env: dict[str, str]
    user: str | None
    cwd: str | None
    as_json: bool
    with_tty: bool = False
    detach_keys: bytes = b""


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
            return EXIT_INTERRUPTED
        try:
            code = await _run(sandbox, command, control)
        except _DetachedError:
            await client.aclose()
            return 0
        except BaseException:
            await sandbox.aclose()
            raise
        await sandbox.aclose()
        return code

    return await _controlled(work)


async def run_in_present(client: AsyncClient, name: str, command: Command) -> int:
    """Run in a sandbox that is there already, and return the exit code."""

    async def work(control: "_Control") -> int:
        try:
            return await _run(await AsyncSandbox.connect(name, client=client), command, control)
        except _DetachedError:
            return 0

    return await _controlled(work)


async def join(client: AsyncClient, name: str, process_id: str | None, detach_keys: bytes) -> int:
    """Join a process that runs already, and return its exit code; 0 when it was left."""

    async def work(control: "_Control") -> int:
        sandbox = await AsyncSandbox.connect(name, client=client)
        process = await _chosen(sandbox, process_id)
        try:
            if process.info.tty and terminal.is_terminal():
                return await _converse(sandbox, process, detach_keys)
            control.attach(process)
            return await _follow(sandbox, process)
        except _DetachedError:
            return 0

    return await _controlled(work)


async def _chosen(sandbox: AsyncSandbox, process_id: str | None) -> AsyncProcess:
    if process_id is not None:
        return await sandbox.process(process_id)
    running = await sandbox.processes(state="running")
    if not running:
        problem = {"code": "process_not_found", "detail": f"no process runs in {sandbox.id}"}
        raise ProcessNotFoundError(404, problem | {"hint": "Start one with `sandlot exec`."})
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return max(running, key=lambda one: one.info.started_at or oldest)


class _DetachedError(Exception):
    """The person left, the program goes on."""


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
    code = EXIT_PIPE
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
                stop_writing()
            tasks.cancel_scope.cancel()
    if control.exit_code is not None:
        return control.exit_code
    if failure is not None:
        raise failure
    return code


async def _run(sandbox: AsyncSandbox, command: Command, control: _Control) -> int:
    if command.with_tty:
        return await _run_in_terminal(sandbox, command)
    takes_input = _has_input()
    process = await sandbox.start(command.argv, stdin=takes_input, env=command.env, user=command.user, cwd=command.cwd)
    control.attach(process)
    return await _follow(sandbox, process, takes_input=takes_input, as_json=command.as_json)


async def _run_in_terminal(sandbox: AsyncSandbox, command: Command) -> int:
    process = await sandbox.start(
        command.argv, tty=terminal.size(), env=command.env, user=command.user, cwd=command.cwd
    )
    return await _converse(sandbox, process, command.detach_keys)


async def _converse(sandbox: AsyncSandbox, process: AsyncProcess, detach_keys: bytes) -> int:
    attachment = process.attach()
    conversation = terminal.Conversation(attachment, detach_keys)
    await conversation.hold()
    if conversation.is_detached:
        show.note(f"detached; go on with: sandlot attach {sandbox.id} {process.id}")
        raise _DetachedError
    if conversation.exit_code is not None:
        return conversation.exit_code
    return await _explain(sandbox, attachment.exit)


async def _follow(
    sandbox: AsyncSandbox, process: AsyncProcess, *, takes_input: bool | None = None, as_json: bool = False
) -> int:
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

        if takes_input or (takes_input is None and _has_input() and not process.info.stdin_closed):
            tasks.start_soon(pump)
        try:
            code = await (_collect if as_json else _stream)(sandbox, process)
        except (SandlotError, BrokenPipeError) as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


async def _collect(sandbox: AsyncSandbox, process: AsyncProcess) -> int:
    result = await process.wait()
    show.print_json({"sandbox_id": sandbox.id, **result.raw})
    return result.exit_code if result.exit_code is not None else EXIT_PIPE


async def _stream(sandbox: AsyncSandbox, process: AsyncProcess) -> int:
    async with process.output() as output:
        async for frame in output:
            await _write(frame)
        return await _explain(sandbox, output.exit)


async def _write(frame: Frame) -> None:
    if frame.kind == "lost":
        show.note(f"{frame.lost_bytes} bytes of output were dropped: they were not read in time")
    elif frame.data:
        await _write_all(2 if frame.kind == "stderr" else 1, frame.data)


async def _explain(sandbox: AsyncSandbox, seen: ProcessExit | None) -> int:
    """Return the exit code, and say in words what a program's exit code cannot."""
    ended = seen or ProcessExit(None, None, None, None, None, None)
    if ended.start_error is not None:
        show.note(ended.start_error.message)
    elif ended.reason == "sandbox_stopped":
        info = await sandbox.refresh()
        show.note(f"the sandbox is {info.state}: {info.reason or 'no reason is known yet'}")
    elif ended.reason not in {"exited", "signaled", "killed"}:
        show.note(ended.message or f"the process ended: {ended.reason}")
    return ended.exit_code if ended.exit_code is not None else EXIT_PIPE


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
