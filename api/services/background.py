"""Work that outlives the request that started it, and ends with the platform."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import structlog

_log = structlog.get_logger()
T = TypeVar("T")


class Background:
    """A task group whose tasks cannot bring each other down."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what is still running."""
        for task in tuple(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
        """Run `work`. The task's result is None where it failed in an unforeseen way, which is logged."""
        task = self._group.create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _guarded(work: Coroutine[Any, Any, T]) -> T | None:
    try:
        return await work
    except Exception:  # noqa: BLE001 - a bug in one piece of work must not end the others
        _log.exception("background work failed")
        return None
