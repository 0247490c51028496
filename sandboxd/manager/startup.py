"""Start-up: what the ledger says against what there is; adopt or bury each, remove strangers."""

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from sandboxd.contract.ids import is_handle
from sandboxd.contract.states import SandboxState
from sandboxd.errors import LedgerError
from sandboxd.ledger.base import Contents, Phase, Record
from sandboxd.manager.manager import Manager
from sandboxd.network.base import Network
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.runner import Runner

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 16


class StartUp:
    """Run once, before the node answers anybody."""

    def __init__(self, network: Network, upper_dir: Path) -> None:
        self._network = network
        self._upper_dir = upper_dir

    async def __call__(self, manager: Manager, contents: Contents) -> None:
        """Adopt what runs, end what does not, remove what nobody knows. Adoption goes on in the runners' tasks.

        A sandbox whose guest never acknowledged its init is removed without a trace: the api's `ensure` makes it again.
        What is left of the ready pool nobody knows.
        """
        living, ended, unborn = _sort(contents.records)
        here = [record for record in living if record.boot_id == manager.boot_id]
        await self._remove_strangers(manager, keep={record.handle for record in here})
        await self._network.start(
            {record.handle: record.slot_index for record in here if record.slot_index is not None},
            {record.handle: record.spec.tunnels for record in here},
        )
        await self._remove_uppers(keep={record.handle for record in here})
        await _forget(manager, unborn)
        for record in ended:
            manager.runners[record.sandbox_id] = _over(manager, record)
        for record in living:
            self._take_on(manager, record)
        for record in living:
            life = manager.runners[record.sandbox_id].life
            await life.adopted.wait()
            outcome = "adopted" if life.cause is None else "failed"
            manager.tools.counts.adoptions[outcome if record.boot_id == manager.boot_id else "buried"] += 1
        _log.info("node started", running=len(living), ended=len(ended), removed=len(unborn))

    def _take_on(self, manager: Manager, record: Record) -> None:
        life = Life(record, manager.parts_of(record, {}), manager.tools.clock, SandboxState.RUNNING)
        runner = Runner(life, manager.tools)
        manager.admission.take(record.sandbox_id, record.spec.resources)
        if record.boot_id == manager.boot_id:
            manager.take_on(runner, runner.run_recovered())
        else:
            manager.take_on(runner, runner.run_burial(Cause(), same_boot=False))

    async def _remove_strangers(self, manager: Manager, *, keep: set[str]) -> None:
        strangers = await manager.tools.runtime.known() - keep
        turn = asyncio.Semaphore(_AT_ONCE)

        async def remove(handle: str) -> None:
            async with turn:
                try:
                    await manager.tools.runtime.remove(handle)
                except Exception:  # noqa: BLE001 - one stranger must not keep the node from starting
                    _log.exception("stranger not removed", handle=handle)

        async with asyncio.TaskGroup() as group:
            for handle in strangers:
                group.create_task(remove(handle))

    async def _remove_uppers(self, *, keep: set[str]) -> None:
        await asyncio.to_thread(_remove_uppers, self._upper_dir, keep)


def _sort(records: Iterable[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """Split into those that ran, those whose end is reported, and those that never came to be."""
    living: list[Record] = []
    ended: list[Record] = []
    unborn: list[Record] = []
    for record in records:
        if record.phase is Phase.RUNNING:
            living.append(record)
        elif record.phase is Phase.ENDED and record.report is not None:
            ended.append(record)
        else:
            unborn.append(record)
    return living, ended, unborn


def _over(manager: Manager, record: Record) -> Runner:
    state = record.report.state if record.report else SandboxState.FAILED
    life = Life(record, manager.parts_of(record, {}), manager.tools.clock, state)
    life.ended.set()
    life.over.set()
    return Runner(life, manager.tools)


async def _forget(manager: Manager, records: Iterable[Record]) -> None:
    try:
        await manager.tools.ledger.forget([record.sandbox_id for record in records])
    except LedgerError as error:
        # The next start finds them again, and nothing of them.
        _log.error("ledger not written", error=str(error))


def _remove_uppers(directory: Path, keep: set[str]) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in directory.iterdir():
        if entry.name not in keep and is_handle(entry.name):
            try:
                shutil.rmtree(entry)
            except OSError as error:
                _log.error("upper directory not removed", handle=entry.name, error=str(error))
