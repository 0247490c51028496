"""Decisions about sandboxes' traffic on disk: one SQLite file, the newest of each sandbox, for some days.

Blocks; for threads. Everything here may be lost without harm to a sandbox.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

OF_ONE: Final = 10_000
"""Rows kept of one sandbox."""
_BATCH: Final = 5000
_PAGE_BYTES: Final = 4096
_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS decisions (
        id INTEGER PRIMARY KEY, sandbox_id TEXT NOT NULL, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
        count INTEGER NOT NULL, verdict TEXT NOT NULL, source TEXT NOT NULL, rule TEXT, reason TEXT, name TEXT,
        address TEXT, port INTEGER, protocol TEXT, via TEXT NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS decisions_of_one ON decisions (sandbox_id, id)",
)
_PUT: Final = f"INSERT OR REPLACE INTO decisions VALUES ({', '.join('?' * 14)})"  # noqa: S608 - constants
_AFTER: Final = (
    "SELECT * FROM decisions WHERE sandbox_id = ? AND id > ? AND last_ms >= ? AND (? IS NULL OR verdict = ?)"
    " ORDER BY id LIMIT ?"
)


class What(NamedTuple):
    """What makes two decisions equal."""

    sandbox_id: str
    verdict: str
    source: str
    rule: str | None
    reason: str | None
    name: str | None
    address: str | None
    port: int | None
    protocol: str | None
    via: str


class Row(NamedTuple):
    """One row; `id` is its position among all of the node."""

    id: int
    first_ms: int
    last_ms: int
    times: int
    what: What


class DecisionStore:
    """The file. Made anew when it cannot be read. sqlite3.Error where the disk refuses."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def open(self) -> int:
        """Open it; return the highest position it holds."""
        with self._lock:
            try:
                self._connection = _connect(self._path)
            except sqlite3.DatabaseError:
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._connection = _connect(self._path)
            return self._connection.execute("SELECT coalesce(max(id), 0) FROM decisions").fetchone()[0]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows as they are now."""
        with self._lock:
            if self._connection is not None:
                with self._connection as connection:
                    connection.executemany(_PUT, [_values(row) for row in rows])

    def trim(self, sandbox_ids: Iterable[str], oldest_ms: int) -> None:
        """Remove what is old, what one of these sandboxes has too many of, and the oldest until the rest fits."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            with connection:
                connection.execute("DELETE FROM decisions WHERE last_ms < ?", (oldest_ms,))
                for sandbox_id in sandbox_ids:
                    connection.execute(
                        "DELETE FROM decisions WHERE sandbox_id = ? AND id <= coalesce((SELECT id FROM decisions"
                        " WHERE sandbox_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?), 0)",
                        (sandbox_id, sandbox_id, OF_ONE),
                    )
            while _used_bytes(connection) > self._limit_bytes:
                with connection:
                    removed = connection.execute(
                        "DELETE FROM decisions WHERE id IN (SELECT id FROM decisions ORDER BY id LIMIT ?)", (_BATCH,)
                    ).rowcount
                if removed < _BATCH:
                    return

    def after(self, sandbox_id: str, position: int, since_ms: int, verdict: str | None, limit: int) -> list[Row]:
        """Return a sandbox's rows behind a position, oldest first."""
        with self._lock:
            if self._connection is None:
                return []
            values = (sandbox_id, position, since_ms, verdict, verdict, limit)
            return [_row(found) for found in self._connection.execute(_AFTER, values).fetchall()]


def _values(row: Row) -> tuple[Any, ...]:
    what = row.what
    return (row.id, what.sandbox_id, row.first_ms, row.last_ms, row.times, *what[1:])


def _row(found: tuple[Any, ...]) -> Row:
    position, sandbox_id, first_ms, last_ms, count, *what = found
    return Row(position, first_ms, last_ms, count, What(sandbox_id, *what))


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return (pages - free) * _PAGE_BYTES


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never readable by others, not even between its creation and a chmod.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=2, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection
