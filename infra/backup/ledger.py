"""The node's ledger: a consistent copy of it, and what a copy must say before another start believes it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from infra.launcher.node_socket import NodeSilentError, ask
from sandboxd.ledger.sqlite import whole_file
from sandboxd.runtime.procfs import identity

MOST_BYTES: Final = 1 << 30
RESTORED: Final = "restored"
"""Stands where a boot id does: what ran under it runs no more."""
MESSAGE: Final = "It did not run any more when the node's ledger was restored from a backup."


class Standing(NamedTuple):
    """The sandboxes a ledger says are running."""

    alive: int
    gone: int


def copy(config: LauncherConfig) -> bytes | None:
    """Return the ledger as one SQLite file, from the node agent where one runs; None: there is none yet."""
    path = config.data_dir / "ledger.db"
    if not path.exists():
        return None
    try:
        return ask(config.node_socket, "/node/v1/ledger", most_bytes=MOST_BYTES)
    except NodeSilentError as silent:
        try:
            # Nobody else has it open then: the node agent keeps it locked for as long as it runs.
            with closing(sqlite3.connect(path, timeout=2)) as origin:
                return whole_file(origin)
        except sqlite3.Error as error:
            raise LauncherError(
                f"the ledger cannot be copied: {error} ({silent})",
                "wait until the node agent answers ('sandlotd doctor'), or stop it, then try again",
            ) from error


def schema_of(ledger: bytes) -> int:
    """Return the schema version of a ledger that was made by this program."""
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.deserialize(ledger)
        return memory.execute("PRAGMA user_version").fetchone()[0]


def settle(path: Path, boot_id: str) -> Standing:
    """Mark in a restored ledger what it calls running and is not. What still runs here is left to be adopted."""
    alive = gone = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        _check(ledger)
        ledger.execute("BEGIN IMMEDIATE")
        rows = ledger.execute(
            "SELECT id, boot_id, sentry_pid, sentry_start FROM sandboxes WHERE phase = 'running'"
        ).fetchall()
        for sandbox_id, boot, pid, start in rows:
            if boot == boot_id and pid is not None and (found := identity(pid)) and found.start_time == start:
                alive += 1
                continue
            gone += 1
            ledger.execute("UPDATE sandboxes SET boot_id = ? WHERE id = ?", (RESTORED, sandbox_id))
            ledger.execute("UPDATE sandboxes SET message = ? WHERE id = ? AND intent IS NULL", (MESSAGE, sandbox_id))
        ledger.execute("COMMIT")
    return Standing(alive, gone)


def _check(ledger: sqlite3.Connection) -> None:
    if ledger.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise LauncherError("the ledger in the backup is damaged", "use another backup")
