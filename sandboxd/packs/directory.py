"""Objects as files of a directory: of this machine, or one that several nodes mount."""

import errno
import os
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sandboxd.packs.blobs import (
    Blob,
    BlobError,
    BlobMissingError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    checked,
    too_large,
    too_short,
)

_MARK: Final = ".sandlot-images"
"""Says that this is a store: an empty mount point must not pass for one that lost everything."""
_FRESH: Final = ".fresh"
_KEPT_SECONDS: Final = 24 * 3600


class DirectoryBlobs:
    """One file an object. A write is a new file, synced, then renamed, and its directory synced."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> None:
        """Make the store if its directory is empty or not there; clear away writes that were cut off. BlobError."""
        with _told(self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self._root / _MARK).exists():
                if any(self._root.iterdir()):
                    raise StoreUnavailableError(f"{self._root} holds something, but no store of images")
                (self._root / _MARK).touch()
            (self._root / _FRESH).mkdir(mode=0o700, exist_ok=True)
            for leftover in (self._root / _FRESH).iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > _KEPT_SECONDS:
                        leftover.unlink()

    def put(self, key: str, data: bytes) -> None:
        target = self._root / checked(key)
        with _told(self._root):
            self._look()
            aside = self._root / _FRESH / secrets.token_hex(16)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                try:
                    _write(descriptor, data)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._make(target.parent)
                aside.replace(target)
                _sync(target.parent)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise

    def get(self, key: str, limit: int) -> bytes:
        with self._opened(key) as descriptor:
            if os.fstat(descriptor).st_size > limit:
                raise too_large(key, limit)
            return _read(descriptor, 0, os.fstat(descriptor).st_size)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        with self._opened(key) as descriptor:
            data = _read(descriptor, offset, length)
        if len(data) != length:
            raise too_short(key)
        return data

    def list(self, prefix: str) -> Iterator[Blob]:
        pending = [self._root / checked(prefix)]
        with _told(self._root):
            self._look()
            while pending:
                try:
                    entries = list(os.scandir(pending.pop()))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                        continue
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        key = str(Path(entry.path).relative_to(self._root))
                        yield Blob(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        with _told(self._root):
            self._look()
            (self._root / checked(key)).unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str) -> Generator[int]:
        with _told(self._root):
            try:
                descriptor = os.open(self._root / checked(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                self._look()
                raise BlobMissingError(f"{key} is not in the store") from None
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _look(self) -> None:
        if not (self._root / _MARK).exists():
            raise StoreUnavailableError(f"{self._root} is not there, or no store of images any more")

    def _make(self, directory: Path) -> None:
        """Make directories, each durable in the one above."""
        missing = [directory]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for each in reversed(missing):
            if not each.exists():
                each.mkdir(mode=0o700, exist_ok=True)
                _sync(each.parent)


@contextmanager
def _told(root: Path) -> Generator[None]:
    """Say in our words what the operating system says of a store."""
    try:
        yield
    except OSError as error:
        text = f"{root}: {error.strerror}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StoreFullError(text) from error
        if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise StoreReadOnlyError(text) from error
        if error.errno == errno.EISDIR:
            raise BlobError(text) from error
        raise StoreUnavailableError(text) from error


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Read as much of it as there is."""
    data = os.pread(descriptor, length, offset)
    if len(data) in {0, length}:
        return data
    parts = [data]
    while len(data) and sum(map(len, parts)) < length:
        data = os.pread(descriptor, length - sum(map(len, parts)), offset + sum(map(len, parts)))
        parts.append(data)
    return b"".join(parts)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
