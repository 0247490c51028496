"""Blocking work beside the event loop, never left running behind its caller's back."""

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], stop: Event | None = None) -> T:
    """Do blocking work; a cancellation sets `stop`, and waits for the end: nobody else meets its files meanwhile."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        await asyncio.wait([future])
        raise
