"""Ledger records as rows of SQLite: the schema and both directions."""

import sqlite3
from datetime import datetime
from typing import Any, Final

from sandboxd.contract.messages import NEVER_STORED, SandboxReport, SandboxSpec
from sandboxd.contract.reasons import SandboxReason
from sandboxd.ledger.base import Phase, Record
from sandboxd.runtime.base import Incarnation, ProcessIdentity

SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS node (singleton INTEGER PRIMARY KEY CHECK (singleton = 1), epoch INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO node VALUES (1, 0)",
    """
    CREATE TABLE IF NOT EXISTS sandboxes (
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
    ) WITHOUT ROWID
    """,
)

ADDED: Final = {"exit_code": "INTEGER", "handle": "TEXT", "cpu_before": "REAL NOT NULL DEFAULT 0"}
"""Columns that an older ledger lacks; they stand last. A sandbox without a handle is known by its id."""

COLUMNS: Final = (
    "id, generation, phase, boot_id, nonce, slot_index, sentry_pid, sentry_start, gofer_pid, gofer_start,"
    " address, user, cwd, shell, started_at, wall_deadline, last_active, intent, message, spec, report, exit_code,"
    " handle, cpu_before"
)
PUT: Final = f"INSERT OR REPLACE INTO sandboxes ({COLUMNS}) VALUES ({', '.join('?' * 24)})"  # noqa: S608 - constants
READ: Final = f"SELECT {COLUMNS} FROM sandboxes ORDER BY id"  # noqa: S608 - constants


def make_tables(connection: sqlite3.Connection) -> None:
    """Make what is missing, in a ledger of an earlier version too."""
    for statement in SCHEMA:
        connection.execute(statement)
    present = {row[1] for row in connection.execute("PRAGMA table_info(sandboxes)")}
    for name, kind in ADDED.items():
        if name not in present:
            connection.execute(f"ALTER TABLE sandboxes ADD COLUMN {name} {kind}")


def to_row(record: Record) -> tuple[Any, ...]:
    """Render a record in the order of COLUMNS, without the environment."""
    sentry = record.incarnation.sentry if record.incarnation else None
    gofer = record.incarnation.gofer if record.incarnation else None
    return (
        record.sandbox_id,
        record.generation,
        record.phase.value,
        record.boot_id,
        record.nonce,
        record.slot_index,
        sentry.pid if sentry else None,
        sentry.start_time if sentry else None,
        gofer.pid if gofer else None,
        gofer.start_time if gofer else None,
        record.address,
        record.user,
        record.cwd,
        record.shell,
        record.started_at.isoformat() if record.started_at else None,
        record.wall_deadline,
        record.last_active,
        record.intent.value if record.intent else None,
        record.message,
        record.spec.model_dump_json(exclude=set(NEVER_STORED)),
        record.report.model_dump_json() if record.report else None,
        record.exit_code,
        record.handle,
        record.cpu_before_seconds,
    )


def from_row(row: tuple[Any, ...]) -> Record:
    """Read a row in the order of COLUMNS. ValueError if it is none of ours."""
    (sandbox_id, generation, phase, boot_id, nonce, slot_index, *rest) = row
    (sentry_pid, sentry_start, gofer_pid, gofer_start, address, user, cwd, shell, *rest) = rest
    (started_at, wall_deadline, last_active, intent, message, spec, report, *rest) = rest
    (exit_code, handle, cpu_before) = rest
    return Record(
        sandbox_id=sandbox_id,
        handle=handle or sandbox_id,
        generation=generation,
        phase=Phase(phase),
        boot_id=boot_id,
        nonce=nonce,
        slot_index=slot_index,
        incarnation=_incarnation(sentry_pid, sentry_start, gofer_pid, gofer_start),
        address=address,
        user=user,
        cwd=cwd,
        shell=shell,
        started_at=datetime.fromisoformat(started_at) if started_at else None,
        wall_deadline=wall_deadline,
        last_active=last_active,
        intent=SandboxReason(intent) if intent else None,
        message=message,
        cpu_before_seconds=cpu_before,
        spec=SandboxSpec.model_validate_json(spec),
        report=SandboxReport.model_validate_json(report) if report else None,
        exit_code=exit_code,
    )


def _incarnation(
    sentry_pid: int | None, sentry_start: int | None, gofer_pid: int | None, gofer_start: int | None
) -> Incarnation | None:
    if sentry_pid is None or sentry_start is None:
        return None
    gofer = None
    if gofer_pid is not None and gofer_start is not None:
        gofer = ProcessIdentity(pid=gofer_pid, start_time=gofer_start)
    return Incarnation(sentry=ProcessIdentity(pid=sentry_pid, start_time=sentry_start), gofer=gofer)
