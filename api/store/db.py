"""The database: one writer thread that commits in groups, and a few readers beside it.

A unit of work is a plain function of a connection. Many of them share one transaction and one flush to disk; when one
of a group raises, the group is rolled back and each is run again by itself, so a unit may run twice and must have no
effect but on the database.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from sandboxd.contract.problems import ProblemError

__all__ = ["Connection", "Database"]

P = ParamSpec("P")
T = TypeVar("T")

MAX_GROUP: Final = 128
READERS: Final = 3
_SOON_SECONDS: Final = 0.002
"""How long what nobody waits for is held back: the answer that goes out meanwhile needs the interpreter for itself."""


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class _Outcome:
    job: _Job
    value: Any
    error: BaseException | None


def make_engine(url: str) -> Engine:
    """Return an engine whose transactions are ours to begin: the driver's own rules differ between engines."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Runs units of work. Raises ProblemError `store_unavailable` where the database itself fails."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write_for_ever, name="store-writer", daemon=True)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._local = threading.local()
        self._connections: list[Connection] = []
        self._closed = False
        self._handed_in: asyncio.Future[Any] | None = None
        self._held: list[_Job] = []

    @property
    def engine(self) -> Engine:
        """For migrations, before `open`."""
        return self._engine

    def open(self) -> None:
        self._writer.start()

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a transaction and return its value once that is committed."""
        return await self._put(lambda connection: work(connection, *args, **kwargs))

    def write_soon(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Hand `work` in and return what will be its value. Whatever is written or read after this sees its effect."""
        job = self._job(lambda connection: work(connection, *args, **kwargs))
        if not self._held:
            job.loop.call_later(_SOON_SECONDS, self._hand_in)
        self._held.append(job)
        self._handed_in = job.future
        return job.future

    def _put(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        job = self._job(work)
        self._hand_in()
        self._queue.put(job)
        return job.future

    def _job(self, work: Callable[[Connection], Any]) -> _Job:
        if self._closed:
            raise ProblemError("shutting_down", "The api is shutting down.", retry_after_seconds=1)
        loop = asyncio.get_running_loop()
        return _Job(work, loop.create_future(), loop)

    def _hand_in(self) -> None:
        """Give the writer what it was not given yet, in its order."""
        held, self._held = self._held, []
        for job in held:
            self._queue.put(job)

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work`, which only reads, on what has been committed. Statements of it may see different commits."""
        handed_in = self._handed_in
        if handed_in is not None:
            self._hand_in()
            if not handed_in.done():
                await asyncio.wait({handed_in})
            if self._handed_in is handed_in:
                self._handed_in = None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self._read(lambda c: work(c, *args, **kwargs)))

    async def close(self) -> None:
        """Finish what was handed in, then let go."""
        self._closed = True
        self._hand_in()
        self._queue.put(None)
        if self._writer.is_alive():
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            return work(self._reader())
        except SQLAlchemyError as error:
            raise _unavailable() from error

    def _reader(self) -> Connection:
        connection = cast("Connection | None", getattr(self._local, "connection", None))
        if connection is None or connection.invalidated:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _write_for_ever(self) -> None:
        stop = False
        while not stop:
            jobs: list[_Job] = []
            job = self._queue.get()
            while job is not None and len(jobs) < MAX_GROUP:
                jobs.append(job)
                if self._queue.empty():
                    break
                job = self._queue.get()
            stop = job is None
            if not stop and job is not jobs[-1]:
                jobs.append(cast("_Job", job))
            if jobs:
                _deliver(self._group(jobs))

    def _group(self, jobs: list[_Job]) -> list[_Outcome]:
        try:
            with self._engine.begin() as connection:
                values = [job.work(connection) for job in jobs]
        except Exception as error:  # noqa: BLE001 - whatever a unit raises belongs to its caller
            if len(jobs) == 1:
                return [_Outcome(jobs[0], None, _unavailable() if isinstance(error, SQLAlchemyError) else error)]
            return [outcome for job in jobs for outcome in self._group([job])]
        return [_Outcome(job, value, None) for job, value in zip(jobs, values, strict=True)]


def _unavailable() -> ProblemError:
    return ProblemError("store_unavailable", "The database did not answer.", retry_after_seconds=1)


def _deliver(outcomes: list[_Outcome]) -> None:
    """Wake each loop once for all its callers."""
    for loop in {outcome.job.loop for outcome in outcomes}:
        try:
            loop.call_soon_threadsafe(_resolve, [outcome for outcome in outcomes if outcome.job.loop is loop])
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        future = outcome.job.future
        if future.done():
            continue
        if outcome.error is None:
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)
