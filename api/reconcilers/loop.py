"""Runs each reconciler again and again; one that fails is tried again at its next turn."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, NoReturn

import structlog

from api.reconcilers import policies, promises, retention, silence
from api.services import trust
from api.services.platform import Platform

_log = structlog.get_logger()


class Turn(NamedTuple):
    """A reconciler and how often it looks."""

    work: Callable[[Platform], Awaitable[None]]
    every_seconds: float


TURNS: Final = (
    Turn(silence.watch_nodes, 0.5),
    Turn(trust.watch, 0.5),
    Turn(silence.bury_lost, 2),
    Turn(promises.stop_again, 2),
    Turn(promises.settle_starts, 2),
    Turn(promises.stop_orphans, 30),
    Turn(policies.apply_again, 5),
    Turn(policies.give_credentials, 1),
    Turn(retention.purge, 600),
)


async def reconcile(platform: Platform) -> NoReturn:
    """Run for as long as the platform does."""
    async with asyncio.TaskGroup() as group:
        for turn in TURNS:
            group.create_task(_repeat(platform, turn))
    raise AssertionError  # the turns have no end


async def _repeat(platform: Platform, turn: Turn) -> NoReturn:
    while True:
        try:
            await turn.work(platform)
        except Exception:  # noqa: BLE001 - the next turn looks at the world anew
            _log.exception("reconciler failed", reconciler=turn.work.__name__)
        await asyncio.sleep(turn.every_seconds)
