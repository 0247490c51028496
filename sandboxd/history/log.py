"""The log of one sandbox on disk: segments of rows, the oldest dropped beyond its bound. Blocks; for threads."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.contract.frames import FrameKind
from sandboxd.history.rows import (
    HEADER_BYTES,
    MAX_ROW,
    NOBODY,
    Known,
    LogRow,
    Placed,
    encode,
    encode_all,
    learn,
    lost_row,
    mark,
    nothing_known,
    scan,
)

SEGMENTS: Final = 16
"""A log is dropped by so many parts."""
PARTS: Final = 4
"""So many positions are a row's own: its begin, and one behind each part but the last that it is shown in."""
_LEAST_SEGMENT: Final = 65_536
_SUFFIX: Final = ".log"


@dataclass(slots=True)
class Chunk:
    """Some rows of a log, in order, and where to go on."""

    rows: list[Placed] = field(default_factory=list[Placed])
    next: int = 0
    more: bool = False


def segments(directory: Path) -> dict[int, int]:
    """Return the segments of a log: where each begins, and its size; in order."""
    found: dict[int, int] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_SUFFIX)
                if entry.name.endswith(_SUFFIX) and name.isdecimal():
                    found[int(name)] = entry.stat().st_size
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def segment_path(directory: Path, begin: int) -> Path:
    return directory / f"{begin:020d}{_SUFFIX}"


class Log:
    """One writer, any number of readers by `read`. The directory is made by the first row."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory = directory
        self.known: Known = nothing_known()
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(_LEAST_SEGMENT, limit_bytes // SEGMENTS)
        self._lock = threading.Lock()
        self._segments: dict[int, int] = {}
        self._unwritten: dict[str, tuple[int, int]] = {}
        """Bytes that could not be written, by process: from where, how many."""

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return sum(self._segments.values())

    def open(self) -> None:
        """Take up what is there: half a row at the end, which a crash leaves, is cut off."""
        with self._lock:
            self._segments = segments(self.directory)
            while self._segments and not self._take_up(max(self._segments)):
                pass

    def _take_up(self, last: int) -> bool:
        """Read the segment that is to be written on; False if there is nothing in it, and it is gone."""
        path = segment_path(self.directory, last)
        placed = list(scan(path.read_bytes(), last))
        if not placed:
            path.unlink()
            del self._segments[last]
            return False
        learn(self.known, [each.row for each in placed], exit_kind=FrameKind.EXIT, lost_kind=FrameKind.LOST)
        sound = placed[-1].end - last
        if sound < self._segments[last]:
            os.truncate(path, sound)
            self._segments[last] = sound
        return True

    def append(self, rows: Sequence[LogRow], time_us: int) -> None:
        """Write rows. Where the disk does not take them they are told as lost when it does again; raises OSError."""
        with self._lock:
            learn(self.known, rows, exit_kind=FrameKind.EXIT, lost_kind=FrameKind.LOST)
            missing = [
                lost_row(process_id, seq, count, time_us, FrameKind.LOST)
                for process_id, (seq, count) in self._unwritten.items()
            ]
            try:
                self._write(encode_all([*missing, *rows]), time_us)
            except OSError:
                self._miss(rows)
                raise
            self._unwritten.clear()

    def _miss(self, rows: Sequence[LogRow]) -> None:
        for row in rows:
            seq, count = self._unwritten.get(row.process_id, (row.seq, 0))
            self._unwritten[row.process_id] = (seq, count + (len(row.payload) if row.kind < FrameKind.EXIT else 0))

    def _write(self, data: bytes, time_us: int) -> None:
        last = max(self._segments, default=None)
        is_gone = last is not None and not segment_path(self.directory, last).exists()  # somebody has tidied up
        if last is None or is_gone or self._segments[last] + len(data) > self._segment_bytes:
            begin = 0 if last is None else last + self._segments[last]
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = encode(mark(self.known, time_us)) + data
            last = begin
            self._segments[last] = 0
        path = segment_path(self.directory, last)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_at(descriptor, data, self._segments[last])
        finally:
            os.close(descriptor)
        self._segments[last] += len(data)
        while self.size_bytes > self._limit_bytes and len(self._segments) > 1:
            self._drop_oldest()

    def drop_oldest(self) -> bool:
        """Give up the oldest segment, for the node's sake; False if there is only the one that is written to."""
        with self._lock:
            if len(self._segments) < 2:
                return False
            self._drop_oldest()
            return True

    def _drop_oldest(self) -> None:
        oldest = min(self._segments)
        segment_path(self.directory, oldest).unlink(missing_ok=True)
        del self._segments[oldest]


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    """Write all of it or nothing."""
    written = 0
    try:
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], at + written)
    except OSError:
        os.ftruncate(descriptor, at)
        raise


def read(directory: Path, after: int, most_bytes: int) -> Chunk:
    """Read rows from a position on, about `most_bytes` of them. A position inside a row belongs to that row.

    What is no longer there, or not sound, is one `lost` row of nobody's.
    """
    present = segments(directory)
    chunk = Chunk(next=after)
    for begin, size in present.items():
        end = begin + size
        if end <= chunk.next:
            continue
        if begin > chunk.next:
            chunk.rows.append(_gap(chunk.next, begin))
            chunk.next = begin
        before = chunk.next
        _read_segment(segment_path(directory, begin), begin, most_bytes, chunk)
        if chunk.next < end:
            if chunk.next > before or begin == max(present):
                chunk.more = chunk.next > before
                break
            chunk.rows.append(_gap(chunk.next, end))
            chunk.next = end
        if _size(chunk) >= most_bytes:
            chunk.more = begin != max(present)
            break
    return chunk


def _size(chunk: Chunk) -> int:
    return sum(placed.end - placed.begin for placed in chunk.rows if placed.row.process_id != NOBODY)


def _gap(begin: int, end: int) -> Placed:
    return Placed(begin, end, lost_row(NOBODY, 0, end - begin, 0, FrameKind.LOST))


def _read_segment(path: Path, begin: int, most_bytes: int, chunk: Chunk) -> None:
    """Add the rows of one segment that lie behind `chunk.next`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # dropped just now: the next look finds the gap
        return
    try:
        found = _rows_from(descriptor, begin, chunk.next, most_bytes)
    finally:
        os.close(descriptor)
    for placed in found:
        if placed.end > chunk.next:
            chunk.rows.append(placed)
            chunk.next = placed.end


def _rows_from(descriptor: int, begin: int, position: int, most_bytes: int) -> list[Placed]:
    """Return the rows from the one that holds a position on.

    Positions come from here: they are where a row begins, or a byte or three behind it, never in what a program wrote.
    """
    for back in range(PARTS):
        at = max(begin, position - back)
        data = os.pread(descriptor, most_bytes + HEADER_BYTES, at - begin)
        if found := list(scan(data, at)):
            return found
        if len(data) > most_bytes and (found := list(scan(os.pread(descriptor, MAX_ROW, at - begin), at))[:1]):
            return found  # one row larger than what was asked for
        if at == begin:
            return []
    return []
