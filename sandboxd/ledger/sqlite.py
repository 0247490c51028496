"""The ledger on disk: SQLite on one thread of its own, which commits everything that waits as one transaction."""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from sandboxd.errors import LedgerError
from sandboxd.ledger.base import SCHEMA_VERSION, Contents, Record
from sandboxd.ledger.rows import PUT, READ, from_row, make_tables, to_row

_MAX_BATCH: Final = 512
_FORMAT_AT: Final = 18
_ROLLBACK_FORMAT: Final = b"\x01\x01"
"""In a database's header: it is read and written without a write-ahead log."""


@dataclass(frozen=True, slots=True)
class _Write:
    statement: str
    rows: tuple[tuple[object, ...], ...]
    done: asyncio.Future[None] | None
    copied: asyncio.Future[bytes] | None = None
    """Not a write: the ledger as it is before the writes that come after."""


_STOP: Final = _Write("", (), None)


class SqliteLedger:
    """A ledger file. One process at a time: a second one is refused by an exclusive lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: SimpleQueue[_Write] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        """Why a write nobody waits for failed; raised by the next one that somebody does."""
        self.write_errors = 0

    async def open(self) -> Contents:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Contents] = loop.create_future()
        self._thread = threading.Thread(target=self._work, args=(loop, opened), name="ledger", daemon=True)
        self._thread.start()
        return await opened

    async def put(self, record: Record) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise LedgerError(failure)
        await self._write(PUT, to_row(record))

    def put_soon(self, record: Record) -> None:
        self._queue.put(_Write(PUT, (to_row(record),), None))

    def touch_soon(self, last_active: Mapping[str, float]) -> None:
        rows = tuple((at, sandbox_id) for sandbox_id, at in last_active.items())
        if rows:
            self._queue.put(_Write("UPDATE sandboxes SET last_active = ? WHERE id = ?", rows, None))

    async def forget(self, sandbox_ids: Iterable[str]) -> None:
        await self._write("DELETE FROM sandboxes WHERE id = ?", *((sandbox_id,) for sandbox_id in sandbox_ids))

    async def raise_epoch(self, epoch: int) -> None:
        await self._write("UPDATE node SET epoch = max(epoch, ?)", (epoch,))

    async def copy(self) -> bytes:
        if self._thread is None:
            raise LedgerError("the ledger is not open")
        copied: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write("", (), None, copied))
        return await copied

    async def close(self) -> None:
        if self._thread is not None:
            self._queue.put(_STOP)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _write(self, statement: str, *rows: tuple[object, ...]) -> None:
        if self._thread is None:
            raise LedgerError("the ledger is not open")
        if rows:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.put(_Write(statement, rows, done))
            await done

    def _work(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[Contents]) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(self._path)
            contents = _read(connection)
        except (sqlite3.Error, ValueError, OSError, LedgerError) as error:
            failure = error if isinstance(error, LedgerError) else LedgerError(f"the ledger cannot be read: {error}")
            _tell(loop, opened.set_exception, failure)
            if connection is not None:
                connection.close()
            return
        _tell(loop, opened.set_result, contents)
        try:
            while self._commit(loop, connection, self._batch()):
                pass
        finally:
            connection.close()

    def _batch(self) -> list[_Write]:
        batch = [self._queue.get()]
        while batch[-1] is not _STOP and batch[-1].copied is None and len(batch) < _MAX_BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                break
        return batch

    def _commit(self, loop: asyncio.AbstractEventLoop, connection: sqlite3.Connection, batch: list[_Write]) -> bool:
        """Write a batch and tell who waits; False after the last one."""
        last = batch[-1]
        goes_on = last is not _STOP
        writes = batch if goes_on and last.copied is None else batch[:-1]
        failure = _transact(connection, writes)
        if failure is None or len(writes) == 1:
            self._answer(loop, writes, failure)
        else:
            # One row that cannot be written must not take its neighbours' with it.
            for write in writes:
                self._answer(loop, [write], _transact(connection, [write]))
        if last.copied is not None:
            _hand_over(loop, connection, last.copied)
        return goes_on

    def _answer(self, loop: asyncio.AbstractEventLoop, writes: list[_Write], failure: str | None) -> None:
        self.write_errors += len(writes) if failure is not None else 0
        if failure is not None and any(write.done is None for write in writes):
            self._failure = failure
        waiting = [write.done for write in writes if write.done is not None]
        if waiting:
            _tell(loop, _resolve, waiting, failure)


def _transact(connection: sqlite3.Connection, writes: list[_Write]) -> str | None:
    """Write all or nothing; return what was wrong."""
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                connection.executemany(write.statement, write.rows)
    except (sqlite3.Error, ValueError) as error:
        return f"the ledger cannot be written: {error}"
    return None


def whole_file(connection: sqlite3.Connection) -> bytes:
    """Return a database as one file, what is in its write-ahead log included, that needs no such log. sqlite3.Error."""
    with contextlib.closing(sqlite3.connect(":memory:")) as memory:
        connection.backup(memory)
        content = memory.serialize()
    return content[:_FORMAT_AT] + _ROLLBACK_FORMAT + content[_FORMAT_AT + len(_ROLLBACK_FORMAT) :]


def _hand_over(loop: asyncio.AbstractEventLoop, connection: sqlite3.Connection, copied: asyncio.Future[bytes]) -> None:
    try:
        content = whole_file(connection)
    except sqlite3.Error as error:
        _tell(loop, _settle, copied, None, LedgerError(f"the ledger cannot be copied: {error}"))
    else:
        _tell(loop, _settle, copied, content, None)


def _settle(copied: asyncio.Future[bytes], content: bytes | None, error: LedgerError | None) -> None:
    if copied.done():
        return
    if content is None or error is not None:
        copied.set_exception(error or LedgerError("nothing was copied"))
    else:
        copied.set_result(content)


def _resolve(waiting: list[asyncio.Future[None]], failure: str | None) -> None:
    for done in waiting:
        if done.done():
            continue
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(LedgerError(failure))


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    """Call on the loop; a loop that is closed has nobody waiting."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def _connect(path: Path) -> sqlite3.Connection:
    # The file must never be readable by others, not even between its creation and a chmod.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, timeout=2)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _check_version(connection.execute("PRAGMA user_version").fetchone()[0])
        connection.execute("BEGIN IMMEDIATE")
        make_tables(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise LedgerError(f"the ledger has schema {version}; this release knows up to {SCHEMA_VERSION}")


def _read(connection: sqlite3.Connection) -> Contents:
    epoch = connection.execute("SELECT epoch FROM node").fetchone()[0]
    return Contents(epoch=epoch, records=tuple(from_row(row) for row in connection.execute(READ)))
