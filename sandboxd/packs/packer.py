"""From the file of an image to packs and a manifest: in one pass over the file, in its order, with bounded memory.

What is in the store already is not stored again. Packs are whole objects before anything names them, so that an import
that dies leaves nothing half-visible, and the next one finds what it stored.
"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.packs.blobs import Blobs
from sandboxd.packs.index import Lookup, Place, UnitIndex
from sandboxd.packs.intents import Writing
from sandboxd.packs.keys import PUBLIC, ManifestName, PackName
from sandboxd.packs.manifest import ZEROS, ExtentTable, Facts, Manifest, render
from sandboxd.packs.pack import BLOCK, FRAME_BYTES, PACK_BYTES, FrameTable, PackIndex, PackWriter, Pressed, press

UNIT_BYTES: Final = 1024 * 1024
_LOOKED_UP: Final = 8 * 1024 * 1024
_MOST_LOOKED_UP: Final = 512
_PRESSING: Final = 6
_STORING: Final = 2
_NICE: Final = 10


@dataclass(frozen=True, slots=True)
class Stretch:
    """A unit as it lies in the file of an image."""

    offset: int
    length: int
    digest: bytes | None = None
    """Its SHA-256, if that is known."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What was stored."""

    name: ManifestName
    manifest: Manifest
    data: bytes
    new_bytes: int
    """How much of it the store did not have."""


@dataclass(slots=True)
class Packer:
    """Stores one image after the other in one domain."""

    blobs: Blobs
    index: UnitIndex
    domain: str
    tick: Callable[[], None] = lambda: None
    """Called now and then; may raise."""

    def pack(self, image: Path, content: Iterable[Stretch], facts: Facts, writing: Writing) -> Packed:
        """Store an image; `content` are its files' units, by offset. The rest of the file is cut into units too."""
        domains = [PUBLIC] if self.domain == PUBLIC else [PUBLIC, self.domain]
        for domain in domains:
            self.index.sync(self.blobs, domain)
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with (
                self.index.lookup(domains, writing.avoids) as lookup,
                ThreadPoolExecutor(os.cpu_count() or 2, initializer=_step_back) as pressing,
                ThreadPoolExecutor(_STORING) as storing,
            ):
                pass_ = _Pass(self, descriptor, lookup, pressing, storing, writing)
                try:
                    pass_.run(whole(content, facts.size_bytes))
                except BaseException:
                    pressing.shutdown(cancel_futures=True)
                    storing.shutdown(cancel_futures=True)
                    raise
        finally:
            os.close(descriptor)
        manifest = Manifest(
            domain=self.domain,
            facts=facts,
            packs=tuple(pass_.packs),
            frames=pass_.frames,
            extents=pass_.extents,
        )
        name, data = render(manifest)
        writing.go_on()
        self.blobs.put(name.key, data)
        return Packed(name, manifest, data, pass_.new_bytes)


def whole(content: Iterable[Stretch], size: int) -> Iterator[Stretch]:
    """Fill what lies between units with units of its own, so that nothing of the file is left out."""
    at = 0
    for stretch in content:
        if stretch.offset < at or stretch.offset % BLOCK or not 0 < stretch.length <= UNIT_BYTES:
            raise ValueError("units lie over each other, or across the blocks of their image")
        yield from _cut(at, stretch.offset)
        yield stretch
        at = stretch.offset + stretch.length + -stretch.length % BLOCK
    if at > size or size % BLOCK:
        raise ValueError("units go beyond their image")
    yield from _cut(at, size)


def _cut(start: int, end: int) -> Iterator[Stretch]:
    for at in range(start, end, UNIT_BYTES):
        yield Stretch(at, min(UNIT_BYTES, end - at))


def _step_back() -> None:
    """Let this thread compress only with what others leave: sandboxes that start are waited for, imports are not."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


@dataclass(slots=True)
class _Frame:
    """A frame that is being filled."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    units: list[tuple[bytes, int, int]] = field(default_factory=list[tuple[bytes, int, int]])


class _Pass:
    """One pass over one image."""

    def __init__(
        self,
        packer: Packer,
        descriptor: int,
        lookup: Lookup,
        pressing: ThreadPoolExecutor,
        storing: ThreadPoolExecutor,
        writing: Writing,
    ) -> None:
        self._packer = packer
        self._descriptor = descriptor
        self._lookup = lookup
        self._pressing = pressing
        self._storing = storing
        self._writing = writing
        self.packs: list[PackName] = []
        self.frames = FrameTable()
        self.extents = ExtentTable()
        self.new_bytes = 0
        self._pack_numbers: dict[PackName, int] = {}
        self._frame_numbers: dict[tuple[PackName, int], int] = {}
        self._placed: dict[bytes, tuple[int, int]] = {}
        self._open: _Frame | None = None
        self._pressed: deque[tuple[_Frame, Future[Pressed]]] = deque()
        self._stored: deque[Future[None]] = deque()
        self._pack = PackWriter()
        self._in_pack: list[int] = []

    def run(self, stretches: Iterable[Stretch]) -> None:
        batch: list[tuple[Stretch, bytes, bytes]] = []
        held = 0
        for stretch in stretches:
            data = self._read(stretch)
            digest = stretch.digest or hashlib.sha256(memoryview(data)[: stretch.length]).digest()
            batch.append((stretch, data, digest))
            held += len(data)
            if held >= _LOOKED_UP or len(batch) >= _MOST_LOOKED_UP:
                self._take(batch)
                batch, held = [], 0
        self._take(batch)
        self._close_frame()
        while self._pressed:
            self._settle_frame()
        self._close_pack()
        while self._stored:
            self._stored.popleft().result()

    def _read(self, stretch: Stretch) -> bytes:
        """Read a unit with the zeros up to its block's end."""
        padded = stretch.length + -stretch.length % BLOCK
        data = os.pread(self._descriptor, padded, stretch.offset)
        if len(data) != padded:
            raise ValueError("the file of the image is cut off")
        return data

    def _take(self, batch: list[tuple[Stretch, bytes, bytes]]) -> None:
        self._packer.tick()
        self._writing.go_on()
        known = self._lookup.find({digest for _, _, digest in batch if digest not in self._placed})
        for stretch, data, digest in batch:
            blocks = len(data) // BLOCK
            if not data.lstrip(b"\0"):
                self.extents.add(blocks, ZEROS, 0)
                continue
            place = self._placed.get(digest)
            if place is None and (found := known.get(digest)) is not None:
                place = self._placed[digest] = self._known_frame(found), found.block
            if place is None:
                place = self._placed[digest] = self._add(data, digest, stretch.length)
            self.extents.add(blocks, *place)

    def _known_frame(self, place: Place) -> int:
        """Return our number of a frame that is in the store."""
        key = place.pack, place.frame.offset
        if key not in self._frame_numbers:
            number = self._frame_numbers[key] = self.frames.reserve()
            self.frames.set(number, self._number_of(place.pack), place.frame)
        return self._frame_numbers[key]

    def _add(self, data: bytes, digest: bytes, length: int) -> tuple[int, int]:
        """Put a new unit into a frame."""
        if len(data) >= FRAME_BYTES:
            self._close_frame()
        frame = self._open = self._open or _Frame(self.frames.reserve())
        block = len(frame.data) // BLOCK
        frame.data += data
        frame.units.append((digest, length, block))
        if len(frame.data) >= FRAME_BYTES:
            self._close_frame()
        return frame.number, block

    def _close_frame(self) -> None:
        if self._open is not None:
            frame, self._open = self._open, None
            self._pressed.append((frame, self._pressing.submit(press, bytes(frame.data))))
            frame.data.clear()
            while len(self._pressed) > _PRESSING:
                self._settle_frame()

    def _settle_frame(self) -> None:
        """Put the oldest frame into the pack."""
        frame, future = self._pressed.popleft()
        placed = self._pack.add(future.result(), frame.units)
        # The pack's number is known when it has a name.
        self.frames.set(frame.number, 0, placed)
        self._in_pack.append(frame.number)
        if self._pack.size >= PACK_BYTES:
            self._close_pack()

    def _close_pack(self) -> None:
        if not self._in_pack:
            return
        hexed, data = self._pack.finish()
        name = PackName(self._packer.domain, hexed)
        number = self._number_of(name)
        for frame in self._in_pack:
            self.frames.packs[frame] = number
        index, self._pack, self._in_pack = self._pack.index, PackWriter(), []
        self.new_bytes += len(data)
        self._stored.append(self._storing.submit(self._store, name, data, index))
        while len(self._stored) > _STORING:
            self._stored.popleft().result()

    def _store(self, name: PackName, data: bytes, index: PackIndex) -> None:
        self._packer.blobs.put(name.key, data)
        self._packer.index.add(name, index)

    def _number_of(self, name: PackName) -> int:
        number = self._pack_numbers.setdefault(name, len(self.packs))
        if number == len(self.packs):
            self.packs.append(name)
        return number
