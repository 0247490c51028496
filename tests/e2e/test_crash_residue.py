"""kill -9 of the node agent, or of a runsc command, at any moment: after the next start nothing is left."""

import asyncio
import os
import random
import select
import signal
import traceback
from collections.abc import Generator
from pathlib import Path

import pytest
import uvloop

from sandboxd.runtime.base import RuntimeFailedError
from tests.runsc_kit import Place, place

ROUNDS = int(os.environ.get("SANDLOT_CRASH_ROUNDS", "30"))
LONGEST_SECONDS = 0.25
"""A create, start, kill and remove takes less than this where nothing else runs."""


@pytest.fixture(scope="module")
def node() -> Generator[Place]:
    with place() as made:
        made.guest("idle")
        yield made


def test_killed_node_agent(node: Place) -> None:
    moments = random.Random(1)  # noqa: S311 - moments of a crash, repeatable
    for _ in range(ROUNDS):
        child, progress = _fork_agent(node, rounds=4)
        _wait(progress, moments.uniform(0, LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        _finish(child, progress)
        asyncio.run(_next_start(node))
        assert node.leftovers() == []


def test_killed_command(node: Place) -> None:
    moments = random.Random(2)  # noqa: S311 - moments of a crash, repeatable
    for _ in range(ROUNDS):
        child, progress = _fork_agent(node, rounds=1)
        _wait(progress, moments.uniform(0, LONGEST_SECONDS))
        for pid in _commands(node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        status = _finish(child, progress)
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 0
        assert node.leftovers() == []


def test_clear_takes_the_rest(node: Place) -> None:
    async def once() -> None:
        runtime = node.runtime()
        await runtime.open()
        await runtime.clear()

    asyncio.run(once())
    assert node.traces() == []


def _fork_agent(node: Place, rounds: int) -> tuple[int, int]:
    """Fork a node agent that makes and removes sandboxes. Its pipe tells when the first create begins."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        assert os.read(reader, 1) == b"b"
        return child, reader
    status = 1
    try:
        os.close(reader)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:  # the node agent's own
            loop.run(_agent(node, rounds, writer))
        status = 0
    except BaseException:  # noqa: BLE001 - the fork must not go on as a test run
        traceback.print_exc()
    os._exit(status)


async def _agent(node: Place, rounds: int, writer: int) -> None:
    runtime = node.runtime()
    await runtime.open()
    for number in range(rounds):
        launch = node.launch()
        if not number:
            os.write(writer, b"b")
        try:
            await runtime.create(launch)
            await runtime.start(launch.sandbox_id)
            await runtime.kill(launch.sandbox_id)
        except RuntimeFailedError:
            pass  # the command was killed: what counts is that the undo is complete
        await runtime.remove(launch.sandbox_id)
        assert await runtime.known() == set()


async def _next_start(node: Place) -> None:
    runtime = node.runtime()
    await runtime.open()
    for sandbox_id in await runtime.known():
        await runtime.remove(sandbox_id)
    assert await runtime.known() == set()
    await runtime.close()


def _wait(progress: int, seconds: float) -> None:
    """Until the moment, or the agent's own end."""
    select.select([progress], [], [], seconds)


def _finish(child: int, progress: int) -> int:
    os.close(progress)
    return os.waitpid(child, 0)[1]


def _commands(node: Place) -> list[int]:
    """The runsc commands that run now: they may be in their act group or, for a while, in the sandbox's."""
    found: list[int] = []
    for group in Path("/sys/fs/cgroup").glob(f"memory/sandlot-{node.instance}/*/*/cgroup.procs"):
        found += [pid for pid in map(int, _read(group).split()) if _is_command(pid)]
    return found


def _is_command(pid: int) -> bool:
    arguments = _read(Path(f"/proc/{pid}/cmdline")).split(b"\0")
    return b"create" in arguments or b"start" in arguments


def _read(path: Path) -> bytes:
    """What is in it, as long as it is there."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
