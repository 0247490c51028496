"""One SQLite file of things that may be lost without harm: made anew when it cannot be read. Blocks; for threads."""

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any, ClassVar, Final

_PAGE_BYTES: Final = 4096


class DatabaseFile:
    """The file and the one connection to it. `_connection` is None while it is closed, and used under `_lock`."""

    schema: ClassVar[tuple[str, ...]]
    """The statements that make what is not there yet."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def _open(self) -> None:
        """Open it; what is damaged is put aside by being removed."""
        with self._lock:
            try:
                self._connection = self._connect()
            except sqlite3.DatabaseError:
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._connection = self._connect()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return what is found; nothing while it is closed."""
        with self._lock:
            return [] if self._connection is None else self._connection.execute(statement, values).fetchall()

    def _shrink(self, connection: sqlite3.Connection, oldest: str, batch: int) -> None:
        """Remove by `oldest`, which deletes so many rows, until the rest fits."""
        while self._used_bytes(connection) > self.limit_bytes:
            with connection:
                removed = connection.execute(oldest, (batch,)).rowcount
            if removed < batch:
                return

    def _used_bytes(self, connection: sqlite3.Connection) -> int:
        """Return what it takes but for pages that are free again."""
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return (pages - free) * _PAGE_BYTES

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never readable by others, not even between its creation and a chmod.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=2, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            for statement in self.schema:
                connection.execute(statement)
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection
