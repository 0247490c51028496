"""The ledger's twin in memory: for tests, and for the crash of an agent that shares a process with its successor."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from sandboxd.contract.messages import SandboxSpec
from sandboxd.errors import LedgerError
from sandboxd.ledger.base import SCHEMA_VERSION, Contents, Record
from sandboxd.ledger.rows import PUT, make_tables, to_row


@dataclass(slots=True)
class LedgerContents:
    """What survives an agent; hand it to the next one's MemoryLedger."""

    epoch: int = 0
    records: dict[str, Record] = field(default_factory=dict[str, Record])
    broken: bool = False
    """Every write fails while set, as on a full disk."""


class MemoryLedger:
    """A ledger without a disk."""

    def __init__(self, contents: LedgerContents | None = None) -> None:
        self.contents = contents or LedgerContents()
        self._failed = False
        self.write_errors = 0

    async def open(self) -> Contents:
        return Contents(epoch=self.contents.epoch, records=tuple(self.contents.records.values()))

    async def put(self, record: Record) -> None:
        if self.contents.broken or self._failed:
            self._failed = False
            self.write_errors += 1
            raise LedgerError("a record could not be written: broken on request")
        self._keep(record)

    def put_soon(self, record: Record) -> None:
        if self.contents.broken:
            self._failed = True
            self.write_errors += 1
        else:
            self._keep(record)

    def touch_soon(self, last_active: Mapping[str, float]) -> None:
        for sandbox_id, at in last_active.items():
            if not self.contents.broken and (record := self.contents.records.get(sandbox_id)):
                self.contents.records[sandbox_id] = replace(record, last_active=at)

    async def forget(self, sandbox_ids: Iterable[str]) -> None:
        self._check()
        for sandbox_id in sandbox_ids:
            self.contents.records.pop(sandbox_id, None)

    async def raise_epoch(self, epoch: int) -> None:
        self._check()
        self.contents.epoch = max(self.contents.epoch, epoch)

    async def copy(self) -> bytes:
        with closing(sqlite3.connect(":memory:")) as memory:
            make_tables(memory)
            memory.execute("UPDATE node SET epoch = ?", (self.contents.epoch,))
            memory.executemany(PUT, map(to_row, self.contents.records.values()))
            memory.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            memory.commit()
            return memory.serialize()

    async def close(self) -> None:
        """Nothing waits."""

    def _check(self) -> None:
        if self.contents.broken:
            self.write_errors += 1
            raise LedgerError("broken on request")

    def _keep(self, record: Record) -> None:
        self.contents.records[record.sandbox_id] = replace(record, spec=without_env(record.spec))


def without_env(spec: SandboxSpec) -> SandboxSpec:
    """Return the spec as it may be written down."""
    return spec.model_copy(update={"env": {}}) if spec.env else spec
