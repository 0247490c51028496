"""Images on this node out of the store: filled once however many ask, evicted when there is no room, never trusted.

A file is not synced before a sandbox starts from it: until it is, its mode says so, and after a crash such a file is
read whole before it is used.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Final

import structlog

from sandboxd.images.base import ImageDamagedError
from sandboxd.images.locks import SharedLocks, own_directory, remove_if_free
from sandboxd.images.threads import in_thread
from sandboxd.packs.blobs import BlobError
from sandboxd.packs.keys import ManifestName
from sandboxd.packs.pack import DamagedError
from sandboxd.packs.store import PackStore

_log = structlog.get_logger(__name__)

_FILLING: Final = ".filling"
_QUARANTINE: Final = ".quarantine"
_KEPT_DAMAGED: Final = 2
SURE_MODE: Final = 0o444
_UNSURE_MODE: Final = 0o600


class StoppedError(Exception):
    """Nobody wants the image any more."""


class Filler:
    """Brings the files of one directory into being, and out of it."""

    def __init__(
        self,
        directory: Path,
        packs: PackStore,
        leases: SharedLocks,
        *,
        cache_bytes: int = 0,
        reserve_bytes: int = 0,
    ) -> None:
        """`cache_bytes`: what all files take at most, if they can be had again; 0: as much as the disk has."""
        self._directory = directory
        self._packs = packs
        self._leases = leases
        self._cache_bytes = cache_bytes
        self._reserve_bytes = reserve_bytes
        self._flights: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        """Clear away what fills left that were cut off."""
        for name in (_FILLING, _QUARANTINE):
            (self._directory / name).mkdir(mode=0o700, exist_ok=True)
        for leftover in (self._directory / _FILLING).iterdir():
            remove_if_free(leftover)

    async def fill(
        self,
        name: ManifestName,
        target: Path,
        is_whole: Callable[[], bool],
        filled: Callable[[], None],
        others: Sequence[tuple[ManifestName, Path]],
    ) -> None:
        """Have a whole file at `target`; a damaged one there is set aside. ImageDamagedError: it cannot be had."""
        flight = self._flights.setdefault(name.image, asyncio.Lock())
        async with flight:
            place = self._directory / _FILLING / name.image
            async with own_directory(place, lambda: None):
                try:
                    if not await asyncio.to_thread(is_whole):
                        stop = Event()
                        await in_thread(lambda: self._fill(name, place / "image", target, others, stop), stop)
                        filled()
                finally:
                    shutil.rmtree(place, ignore_errors=True)  # at most one file
        if not flight.locked():
            self._flights.pop(name.image, None)

    def quarantine(self, path: Path) -> None:
        """Set a damaged file aside; sandboxes that have it open keep it. The newest few are kept, for people."""
        home = self._directory / _QUARANTINE
        with suppress(FileNotFoundError):
            path.replace(home / path.name)
        kept = sorted(home.iterdir(), key=lambda each: each.lstat().st_mtime, reverse=True)
        for old in kept[_KEPT_DAMAGED:]:
            old.unlink(missing_ok=True)

    def evict(self, need: int, candidates: Sequence[tuple[ManifestName, Path]], *, everything: bool = False) -> int:
        """Remove files that can be had again and nobody uses, the longest unused first; return the bytes freed."""
        files = [(path, size) for _, path in candidates if (size := _taken(path)) is not None]
        total = sum(size for _, size in files)
        freed = 0
        for path, size in sorted(files, key=lambda each: _used_at(each[0])):
            enough_room = shutil.disk_usage(self._directory).free - self._reserve_bytes >= need
            within = not self._cache_bytes or total - freed + need <= self._cache_bytes
            if enough_room and within and not everything:
                break
            with self._leases.alone(path.stem) as alone:
                if alone:
                    path.unlink(missing_ok=True)
                    freed += size
        return freed

    def _fill(
        self,
        name: ManifestName,
        aside: Path,
        target: Path,
        others: Sequence[tuple[ManifestName, Path]],
        stop: Event,
    ) -> None:
        def tick() -> None:
            if stop.is_set():
                raise StoppedError

        try:
            need = self._packs.manifest(name).facts.size_bytes
            self.evict(need, others)
            free = shutil.disk_usage(self._directory).free
            if need > free:
                raise ImageDamagedError(f"the image needs {need} bytes; this node has room for {free}")
            aside.unlink(missing_ok=True)
            beside = [(other, path) for other, path in others if path.exists()]
            try:
                filled = self._packs.fill(name, aside, beside=beside, tick=tick)
            except OSError:
                if not self.evict(need, others, everything=True):
                    raise
                filled = self._packs.fill(name, aside, tick=tick)
        except (BlobError, DamagedError) as error:
            raise ImageDamagedError(f"image cannot be had from the store: {error}") from error
        except OSError as error:
            raise ImageDamagedError(f"image cannot be written: {error.strerror}") from error
        aside.chmod(_UNSURE_MODE)
        if target.exists():
            self.quarantine(target)
        aside.replace(target)
        _log.info(
            "image filled", image=name.image, fetched_bytes=filled.fetched_bytes, copied_bytes=filled.copied_bytes
        )


def is_sure(path: Path) -> bool:
    """Tell whether a file was synced after it was written."""
    return bool(path.stat().st_mode & 0o004)


def make_sure(path: Path) -> None:
    """Put a file on the disk, and say so in its mode."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.fchmod(descriptor, SURE_MODE)
        except OSError as error:
            _log.warning("an image is not on the disk yet", path=path.name, error=str(error))
        finally:
            os.close(descriptor)


def _taken(path: Path) -> int | None:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return None


def _used_at(path: Path) -> float:
    try:
        return path.with_suffix(".json").stat().st_mtime
    except OSError:
        return 0.0
