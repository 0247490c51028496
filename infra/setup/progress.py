"""What a person sees of set-up: one line a step with its duration, signs of life, and the fix when it fails."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SIGN_OF_LIFE_SECONDS: Final = 10
_TAIL_LINES: Final = 15


class SetupError(Exception):
    """A step cannot go on. `fix` says what the person at the keyboard does about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class Progress:
    """Writes set-up's lines to standard output."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._step = ""

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Name the lines printed inside; SetupError passes through with the name in front."""
        self._step = name
        try:
            yield
        except SetupError as error:
            raise SetupError(f"{name}: {error.what}", error.fix) from error
        except OSError as error:
            raise SetupError(f"{name}: {error}", "see the message; run as root, with room on the disk") from error

    def say(self, text: str) -> None:
        print(f"setup: {self._step}: {text}", flush=True)

    def command(
        self,
        argv: Sequence[str],
        *,
        doing: str,
        fix: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a long command with its output in a log file. SetupError with the log's last lines when it fails."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{self._step.replace(' ', '-')}.log"
        self.say(f"{doing} (log: {log})")
        started = time.monotonic()
        with log.open("ab") as output:
            output.write(f"$ {' '.join(argv)}\n".encode())
            output.flush()
            try:
                process = subprocess.Popen(
                    argv,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            except FileNotFoundError as error:
                raise SetupError(f"{argv[0]} is missing", fix) from error
            status = self._await(process, doing, started)
        if status != 0:
            raise SetupError(f"{doing} failed (status {status}):\n{_tail(log)}", fix)

    def _await(self, process: subprocess.Popen[bytes], doing: str, started: float) -> int:
        descriptor = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            while not poll.poll(_SIGN_OF_LIFE_SECONDS * 1000):
                self.say(f"{doing}: {time.monotonic() - started:.0f} s")
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        finally:
            os.close(descriptor)
        return process.wait()


def output_of(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str | None:
    """Return what a short command says, or None when it is missing or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def fail(error: SetupError) -> None:
    print(f"setup: FAILED: {error.what}\n  fix: {error.fix}", file=sys.stderr, flush=True)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines)
