"""Waiting for, signalling and reaping host processes by descriptor, so that a reused pid is never hit."""

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress


def open_pidfd(pid: int) -> int | None:
    """Open a descriptor of a process; None when there is none. A zombie still has one."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def send_kill(pidfd: int) -> None:
    """Send SIGKILL; nothing happens when the process has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def reap(pidfd: int) -> os.waitid_result | None:
    """Take the exit status of an ended child; None when it is no child of ours, or has not ended."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def in_our_session(pid: int) -> bool:
    """Tell whether a process, or the zombie of one, belongs to our session; what the runtime leaves behind does not."""
    try:
        return os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return False


async def ended(pidfd: int) -> None:
    """Wait until the process has ended. The descriptor may have no other waiter in this loop."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(pidfd)
        if not done.done():
            done.set_result(None)

    loop.add_reader(pidfd, readable)
    try:
        await done
    finally:
        loop.remove_reader(pidfd)


async def all_ended(pidfds: Iterable[int]) -> None:
    """Wait until every one of the processes has ended."""
    for pidfd in pidfds:
        await ended(pidfd)
