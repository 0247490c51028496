"""Samples of sandboxes' meters on disk: fine ones for an hour, coarser ones for a day and for a week.

One SQLite file. Blocks; for threads. Everything here may be lost without harm to a sandbox.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from sandboxd.history.database_file import DatabaseFile

TIERS: Final = ((5, 3600), (60, 86_400), (300, 7 * 86_400))
"""Seconds between samples, and for how many seconds they are kept."""
_BATCH: Final = 20_000

_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS samples (
        sandbox_id TEXT NOT NULL, tier INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        cpu_used_seconds REAL NOT NULL, memory_used INTEGER NOT NULL, memory_cache INTEGER NOT NULL,
        memory_limit INTEGER NOT NULL, disk_used INTEGER NOT NULL, processes INTEGER NOT NULL,
        egress INTEGER NOT NULL, ingress INTEGER NOT NULL,
        PRIMARY KEY (sandbox_id, tier, at_ms)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS samples_by_age ON samples (tier, at_ms)",
    """
    CREATE TABLE IF NOT EXISTS sandboxes (
        id TEXT PRIMARY KEY, cpus REAL NOT NULL, disk_limit INTEGER NOT NULL, egress_base INTEGER NOT NULL,
        ingress_base INTEGER NOT NULL, seen_ms INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
)
_PUT: Final = f"INSERT OR REPLACE INTO samples VALUES ({', '.join('?' * 11)})"  # noqa: S608 - constants
_BETWEEN: Final = (
    "SELECT at_ms, cpu_used_seconds, memory_used, memory_cache, memory_limit, disk_used, processes, egress, ingress"
    " FROM samples WHERE sandbox_id = ? AND at_ms BETWEEN ? AND ? ORDER BY at_ms, tier DESC"
)
_BEFORE: Final = (
    "SELECT at_ms, cpu_used_seconds, memory_used, memory_cache, memory_limit, disk_used, processes, egress, ingress"
    " FROM samples WHERE sandbox_id = ? AND tier = ? AND at_ms < ? ORDER BY at_ms DESC LIMIT 1"
)
_OLDEST: Final = (
    "DELETE FROM samples WHERE (sandbox_id, tier, at_ms) IN"
    " (SELECT sandbox_id, tier, at_ms FROM samples ORDER BY at_ms LIMIT ?)"
)


class Reading(NamedTuple):
    """Meters at one moment; the byte counts of the network since the sandbox was started."""

    at_ms: int
    cpu_used_seconds: float
    memory_used: int
    memory_cache: int
    memory_limit: int
    disk_used: int
    processes: int
    egress: int
    ingress: int


class Facts(NamedTuple):
    """What stays the same of one sandbox."""

    cpus: float
    disk_limit: int
    egress_base: int
    ingress_base: int


class SampleStore(DatabaseFile):
    """The file."""

    schema = _SCHEMA

    def open(self) -> None:
        """Open it."""
        self._open()

    def facts(self, sandbox_id: str) -> Facts | None:
        """Return what is known of a sandbox."""
        rows = self._rows(
            "SELECT cpus, disk_limit, egress_base, ingress_base FROM sandboxes WHERE id = ?", (sandbox_id,)
        )
        return Facts(*rows[0]) if rows else None

    def write(
        self, facts: Iterable[tuple[str, Facts, int]], readings: Iterable[tuple[str, int, Reading]], now_ms: int
    ) -> None:
        """Write what sandboxes are and their samples by tier, and remove what is old. sqlite3.Error."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            with connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO sandboxes VALUES (?, ?, ?, ?, ?, ?)",
                    [(sandbox_id, *each, seen) for sandbox_id, each, seen in facts],
                )
                connection.executemany(_PUT, [(sandbox_id, tier, *row) for sandbox_id, tier, row in readings])
                for tier, (_, kept) in enumerate(TIERS):
                    connection.execute("DELETE FROM samples WHERE tier = ? AND at_ms < ?", (tier, now_ms - kept * 1000))
                connection.execute("DELETE FROM sandboxes WHERE seen_ms < ?", (now_ms - TIERS[-1][1] * 1000,))
            self._shrink(connection, _OLDEST, _BATCH)

    def between(self, sandbox_id: str, begin_ms: int, end_ms: int) -> list[Reading]:
        """Return the samples of a span, oldest first; one moment once, however many tiers have it."""
        found: dict[int, Reading] = {}
        for row in self._rows(_BETWEEN, (sandbox_id, begin_ms, end_ms)):
            found[row[0]] = Reading(*row)
        return [found[at] for at in sorted(found)]

    def before(self, sandbox_id: str, at_ms: int) -> Reading | None:
        """Return the last sample before a moment."""
        rows = [row for tier in range(len(TIERS)) for row in self._rows(_BEFORE, (sandbox_id, tier, at_ms))]
        return max((Reading(*row) for row in rows), default=None)
