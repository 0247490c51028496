"""The life of one box: prepare, start, wait until it serves, stay, end."""

import asyncio
import compileall
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from infra import residue
from infra.config import LauncherConfig
from infra.launcher import account, lock, programs, swap, told
from infra.launcher.account import LauncherError
from infra.launcher.supervisor import Program, Reaper, Supervised
from infra.launcher.told import UntoldError
from infra.setup.places import REPOSITORY, base_image_path, guest_path
from sandboxd.config import NodeConfig

_READY_SECONDS: Final = 120
_ASK_SECONDS: Final = 0.1
_DEATHS_AT_START: Final = 3
_LEAVE_SECONDS: Final = 200.0
_LOG_LINES: Final = 20


def say(text: str) -> None:
    print(f"sandlotd: {text}", flush=True)


def prepare(config: LauncherConfig) -> None:
    """Bring the machine to the point where the programs can start. LauncherError says what is missing."""
    account.require_root()
    for path in (config.runsc_path, guest_path(config.cache_dir), base_image_path(config.cache_dir)):
        if not path.exists():
            raise LauncherError(f"{path} is missing", "make setup")
    account.ensure_directories(config, account.ensure_account(config.api_user))
    undo_restore(config)
    # The api's user cannot write beside the sources; compiled now, it starts sooner every time.
    for package in ("api", "sandboxd", "netpolicy", "tunnels", "programs"):
        compileall.compile_dir(REPOSITORY / package, quiet=2)


def undo_restore(config: LauncherConfig) -> None:
    """Undo a restore that was cut off. LauncherError while one is under way."""
    if not (config.data_dir / swap.JOURNAL).exists():
        return
    if lock.holder(config.lock_path) not in {None, os.getpid()}:
        raise LauncherError("a restore is under way", "wait for it to end")
    if swap.undo(config.data_dir):
        say("undid a restore that was cut off: everything is as it was before it")


def up(config: LauncherConfig, env: Mapping[str, str], *, stop_sandboxes: bool) -> None:
    """Run the platform in the foreground until SIGINT or SIGTERM."""
    account.require_root()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with lock.hold(config.lock_path, config.instance):
        prepare(config)
        # A later start must not take the last one's word for where the api listens.
        config.url_path.unlink(missing_ok=True)
        asyncio.run(_live(config, env, stop_sandboxes=stop_sandboxes))
        if stop_sandboxes:
            _teardown(config, env)


def down(config: LauncherConfig, env: Mapping[str, str]) -> None:
    """End the programs, the sandboxes, and what the node made in the kernel. LauncherError: something would not go."""
    account.require_root()
    if lock.holder(config.lock_path) is not None:
        say("stopping the programs")
        if not lock.end_holder(config.lock_path, patience_seconds=_LEAVE_SECONDS):
            raise LauncherError("the running launcher does not end", "kill it by its pid, then run this again")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with lock.hold(config.lock_path, config.instance):
        prepare(config)
        _teardown(config, env)
    say("everything is down")


def wait_ready(config: LauncherConfig, env: Mapping[str, str], program: str, seconds: float) -> None:
    """Wait until one program answers. LauncherError when it does not."""
    asks = {
        "node": programs.node(config, env).ready,
        "api": partial(programs.api_lives, config),
        "gateway": programs.gateway(config, env).ready,
    }
    if program not in asks:
        raise LauncherError(f"there is no program {program!r:.20}", f"say one of: {', '.join(asks)}")

    async def wait() -> None:
        async with asyncio.timeout(seconds):
            while not await asks[program]():  # noqa: ASYNC110 - a program that starts tells nobody
                await asyncio.sleep(_ASK_SECONDS)

    try:
        asyncio.run(wait())
    except TimeoutError:
        raise LauncherError(f"{program} does not answer after {seconds:g} s", "look at its log") from None


async def _live(config: LauncherConfig, env: Mapping[str, str], *, stop_sandboxes: bool) -> None:
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_end.set)
    chosen = [programs.node(config, env), programs.api(config, env), programs.gateway(config, env)]
    node, api, gateway = await _started(chosen)
    async with asyncio.TaskGroup() as group:
        for supervised in (node, api, gateway):
            group.create_task(supervised.keep())
        try:
            if await _serving([node, api, gateway], asked_to_end):
                print(welcome(*_told(config)), flush=True)
                await asked_to_end.wait()
        finally:
            say("stopping the programs" if stop_sandboxes else "stopping the programs; sandboxes keep running")
            await gateway.stop()
            await api.stop()
            await node.stop()
    if not stop_sandboxes:
        say("'sandlotd up' takes the sandboxes up again, 'sandlotd down' ends them")


async def _started(chosen: Sequence[Program]) -> list[Supervised]:
    reaper = Reaper()
    reaper.open()
    return [Supervised(program=program, reaper=reaper, say=say) for program in chosen]


async def _serving(chosen: Sequence[Supervised], asked_to_end: asyncio.Event) -> bool:
    """Wait until all programs answer; False when the end was asked for first."""
    started = asyncio.get_running_loop().time()
    program = chosen[0].program
    try:
        async with asyncio.timeout(_READY_SECONDS):
            for supervised in chosen:
                program = supervised.program
                while not await program.ready():
                    if asked_to_end.is_set():
                        return False
                    if supervised.deaths >= _DEATHS_AT_START:
                        raise _not_ready(program, "does not start")
                    await asyncio.sleep(_ASK_SECONDS)
                passed = asyncio.get_running_loop().time() - started
                say(f"{program.name} is ready after {passed:.1f} s")
    except TimeoutError:
        raise _not_ready(program, f"is not ready after {_READY_SECONDS} s") from None
    return True


def _not_ready(program: Program, what: str) -> LauncherError:
    return LauncherError(
        "\n    ".join([f"{program.name} {what}; the end of {program.log}:", *_last_lines(program.log)]),
        "the last lines name the cause; 'sandlotd doctor' checks the machine",
    )


def _told(config: LauncherConfig) -> tuple[str, str]:
    try:
        return told.url(config.url_path), told.key(config.key_path)
    except UntoldError as error:
        raise LauncherError(f"the api did not say how to reach it: {error}", f"look at {config.logs_dir}") from error


def welcome(url: str, key: str) -> str:
    """Return what is printed once the box serves, with a command to paste."""
    command = (
        f"curl -s {url}/v1/run -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        """-d '{"command": {"shell": "echo hello from $(uname -s), user $(whoami)"}}'"""
    )
    return (
        f"\n  URL   {url}\n  key   {key}\n"
        f"\n  export SANDLOT_URL={shlex.quote(url)} SANDLOT_API_KEY={shlex.quote(key)}\n"
        f"\n  {command}\n\n  Ctrl-C stops the programs and leaves sandboxes running; 'sandlotd down' ends everything.\n"
    )


def _teardown(config: LauncherConfig, env: Mapping[str, str]) -> None:
    """Have the node agent end its sandboxes and undo what it made, and look whether that is so."""
    say("ending the sandboxes")
    log = config.logs_dir / "down.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "sandboxd", "down"],
            env=programs.environment(env, config, home="/root", reads=NodeConfig),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    for socket in (config.node_socket, config.api_socket):
        # What the api's user put in its place is its own, and no reason to stop here.
        with suppress(OSError):
            socket.unlink(missing_ok=True)
    left = sorted(str(item) for item in _residue(config))
    if done.returncode != 0 or left:
        words = _last_lines(log) if done.returncode != 0 else []
        raise LauncherError("\n    ".join(["not everything could be removed:", *left, *words]), "run 'sandlotd doctor'")


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    # What the api's user wrote goes to root's terminal, which must not take it for commands.
    return ["".join(each if each.isprintable() else "?" for each in line) for line in lines]


def _residue(config: LauncherConfig) -> set[residue.Residue]:
    return residue.find(config.instance, [config.run_dir, config.data_dir / "upper"])
