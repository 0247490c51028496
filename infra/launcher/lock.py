"""One launcher for one instance: a lock that dies with its holder, and names it."""

import fcntl
import os
import select
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.launcher.account import LauncherError


@contextmanager
def hold(path: Path, instance: str) -> Generator[None]:
    """Hold the instance's lock with this process's id in it. LauncherError when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Whoever may open it may hold it, and would have us take the number in it for a launcher's.
        os.fchmod(descriptor, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            raise LauncherError(
                f"instance '{instance}' is already up (pid {pid})",
                "use it, or stop it with Ctrl-C there or 'sandlotd down' here; another one needs its own "
                "SANDLOT_INSTANCE, SANDLOT_DATA_DIR, SANDLOT_RUN_DIR and SANDLOT_API_PORT",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """Return the process id of the launcher that holds the lock now; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).decode().strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


def end_holder(path: Path, *, patience_seconds: float) -> bool:
    """Ask the launcher that holds the lock to end, and wait for it. False when it did not within the time."""
    pid = holder(path)
    if pid is None:
        return True
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(patience_seconds * 1000))
    finally:
        os.close(descriptor)
