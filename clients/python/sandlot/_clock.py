"""Waiting, and not being stopped while cleaning up: once for each colour of function."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import anyio

_CLEANUP_SECONDS: Final = 60


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
