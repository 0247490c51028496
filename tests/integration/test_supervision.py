import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from infra.launcher import lock
from infra.launcher.account import LauncherError
from infra.launcher.child import closed_ancestors, outermost
from infra.launcher.supervisor import Program, Reaper, Supervised, describe

WAIT_SECONDS = 30


async def never() -> bool:
    return False


def program(tmp_path: Path, code: str, *, stop_seconds: float = 30) -> Program:
    return Program(
        name="thing",
        argv=(sys.executable, "-c", code),
        env=dict(os.environ),
        log=tmp_path / "thing.log",
        ready=never,
        stop_seconds=stop_seconds,
    )


@asynccontextmanager
async def supervised(chosen: Program) -> AsyncGenerator[tuple[Supervised, list[str]]]:
    said: list[str] = []
    reaper = Reaper()
    reaper.open()
    thing = Supervised(program=chosen, reaper=reaper, say=said.append)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(thing.keep())
            try:
                yield thing, said
            finally:
                await thing.stop()
    finally:
        reaper.close()


async def until(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110 - log files and /proc tell nobody when they change
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")


FOREVER = "import time; print('started', flush=True); time.sleep(1000)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('started', flush=True); time.sleep(1000)"


def starts(tmp_path: Path) -> int:
    log = tmp_path / "thing.log"
    return log.read_text().count("started") if log.exists() else 0


async def test_what_dies_is_started_again(tmp_path: Path) -> None:
    async with supervised(program(tmp_path, FOREVER)) as (thing, said):
        await until(lambda: starts(tmp_path) == 1, "first start")
        first = thing.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: starts(tmp_path) == 2, "second start")
        assert thing.pid not in {None, first}
        assert thing.deaths == 1
        assert "SIGKILL" in said[0]


async def test_stop_ends_it_for_good(tmp_path: Path) -> None:
    async with supervised(program(tmp_path, FOREVER)) as (thing, said):
        await until(lambda: starts(tmp_path) == 1, "start")
        pid = thing.pid
        await thing.stop()
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()
        await thing.stop()
    assert not said


async def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with supervised(program(tmp_path, STUBBORN, stop_seconds=0.2)) as (thing, said):
        await until(lambda: starts(tmp_path) == 1, "start")
        await thing.stop()
    assert "killing" in said[0]


async def test_stop_during_the_pause_before_a_restart(tmp_path: Path) -> None:
    async with supervised(program(tmp_path, "raise SystemExit(3)")) as (thing, said):
        await until(lambda: thing.deaths >= 2, "two deaths")
        await thing.stop()
        assert "ended with status 3" in said[0]


async def test_orphans_are_collected(tmp_path: Path) -> None:
    """What a program leaves behind when it dies becomes the launcher's, and is not left a zombie."""
    code = (
        "import os, time\n"
        "if (pid := os.fork()) == 0:\n"
        "    while os.getppid() != PARENT: time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "print('orphan', pid, flush=True)\n"
        "os._exit(0)\n"
    ).replace("PARENT", str(os.getpid()))
    async with supervised(program(tmp_path, code)) as (thing, _):
        await until(lambda: thing.deaths >= 1, "the program ended")
        await thing.stop()
        log = (tmp_path / "thing.log").read_text().split()
        orphans = [int(word) for before, word in pairwise(log) if before == "orphan"]
        assert orphans
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "orphans collected")


def test_two_launchers_of_one_instance_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    assert lock.holder(path) is None
    with lock.hold(path, "here"):
        assert lock.holder(path) == os.getpid()
        with pytest.raises(LauncherError, match=f"pid {os.getpid()}") as caught, lock.hold(path, "here"):
            pass
        assert "sandlotd down" in caught.value.fix
    assert lock.holder(path) is None
    with lock.hold(path, "here"):
        pass


def test_exit_in_words() -> None:
    assert describe(-9) == "was ended by SIGKILL"
    assert describe(2) == "ended with status 2"


def test_a_closed_home_is_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code, python = home / "a" / "sandlot", home / "python"
    for path in (code, python):
        path.mkdir(parents=True)
    # pytest's own directories are closed too; only what is below counts here.
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o711)
    home.chmod(0o700)
    assert closed_ancestors([code, python, Path("/usr")]) == {home: {code, python}}


def test_what_lies_below_another_is_shown_with_it() -> None:
    assert outermost([Path("/r/a/b"), Path("/r/a"), Path("/r/ab")]) == [Path("/r/a"), Path("/r/ab")]
