"""Locks on names in a directory, held across processes and given back by the kernel when their holder dies."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

_ASK_SECONDS: Final = 0.1


class SharedLocks:
    """Many hold a name together, or one holds it alone. One descriptor for each name held, however often."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, tuple[int, int]] = {}

    @contextmanager
    def hold(self, name: str) -> Generator[None]:
        """Hold a name together with others. Waits for one who is alone with it: that is short."""
        descriptor, count = self._held.get(name) or (_locked(self._directory / name, fcntl.LOCK_SH), 0)
        self._held[name] = descriptor, count + 1
        try:
            yield
        finally:
            _, count = self._held.pop(name)
            if count > 1:
                self._held[name] = descriptor, count - 1
            else:
                os.close(descriptor)

    @contextmanager
    def alone(self, name: str) -> Generator[bool]:
        """Hold a name alone, if nobody else has it: the value says so. Its file is gone after."""
        path = self._directory / name
        try:
            descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


@asynccontextmanager
async def own_directory(path: Path, waiting: Callable[[], None]) -> AsyncGenerator[None]:
    """Make a directory and hold it alone; its holder may remove it. `waiting` is called if another has it first."""
    told = False
    while True:
        with suppress(FileExistsError):  # it was there, and its holder removed it before that could be looked at
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, directory=True)
            break
        except FileNotFoundError:
            continue
        except BlockingIOError:
            if not told:
                waiting()
                told = True
            await asyncio.sleep(_ASK_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_if_free(path: Path) -> None:
    """Remove a directory that nobody holds."""
    with suppress(BlockingIOError, FileNotFoundError):
        descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, directory=True)
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _locked(path: Path, how: int, *, directory: bool = False) -> int:
    """Open and lock what a path names, and names still once the lock is held. BlockingIOError, FileNotFoundError."""
    flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_RDWR | os.O_CREAT
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, how)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
