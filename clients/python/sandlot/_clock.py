"""Waiting, locks, threads, and not being stopped while cleaning up: once for each colour of function."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

import anyio
from anyio import to_thread

_CLEANUP_SECONDS: Final = 60
_END: Final = object()

_Result = TypeVar("_Result")

AsyncLock = anyio.Lock
Lock = threading.Lock


async def async_sleep(seconds: float) -> None:
    await anyio.sleep(seconds)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def async_shield() -> AbstractContextManager[Any]:
    """Return a block that a cancellation from outside does not stop, for a minute at most."""
    return anyio.move_on_after(_CLEANUP_SECONDS, shield=True)


def shield() -> AbstractContextManager[Any]:
    """Return a plain block: nobody cancels blocking code."""
    return nullcontext()


async def async_in_thread(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Do what may wait for a disk, without holding up the loop."""
    return await to_thread.run_sync(work, *arguments)


def in_thread(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Do it here and now."""
    return work(*arguments)


async def async_steps(items: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what a blocking iterator yields, each step in a thread."""
    while True:
        item: Any = await to_thread.run_sync(next, items, _END)
        if item is _END:
            return
        yield item


def steps(items: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same, here."""
    yield from items
