"""Decisions about sandboxes' traffic on disk: one SQLite file, the newest of each sandbox, for some days.

Blocks; for threads. Everything here may be lost without harm to a sandbox.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sandboxd.history.database_file import DatabaseFile

OF_ONE: Final = 10_000
"""Rows kept of one sandbox."""
_BATCH: Final = 5000
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
_HIGHEST: Final = "SELECT coalesce(max(id), 0) FROM decisions"
_OLDEST: Final = "DELETE FROM decisions WHERE id IN (SELECT id FROM decisions ORDER BY id LIMIT ?)"
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


class DecisionStore(DatabaseFile):
    """The file. sqlite3.Error where the disk refuses."""

    schema = _SCHEMA

    def open(self) -> int:
        """Open it; return the highest position it holds."""
        self._open()
        return self._rows(_HIGHEST, ())[0][0]

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
            self._shrink(connection, _OLDEST, _BATCH)

    def after(self, sandbox_id: str, position: int, since_ms: int, verdict: str | None, limit: int) -> list[Row]:
        """Return a sandbox's rows behind a position, oldest first."""
        values = (sandbox_id, position, since_ms, verdict, verdict, limit)
        return [_row(found) for found in self._rows(_AFTER, values)]


def _values(row: Row) -> tuple[Any, ...]:
    what = row.what
    return (row.id, what.sandbox_id, row.first_ms, row.last_ms, row.times, *what[1:])


def _row(found: tuple[Any, ...]) -> Row:
    position, sandbox_id, first_ms, last_ms, count, *what = found
    return Row(position, first_ms, last_ms, count, What(sandbox_id, *what))
