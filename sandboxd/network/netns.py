"""Network namespaces: made, pinned by bind mounts, entered by threads that live in them.

The program's own threads never change namespace: what must happen inside one is done by a `NamespaceThread`.
"""

import asyncio
import contextlib
import ctypes
import heapq
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from sandboxd.network.base import NetworkError

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_OWN = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class StrandedError(NetworkError):
    """A thread could not return to its namespace: whatever it does next would be done in the wrong place."""


class Urgency(IntEnum):
    """What a thread does first."""

    CALLER_WAITS = 0
    BACKGROUND = 1


class NamespaceThread:
    """A thread that lives in one network namespace and does jobs there, one at a time.

    Without a pin it stays in the program's own namespace. It never comes back: it ends with its namespace's last job.
    """

    def __init__(self, name: str, pin: Path | None) -> None:
        self._pin = pin
        self._jobs: list[tuple[int, int, Callable[[], Any], Future[Any]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        entered: Future[None] = Future()
        self._entered = entered

    @property
    def directory(self) -> Path:
        """The thread's own in /proc, where its namespace is seen as it sees it."""
        return Path(f"/proc/self/task/{self._thread.native_id}")

    def start(self) -> None:
        """Start it inside; NetworkError if the namespace cannot be entered."""
        self._thread.start()
        self._entered.result()

    def submit(self, job: Callable[[], _T], urgency: Urgency = Urgency.CALLER_WAITS) -> Future[_T]:
        result: Future[_T] = Future()
        with self._changed:
            if self._closed:
                raise NetworkError("the network is stopped")
            self._count += 1
            heapq.heappush(self._jobs, (urgency, self._count, job, result))
            self._changed.notify()
        return result

    async def run(self, job: Callable[[], _T], urgency: Urgency = Urgency.CALLER_WAITS) -> _T:
        """Do a job there; a caller that is cancelled does not stop one that has begun."""
        return await asyncio.wrap_future(self.submit(job, urgency))

    def call(self, job: Callable[[], _T]) -> _T:
        """Do a job there and wait; for other threads than the event loop's."""
        return self.submit(job).result()

    def close(self) -> None:
        """End it after the jobs that are waiting; background ones are dropped."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            dropped = [job for job in self._jobs if job[0] == Urgency.BACKGROUND]
            self._jobs = [job for job in self._jobs if job[0] != Urgency.BACKGROUND]
            heapq.heapify(self._jobs)
            for _, _, _, result in dropped:
                if result.set_running_or_notify_cancel():
                    result.set_exception(NetworkError("the network is stopped"))
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _live(self) -> None:
        try:
            if self._pin is not None:
                enter(self._pin)
        except NetworkError as error:
            self._entered.set_exception(error)
            return
        self._entered.set_result(None)
        while (job := self._next()) is not None:
            work, result = job
            if not result.set_running_or_notify_cancel():
                continue
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it belongs to the job's caller, and the thread lives on
                result.set_exception(error)
                if isinstance(error, StrandedError):
                    self._abandon(error)
                    return

    def _abandon(self, error: StrandedError) -> None:
        with self._changed:
            self._closed = True
            for _, _, _, result in self._jobs:
                if result.set_running_or_notify_cancel():
                    result.set_exception(error)
            self._jobs.clear()

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            _, _, work, result = heapq.heappop(self._jobs)
        return work, result


def enter(pin: Path) -> None:
    """Move the calling thread into a pinned namespace."""
    try:
        handle = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"network namespace {pin} cannot be opened: {error}") from error
    try:
        _enter(handle, str(pin))
    finally:
        os.close(handle)


@contextlib.contextmanager
def inside(pin: Path | None) -> Generator[None, None, None]:
    """Put the calling thread into a pinned namespace, or a new one, for a moment."""
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if pin is None:
            _check(_libc.unshare(_CLONE_NEWNET), "a network namespace cannot be made")
        else:
            enter(pin)
        try:
            yield
        finally:
            try:
                _enter(own, "the thread's own")
            except NetworkError as error:
                raise StrandedError(str(error)) from error
    finally:
        os.close(own)


def pin_here(pin: Path) -> None:
    """Give the calling thread's namespace a name in the file system, which keeps it."""
    pin.touch(mode=0o600)
    try:
        _check(_libc.mount(bytes(_OWN), bytes(pin), None, _MS_BIND, None), f"{pin} cannot be bound to a namespace")
    except NetworkError:
        pin.unlink(missing_ok=True)
        raise


def unpin(pin: Path) -> None:
    """Take the name away; the namespace ends with its last user. Idempotent."""
    while is_pin(pin):
        _check(_libc.umount2(bytes(pin), _MNT_DETACH), f"{pin} cannot be unmounted")
    pin.unlink(missing_ok=True)


def is_pin(pin: Path) -> bool:
    """Whether a namespace is bound there: what a crash leaves behind may be the empty file only."""
    try:
        return pin.stat().st_dev == _OWN.stat().st_dev
    except FileNotFoundError:
        return False


def write_sysctl(name: str, value: str) -> None:
    """Set a value of the calling thread's namespace; `name` is the path under `/proc/sys/net`."""
    path = Path("/proc/sys/net") / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise NetworkError(f"sysctl net/{name} cannot be set to {value}: {error}") from error


def read_sysctl(name: str) -> str:
    return (Path("/proc/sys/net") / name).read_text().strip()


def disable_ipv6() -> None:
    """No IPv6 in the calling thread's namespace, on links that come later neither. Fine where the kernel has none."""
    for which in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").exists():
                write_sysctl(f"ipv6/conf/{which}/disable_ipv6", "1")


def _enter(handle: int, what: str) -> None:
    _check(_libc.setns(handle, _CLONE_NEWNET), f"network namespace {what} cannot be entered")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise NetworkError(f"{what}: {os.strerror(ctypes.get_errno())}")
