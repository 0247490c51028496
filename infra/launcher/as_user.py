"""Short commands of ours run as the api's user, on what is that user's."""

import subprocess
import sys
import threading
from collections.abc import Mapping

from api.config import Settings
from infra.config import LauncherConfig
from infra.launcher import programs


class CommandFailedError(Exception):
    """The command failed, took too long, or said more than it may. `str()` is its last words, fit for a terminal."""


def run(
    config: LauncherConfig, env: Mapping[str, str], module: str, *arguments: str, most_bytes: int, seconds: float
) -> bytes:
    """Run a module and return what it prints. CommandFailedError.

    Another process of that user may have made it say anything: no more is read than asked for, and for no longer.
    """
    child = [sys.executable, "-m", "infra.launcher.child", "--user", config.api_user, "--"]
    with subprocess.Popen(
        [*child, sys.executable, "-m", module, *arguments],
        env=programs.environment(env, config, home=str(config.api_data_dir), reads=Settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        timer = threading.Timer(seconds, running.kill)
        timer.start()
        try:
            said = running.stdout.read(most_bytes + 1) if running.stdout is not None else b""
            if len(said) > most_bytes:
                running.kill()
            status = running.wait()
        finally:
            timer.cancel()
            running.kill()
    if status != 0 or len(said) > most_bytes:
        raise CommandFailedError(_last_words(said) or f"it ended with {status} and said nothing")
    return said


def _last_words(said: bytes) -> str:
    lines = said[-4096:].decode(errors="replace").strip().splitlines()
    return "".join(each for each in lines[-1][:300] if each.isprintable()) if lines else ""
