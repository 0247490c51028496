"""From a manifest to the file of an image: fetched in parallel, every frame checked before any byte of it is written.

`Filling` is the one way in which bytes of a store become bytes of an image; what fills an image on demand would call it
for the frames that a reader needs next, where `materialise` calls it for all of them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from sandboxd.packs.blobs import Blobs
from sandboxd.packs.keys import PackName
from sandboxd.packs.manifest import ZEROS, Manifest
from sandboxd.packs.pack import BLOCK, DamagedError, Frame

FETCHERS: Final = 8
_WINDOW_BYTES: Final = 2 * 1024 * 1024
_GAP_BYTES: Final = 128 * 1024
"""Reading so much for nothing costs less than asking twice."""
_MOST_BESIDE: Final = 16
_TRIES: Final = 2
_COPIED: Final = 8
"""Frames in one go."""

FrameKey = tuple[PackName, int]
"""A frame, wherever it is used: its pack and its offset there."""


@dataclass(frozen=True, slots=True)
class Beside:
    """An image whose file is here already."""

    manifest: Manifest
    path: Path


@dataclass(slots=True)
class Filled:
    """Where the bytes came from."""

    fetched_bytes: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Window:
    """Frames that are fetched in one request."""

    pack: PackName
    start: int
    end: int
    frames: tuple[int, ...]


class _Copies:
    """Which frames lie whole in images that are here already."""

    def __init__(self, wanted: set[FrameKey], beside: Sequence[Beside]) -> None:
        self._places: dict[FrameKey, tuple[Path, list[tuple[int, int, int]]]] = {}
        self._open: dict[Path, int] = {}
        self._lock = Lock()
        for each in beside[:_MOST_BESIDE]:
            self._look(wanted, each)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __contains__(self, key: FrameKey) -> bool:
        return key in self._places

    def read(self, key: FrameKey, frame: Frame) -> bytes | memoryview | None:
        """Return a frame's raw bytes from such an image; None when they are not there any more, or not right."""
        path, places = self._places[key]
        raw = bytearray(frame.raw)
        try:
            descriptor = self._descriptor(path)
            for image_block, count, block in places:
                data = os.pread(descriptor, count * BLOCK, image_block * BLOCK)
                raw[block * BLOCK : block * BLOCK + len(data)] = data
            return Frame(frame.offset, frame.raw, frame.raw, frame.digest).open(bytes(raw))
        except (OSError, DamagedError):
            return None

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[path]

    def _look(self, wanted: set[FrameKey], beside: Beside) -> None:
        manifest, frames = beside.manifest, beside.manifest.frames
        keys = [(manifest.packs[frames.packs[each]], frames.offsets[each]) for each in range(len(frames))]
        useful = {number for number, key in enumerate(keys) if key in wanted and key not in self._places}
        found: dict[int, dict[int, tuple[int, int, int]]] = defaultdict(dict)
        for image_block, count, frame, block in manifest.extents:
            if frame in useful:
                found[frame].setdefault(block, (image_block, count, block))
        for frame, places in found.items():
            if sum(count for _, count, _ in places.values()) * BLOCK == frames.raw[frame]:
                self._places[keys[frame]] = beside.path, list(places.values())


@dataclass(slots=True)
class Filling:
    """Fills one file from one manifest. Its methods may be called from several threads."""

    blobs: Blobs
    manifest: Manifest
    descriptor: int
    copies: _Copies
    filled: Filled = field(default_factory=Filled)
    _lock: Lock = field(default_factory=Lock)
    _extents: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict[int, list[tuple[int, int, int]]])

    def __post_init__(self) -> None:
        by_frame: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for image_block, count, frame, block in self.manifest.extents:
            if frame != ZEROS:
                by_frame[frame].append((image_block, count, block))
        self._extents = dict(by_frame)

    def key(self, number: int) -> FrameKey:
        frames = self.manifest.frames
        return self.manifest.packs[frames.packs[number]], frames.offsets[number]

    def copy(self, number: int) -> bool:
        """Take a frame from an image that is here; False: it has to be fetched."""
        key, frame = self.key(number), self.manifest.frames.frame(number)
        raw = self.copies.read(key, frame) if key in self.copies else None
        if raw is None:
            return False
        self._write(number, raw)
        with self._lock:
            self.filled.copied_bytes += len(raw)
        return True

    def fetch(self, window: _Window) -> None:
        """Fetch frames, once more if they come damaged. DamagedError, BlobError, OSError."""
        for attempt in range(1, _TRIES + 1):
            data = memoryview(self.blobs.get_range(window.pack.key, window.start, window.end - window.start))
            with self._lock:
                self.filled.fetched_bytes += len(data)
            try:
                for number in window.frames:
                    frame = self.manifest.frames.frame(number)
                    at = frame.offset - window.start
                    self._write(number, frame.open(data[at : at + frame.stored]))
            except DamagedError as error:
                if attempt == _TRIES:
                    raise DamagedError(f"{window.pack.key}: {error}") from error
            else:
                return

    def _write(self, number: int, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        for image_block, count, block in self._extents.get(number, ()):
            data, at = view[block * BLOCK : (block + count) * BLOCK], image_block * BLOCK
            while data:
                written = os.pwrite(self.descriptor, data, at)
                data, at = data[written:], at + written


def materialise(
    blobs: Blobs,
    manifest: Manifest,
    target: Path,
    *,
    beside: Sequence[Beside] = (),
    tick: Callable[[], None] = lambda: None,
    fetchers: int = FETCHERS,
) -> Filled:
    """Write an image's file, which must not be there; it is not synced. `tick` may raise to end it.

    DamagedError, BlobError, OSError; nothing is left of it then.
    """
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, manifest.facts.size_bytes)
        frames = manifest.frames
        keys = {(manifest.packs[frames.packs[each]], frames.offsets[each]) for each in range(len(frames))}
        copies = _Copies(keys, beside)
        try:
            filling = Filling(blobs, manifest, descriptor, copies)
            _fill(filling, tick, fetchers)
        finally:
            copies.close()
    except BaseException:
        with suppress(FileNotFoundError):
            target.unlink()
        raise
    finally:
        os.close(descriptor)
    return filling.filled


def _fill(filling: Filling, tick: Callable[[], None], fetchers: int) -> None:
    missing = {number for number in range(len(filling.manifest.frames)) if filling.key(number) not in filling.copies}
    local = [number for number in range(len(filling.manifest.frames)) if number not in missing]
    with ThreadPoolExecutor(fetchers) as pool:
        pending: list[Future[None]] = []

        def fetch(window: _Window) -> None:
            tick()
            filling.fetch(window)

        def copy(numbers: Sequence[int]) -> None:
            tick()
            again = [number for number in numbers if not filling.copy(number)]
            for window in windows(filling.manifest, again):
                filling.fetch(window)

        try:
            pending += [pool.submit(fetch, window) for window in windows(filling.manifest, missing)]
            pending += [pool.submit(copy, local[at : at + _COPIED]) for at in range(0, len(local), _COPIED)]
            done, _ = wait(pending, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def windows(manifest: Manifest, numbers: Iterable[int]) -> Iterator[_Window]:
    """Gather frames that lie near each other into requests of some MiB."""
    wanted = set(numbers)
    frames = manifest.frames
    for pack, ordered in frames.by_pack():
        held: list[int] = []
        start = end = 0
        for number in ordered:
            if number not in wanted:
                continue
            offset, stop = frames.offsets[number], frames.offsets[number] + frames.stored[number]
            if held and (offset - end > _GAP_BYTES or stop - start > _WINDOW_BYTES):
                yield _Window(manifest.packs[pack], start, end, tuple(held))
                held = []
            if not held:
                start = offset
            held.append(number)
            end = max(end, stop) if len(held) > 1 else stop
        if held:
            yield _Window(manifest.packs[pack], start, end, tuple(held))
