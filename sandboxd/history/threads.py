"""Threads for what is kept: a slow disk holds up logs and samples, and nothing that a sandbox waits for."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POOL: Final = ThreadPoolExecutor(max_workers=3, thread_name_prefix="history")


async def in_thread(work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Do blocking work; one that has begun is not cut off by a cancellation."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, functools.partial(work, *arguments, **named))
