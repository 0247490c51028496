"""All logs of a node: which there are, when their sandboxes ended, and that together they stay within bounds.

Blocks; for threads.
"""

import contextlib
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from sandboxd.contract.ids import is_id
from sandboxd.history.log import Log, segments

_log = structlog.get_logger(__name__)

ENDED: Final = "ended"
"""The file in a log's directory that says when its sandbox ended, in seconds since 1970."""
_LEAST_BYTES: Final = 16_384
"""What the smallest log takes of a disk, with its directory and files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much is kept for how long."""

    log_bytes: int
    """Of one sandbox; 0: nothing is kept."""
    all_bytes: int
    days: float


class Shelf:
    """Logs by sandbox id. Live ones are held open here; ended ones lie in their directories."""

    def __init__(self, directory: Path, bounds: Bounds) -> None:
        self.directory = directory
        self.bounds = bounds
        self._lock = threading.Lock()
        self._live: dict[str, Log] = {}
        self._ended: dict[str, tuple[float, int]] = {}
        """When each ended, and what its log takes."""

    def place(self, sandbox_id: str) -> Path:
        """Return where a sandbox's log lies."""
        return self.directory / sandbox_id

    def open(self, sandbox_id: str) -> Log:
        """Return the log of a live sandbox, as it was left if an earlier agent wrote it."""
        with self._lock:
            log = self._live.get(sandbox_id)
            if log is None:
                log = Log(self.place(sandbox_id), self.bounds.log_bytes)
                log.open()
                self._live[sandbox_id] = log
            return log

    def close(self, sandbox_id: str, ended_at: float) -> None:
        """Take note that a sandbox has ended: its log, if it has one, is kept for so many days from now on."""
        with self._lock:
            self._live.pop(sandbox_id, None)
            place = self.place(sandbox_id)
            if place.is_dir():
                with contextlib.suppress(OSError):
                    _write(place / ENDED, f"{ended_at:.3f}\n")
                self._ended[sandbox_id] = (ended_at, _size(place))

    def look(self, live: frozenset[str], now: float) -> None:
        """Find the logs that earlier agents left. A sandbox that ended unseen is taken to have ended now."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self.directory) as entries:
            names = [entry.name for entry in entries if is_id("sbx", entry.name)]
        for name in names:
            with self._lock:
                known = name in live or name in self._live or name in self._ended
            if known:
                continue
            place = self.place(name)
            ended_at = _read(place / ENDED)
            if ended_at is None or ended_at > now:
                ended_at = now
                with contextlib.suppress(OSError):
                    _write(place / ENDED, f"{ended_at:.3f}\n")
            with self._lock:
                if name not in self._live:
                    self._ended.setdefault(name, (ended_at, _size(place)))

    def trim(self, now: float, *, disk_full: bool) -> None:
        """Remove what was kept long enough, then the oldest, until everything fits; at last of live logs as well."""
        with self._lock:
            oldest = sorted(self._ended, key=lambda name: self._ended[name])
            total = sum(size for _, size in self._ended.values())
            live = {name: max(_LEAST_BYTES, log.size_bytes) for name, log in self._live.items()}
        total += sum(live.values())
        for name in oldest:
            ended_at, size = self._ended[name]
            if now - ended_at < self.bounds.days * 86_400 and total <= self.bounds.all_bytes and not disk_full:
                break
            self._remove(name)
            total -= size
        while total > self.bounds.all_bytes and live:
            name = max(live, key=lambda each: live[each])
            log = self._live.get(name)
            before = log.size_bytes if log else 0
            if log is None or not log.drop_oldest():
                del live[name]
                continue
            live[name] = log.size_bytes
            total -= before - log.size_bytes

    def _remove(self, sandbox_id: str) -> None:
        try:
            shutil.rmtree(self.place(sandbox_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.error("log not removed", sandbox_id=sandbox_id, error=str(error))
        with self._lock:
            self._ended.pop(sandbox_id, None)


def _size(place: Path) -> int:
    return max(_LEAST_BYTES, sum(segments(place).values()))


def _read(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
