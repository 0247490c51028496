"""One suite over the ledger on disk and its twin in memory."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandboxd.contract.ids import new_handle, new_id
from sandboxd.contract.messages import EgressSpec, ImageRef, SandboxReport, SandboxSpec
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.errors import LedgerError
from sandboxd.ledger.base import Ledger, Phase, Record
from sandboxd.ledger.memory import LedgerContents, MemoryLedger
from sandboxd.ledger.rows import ADDED
from sandboxd.ledger.sqlite import SqliteLedger
from sandboxd.runtime.base import Incarnation, ProcessIdentity

Reopen = Callable[[], Ledger]


@pytest.fixture(params=["sqlite", "memory"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    contents = LedgerContents()

    def make() -> Ledger:
        if request.param == "memory":
            return MemoryLedger(contents)
        return SqliteLedger(tmp_path / "ledger.db")

    return make


def a_record(**changes: object) -> Record:
    spec = SandboxSpec(
        image=ImageRef(id=new_id("img", os.urandom), reference="base", digest="sha256:" + "0" * 64),
        egress=EgressSpec(mode="open"),
    )
    sandbox_id = new_id("sbx", os.urandom)
    record = Record(
        sandbox_id=sandbox_id,
        handle=sandbox_id,
        generation=1,
        spec=spec,
        phase=Phase.ADMITTED,
        boot_id="boot",
        nonce="00" * 16,
    )
    return replace(record, **changes)


def a_full_record() -> Record:
    record = a_record(
        phase=Phase.ENDED,
        handle=new_handle(os.urandom),
        cpu_before_seconds=0.25,
        slot_index=7,
        incarnation=Incarnation(
            sentry=ProcessIdentity(pid=10, start_time=100), gofer=ProcessIdentity(pid=11, start_time=101)
        ),
        address="100.64.0.3",
        user="user",
        cwd="/home/user",
        shell="/bin/bash",
        started_at=datetime(2026, 11, 22, 10, 59, 1, 123000, tzinfo=UTC),
        wall_deadline=1234.5,
        last_active=1000.25,
        intent=SandboxReason.REQUESTED,
        message="asked",
    )
    report = SandboxReport(id=record.sandbox_id, generation=1, state=SandboxState.STOPPED)
    return replace(record, report=report)


async def reread(ledger: Ledger, reopen: Reopen) -> list[Record]:
    await ledger.close()
    again = reopen()
    try:
        return list((await again.open()).records)
    finally:
        await again.close()


async def test_starts_empty(ledgers: Reopen) -> None:
    ledger = ledgers()
    contents = await ledger.open()
    await ledger.close()
    assert (contents.epoch, contents.records) == (0, ())


@pytest.mark.parametrize("make", [a_record, a_full_record])
async def test_keeps_every_field(ledgers: Reopen, make: Callable[[], Record]) -> None:
    ledger = ledgers()
    await ledger.open()
    record = make()
    await ledger.put(record)
    assert await reread(ledger, ledgers) == [record]


async def test_the_last_write_counts_however_it_was_asked_for(ledgers: Reopen) -> None:
    ledger = ledgers()
    await ledger.open()
    record = a_record()
    await ledger.put(record)
    ledger.put_soon(replace(record, slot_index=3))
    await ledger.put(replace(record, slot_index=4, phase=Phase.RUNNING))
    ledger.touch_soon({record.sandbox_id: 55.5, new_id("sbx", os.urandom): 1.0})
    assert await reread(ledger, ledgers) == [replace(record, slot_index=4, phase=Phase.RUNNING, last_active=55.5)]


async def test_close_writes_what_waits(ledgers: Reopen) -> None:
    ledger = ledgers()
    await ledger.open()
    record = a_record()
    ledger.put_soon(record)
    assert await reread(ledger, ledgers) == [record]


async def test_forgets_and_forgets_again(ledgers: Reopen) -> None:
    ledger = ledgers()
    await ledger.open()
    kept, dropped = a_record(), a_record()
    await ledger.put(kept)
    await ledger.put(dropped)
    await ledger.forget([dropped.sandbox_id])
    await ledger.forget([dropped.sandbox_id])
    await ledger.forget([])
    assert await reread(ledger, ledgers) == [kept]


async def test_epoch_only_rises(ledgers: Reopen) -> None:
    ledger = ledgers()
    await ledger.open()
    await ledger.raise_epoch(5)
    await ledger.raise_epoch(3)
    await ledger.close()
    again = ledgers()
    assert (await again.open()).epoch == 5
    await again.close()


async def test_env_is_never_written(ledgers: Reopen, tmp_path: Path) -> None:
    ledger = ledgers()
    await ledger.open()
    record = a_record()
    secret = replace(record, spec=record.spec.model_copy(update={"env": {"TOKEN": "hunter2-secret"}}))
    await ledger.put(secret)
    assert await reread(ledger, ledgers) == [record]
    for path in tmp_path.iterdir():
        assert b"hunter2" not in path.read_bytes()


async def test_hundreds_of_writers_at_once(ledgers: Reopen) -> None:
    ledger = ledgers()
    await ledger.open()
    records = sorted((a_record() for _ in range(700)), key=lambda record: record.sandbox_id)
    async with asyncio.TaskGroup() as group:
        for record in records:
            group.create_task(ledger.put(record))
    assert sorted(await reread(ledger, ledgers), key=lambda record: record.sandbox_id) == records


async def test_a_row_that_cannot_be_written_harms_no_other(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger.open()
    good = a_record()
    bad = a_record(cwd="\ud800")
    results = await asyncio.gather(ledger.put(good), ledger.put(bad), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], LedgerError)
    assert await reread(ledger, lambda: SqliteLedger(tmp_path / "ledger.db")) == [good]


async def test_a_silent_failure_is_told_to_the_next_writer(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger.open()
    ledger.put_soon(a_record(cwd="\ud800"))
    await ledger.raise_epoch(1)  # a write behind it: it has been tried
    with pytest.raises(LedgerError):
        await ledger.put(a_record())
    await ledger.put(a_record())
    await ledger.close()


async def test_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    await ledger.open()
    await ledger.put(a_record())
    modes = [stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()]
    await ledger.close()
    assert set(modes) == {0o600}


OLD_SCHEMA = """
    CREATE TABLE node (singleton INTEGER PRIMARY KEY CHECK (singleton = 1), epoch INTEGER NOT NULL);
    INSERT INTO node VALUES (1, 7);
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        generation INTEGER NOT NULL,
        phase TEXT NOT NULL CHECK (phase IN ('admitted', 'running', 'ended')),
        boot_id TEXT NOT NULL,
        nonce TEXT NOT NULL,
        slot_index INTEGER,
        sentry_pid INTEGER, sentry_start INTEGER, gofer_pid INTEGER, gofer_start INTEGER,
        address TEXT, user TEXT, cwd TEXT, shell TEXT,
        started_at TEXT,
        wall_deadline REAL,
        last_active REAL NOT NULL,
        intent TEXT, message TEXT,
        spec TEXT NOT NULL,
        report TEXT
    ) WITHOUT ROWID;
    PRAGMA user_version = 1;
"""


async def test_the_ledger_of_the_release_before_is_taken_on(tmp_path: Path) -> None:
    record = a_record(phase=Phase.RUNNING, slot_index=3, last_active=5.5)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.executescript(OLD_SCHEMA)
    connection.execute(
        "INSERT INTO sandboxes (id, generation, phase, boot_id, nonce, slot_index, last_active, spec)"
        " VALUES (?, 1, 'running', 'boot', ?, 3, 5.5, ?)",
        (record.sandbox_id, record.nonce, record.spec.model_dump_json(exclude={"env"})),
    )
    connection.commit()
    connection.close()
    for _ in range(2):
        ledger = SqliteLedger(tmp_path / "ledger.db")
        contents = await ledger.open()
        assert (contents.epoch, contents.records) == (7, (record,))
        await ledger.put(record)
        await ledger.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LedgerError, match="99"):
        await SqliteLedger(path).open()


async def test_a_ledger_of_the_last_release_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    await ledger.open()
    record = a_record()
    await ledger.put(record)
    await ledger.close()
    connection = sqlite3.connect(path)
    for name in ADDED:
        connection.execute(f"ALTER TABLE sandboxes DROP COLUMN {name}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    for _ in range(2):
        later = SqliteLedger(path)
        assert (await later.open()).records == (replace(record, exit_code=None),)
        await later.close()


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, not at all, " * 100)
    with pytest.raises(LedgerError):
        await SqliteLedger(path).open()


async def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    first = SqliteLedger(tmp_path / "ledger.db")
    await first.open()
    with pytest.raises(LedgerError, match="locked"):
        await SqliteLedger(tmp_path / "ledger.db").open()
    await first.close()


async def test_a_copy_holds_all_that_was_asked_for_before_it(ledgers: Reopen, tmp_path: Path) -> None:
    ledger = ledgers()
    await ledger.open()
    record, later = a_full_record(), a_record()
    await ledger.raise_epoch(7)
    ledger.put_soon(record)
    copying = asyncio.ensure_future(ledger.copy())
    await asyncio.sleep(0)
    ledger.put_soon(later)
    (tmp_path / "copy.db").write_bytes(await copying)
    await ledger.close()
    copy = SqliteLedger(tmp_path / "copy.db")
    contents = await copy.open()
    await copy.close()
    assert contents.epoch == 7
    assert contents.records == (record,)
