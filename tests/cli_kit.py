"""Starts the `sandlot` command as a person or a program would."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from stub_api import StubApi

BARE = {"PATH": os.environ["PATH"], "COLUMNS": "200", "TERM": "dumb", "XDG_CONFIG_HOME": "/nonexistent"}
_PATIENCE_SECONDS = 60.0


def environment(api: StubApi) -> dict[str, str]:
    return BARE | {"SANDLOT_URL": api.url, "SANDLOT_API_KEY": api.key}


def sandlot(
    api: StubApi, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sandlot", *arguments],
        env=environment(api) | (env or {}),
        input=stdin,
        capture_output=True,
        check=False,
    )


def popen(api: StubApi, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen[bytes]([sys.executable, "-m", "sandlot", *arguments], env=environment(api), **pipes)


def wait_until(reached: Callable[[], object], what: str = "what the test waits for") -> None:
    limit = time.monotonic() + _PATIENCE_SECONDS
    turn = threading.Event()
    while not reached():
        assert time.monotonic() < limit, what
        turn.wait(0.01)


class Terminal:
    """A person at a terminal: what is typed, and what is seen."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        # A system tells the terminal's own session; here it belongs to none.
        self.process.send_signal(signal.SIGWINCH)

    def expect(self, pattern: bytes) -> None:
        """Read until what was seen so far matches."""
        while not re.search(pattern, self.seen):
            self._read(f"never saw {pattern!r} in {self.seen!r}")

    def leave(self) -> int:
        """Read to the end and return the exit code."""
        try:
            while True:
                self._read("never ended")
        except EOFError:
            return self.process.wait(_PATIENCE_SECONDS)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._master)[3] & termios.ICANON

    def _read(self, what: str) -> None:
        timer = threading.Timer(_PATIENCE_SECONDS, self.process.kill)
        timer.start()
        try:
            data = os.read(self._master, 65_536)
        except OSError:
            data = b""
        finally:
            timer.cancel()
        if not data:
            raise EOFError(what)
        self.seen += data


@contextmanager
def terminal(command: list[str], env: dict[str, str]) -> Generator[Terminal, None, None]:
    """Start a command with a terminal of its own, 40 rows by 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    variables = {name: value for name, value in env.items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen[bytes](
        command, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            os.close(master)
