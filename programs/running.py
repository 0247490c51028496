"""A program from its first line to its last."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import uvloop

from programs.libc import PR_SET_DUMPABLE, prctl
from programs.logs import set_up_logs


def run(work: Coroutine[Any, Any, None], *, log_level: str = "info") -> None:
    """Do the work of a program whose memory is nobody else's: keys, and what callers send, go into no dump."""
    prctl(PR_SET_DUMPABLE, 0, "dumpable")
    set_up_logs(log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def told_to_end() -> asyncio.Event:
    """Return what is set at SIGTERM or SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told
