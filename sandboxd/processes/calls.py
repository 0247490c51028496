"""The calls on processes: start, run, list, look, result, standard input, signal, resize."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final

from sandboxd.contract.frames import Frame
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import (
    Process,
    ResizeSpec,
    ResultOptions,
    RunResult,
    SignalSpec,
    StdinResult,
)
from sandboxd.contract.states import ProcessState
from sandboxd.processes.live import LiveSandbox, guarded
from sandboxd.processes.results import Collector
from sandboxd.processes.streams import KEEPALIVE_SECONDS, OutputOptions, Run, open_output, open_run
from sandboxd.processes.trust import Event, Lost, check_heads, check_process, check_stdin

BEAT_SECONDS: Final = 15.0
_CHECKED_AT_ONCE: Final = 64
_CLOCKS: Final = timedelta(milliseconds=50)
"""How far a sandbox's clock and the node's may be apart."""

Beat = Callable[[], Awaitable[None]]
"""Called now and then while a call waits, so that the answer does not look dead."""
Now = Callable[[], datetime]


async def start(sandbox: LiveSandbox, spec: dict[str, Any]) -> tuple[Process, bool]:
    """Start or join a process; its record, and whether it was there already."""
    async with guarded(sandbox):
        started = await sandbox.guest.start(spec)
        sandbox.process_started()
        return check_process(started.process, sandbox.id, spec["id"]), started.joined


async def run(
    sandbox: LiveSandbox,
    spec: dict[str, Any],
    options: ResultOptions,
    *,
    wait_seconds: float | None,
    beat: Beat,
    now: Now,
) -> RunResult:
    """Start or join a process and return its result, after `wait_seconds` also of a running one."""
    loop = asyncio.get_running_loop()
    give_up = None if wait_seconds is None else loop.time() + wait_seconds
    async with open_run(sandbox, spec) as opened:
        collector = Collector(options)
        whole = await _collect(opened, collector, give_up, beat)
        if collector.exit is not None:
            known = not collector.lost or sandbox.ended.is_set()
            process = opened.process if known else await latest(sandbox, opened.process)
            return _with_refusals(sandbox, collector.result(process, now()), now())
        if whole and not collector.lost and opened.process.state == ProcessState.RUNNING:
            return _with_refusals(sandbox, collector.result(opened.process, now()), now())
    left = None if give_up is None else max(0.0, give_up - loop.time())
    return await result(sandbox, spec["id"], options, wait_seconds=left, beat=beat, now=now)


async def _collect(opened: Run, collector: Collector, give_up: float | None, beat: Beat) -> bool:
    """Take events until the end, or until it is time to answer.

    False when the process was joined so late that only its record and the kept head can tell how it began.
    """
    loop = asyncio.get_running_loop()
    beat_at = loop.time() + BEAT_SECONDS
    try:
        async with asyncio.timeout_at(give_up), aclosing(opened.events) as events:
            async for event in events:
                if opened.joined and isinstance(event, Lost) and event.seq == 0 and event.lost_bytes:
                    return False
                collector.add(event)
                if loop.time() >= beat_at:
                    await beat()
                    beat_at = loop.time() + BEAT_SECONDS
    except TimeoutError:
        if give_up is None or loop.time() < give_up:
            raise
    return True


async def latest(sandbox: LiveSandbox, process: Process) -> Process:
    """Return the record as it is now, the old one when the sandbox has ended."""
    try:
        return await look(sandbox, process.id)
    except ProblemError:
        if not sandbox.ended.is_set():
            raise
        return process


async def listing(sandbox: LiveSandbox, state: str | None, tag: str | None) -> list[Process]:
    """List processes, oldest first."""
    async with guarded(sandbox):
        found: list[Process] = []
        for count, record in enumerate(await sandbox.guest.processes(state, tag), 1):
            found.append(check_process(record, sandbox.id))
            if count % _CHECKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found


async def look(sandbox: LiveSandbox, process_id: str, wait_seconds: float = 0) -> Process:
    """Return one process, after waiting for its end at most that long."""
    async with guarded(sandbox):
        return check_process(await sandbox.guest.process(process_id, wait_seconds), sandbox.id, process_id)


async def result(
    sandbox: LiveSandbox,
    process_id: str,
    options: ResultOptions,
    *,
    wait_seconds: float | None,
    beat: Beat,
    now: Now,
) -> RunResult:
    """Return the result of a process that was started before."""
    process = await _wait_for_end(sandbox, process_id, wait_seconds, beat)
    collector = Collector(options, base=process)
    async with open_output(sandbox, process_id, OutputOptions()) as events, aclosing(events):
        first: Event | None = await anext(events, None)
        if isinstance(first, Lost) and first.lost_bytes:
            async with guarded(sandbox):
                heads = check_heads(await sandbox.guest.head(process_id))
            _add_heads(collector, heads, first.seq + first.lost_bytes)
        if first is not None:
            collector.add(first)
        async for event in events:
            collector.add(event)
    if collector.exit is not None and process.state == ProcessState.RUNNING:
        process = await latest(sandbox, process)
    return _with_refusals(sandbox, collector.result(process, now()), now())


def _with_refusals(sandbox: LiveSandbox, found: RunResult, now: datetime) -> RunResult:
    """Add what the sandbox was refused meanwhile: often it is why a command failed."""
    denied = sandbox.denied(found.started_at - _CLOCKS, (found.ended_at or now) + _CLOCKS)
    if not denied:
        return found
    path = f"/v1/sandboxes/{sandbox.id}/egress"
    hint = found.hint or f"It was refused {denied[-1]['name'] or denied[-1]['address']}: allow it with PUT {path}."
    return found.model_copy(update={"egress_denied": denied, "hint": hint})


async def _wait_for_end(sandbox: LiveSandbox, process_id: str, wait_seconds: float | None, beat: Beat) -> Process:
    loop = asyncio.get_running_loop()
    give_up = None if wait_seconds is None else loop.time() + wait_seconds
    while True:
        left = KEEPALIVE_SECONDS if give_up is None else min(KEEPALIVE_SECONDS, max(0.0, give_up - loop.time()))
        asked_at = loop.time()
        process = await look(sandbox, process_id, left)
        if process.state == ProcessState.ENDED or (give_up is not None and loop.time() >= give_up):
            return process
        if loop.time() < asked_at + left / 2:
            await asyncio.sleep(1)  # a guest that does not wait is not asked in a loop
        await beat()


def _add_heads(collector: Collector, heads: list[Frame], before: int) -> None:
    """Add the kept first bytes of each channel, as far as they lie before the ring."""
    for frame in heads:
        payload = frame.payload[: max(0, before - frame.seq)]
        if payload:
            collector.add_output(frame.kind, frame.seq, payload)


async def write_stdin(
    sandbox: LiveSandbox, process_id: str, body: AsyncIterator[bytes], *, offset: int | None, close: bool
) -> StdinResult:
    """Pass standard input on."""
    async with guarded(sandbox):
        return check_stdin(await sandbox.guest.write_stdin(process_id, body, offset=offset, close=close))


async def signal(sandbox: LiveSandbox, process_id: str, spec: SignalSpec, key: str | None) -> None:
    """Send a signal."""
    async with guarded(sandbox):
        await sandbox.guest.signal(process_id, spec.signal, spec.scope, key)


async def resize(sandbox: LiveSandbox, process_id: str, spec: ResizeSpec) -> None:
    """Resize a terminal."""
    async with guarded(sandbox):
        await sandbox.guest.resize(process_id, spec.rows, spec.cols)
