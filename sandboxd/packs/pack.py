"""A pack: frames of content, compressed, behind each other, then an index of them. Immutable, named by its SHA-256.

A frame holds bytes as they lie in images: units one after the other, each filled up with zeros to 4 KiB, so that a
stretch of an image is a stretch of a frame. Small units share a frame of some 256 KiB; a large one has its own.
"""

import hashlib
import struct
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import zstandard

from sandboxd.packs.blobs import Blobs
from sandboxd.packs.keys import PackName

BLOCK: Final = 4096
FRAME_BYTES: Final = 256 * 1024
"""A frame takes no more units once it has this much."""
MOST_FRAME_BYTES: Final = 2 * 1024 * 1024
PACK_BYTES: Final = 8 * 1024 * 1024
"""A pack takes no more frames once it has this much."""
MOST_PACK_BYTES: Final = 64 * 1024 * 1024

_LEVEL: Final = 3
_WORTH: Final = 10, 11
"""What compresses to less than 10/11 is kept compressed."""
_BEGIN: Final = b"SLPACK01"
_END: Final = struct.Struct("<QII32s8s")
_ENDING: Final = b"SLPACKEN"
_COUNTS: Final = struct.Struct("<II")
_FRAME: Final = struct.Struct("<QII32s")
_UNIT: Final = struct.Struct("<32sIII")
_MOST_INDEX_BYTES: Final = 64 * 1024 * 1024

_of_thread = threading.local()
"""Its `decompressor` is used again: each has some 100 KiB to make."""


class DamagedError(Exception):
    """What came out of the store is not what went in."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where compressed bytes lie in a pack, and what they must become."""

    offset: int
    stored: int
    raw: int
    digest: bytes

    def open(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return the raw bytes. DamagedError."""
        if len(data) != self.stored:
            raise DamagedError("a frame is cut off")
        raw = data if self.stored == self.raw else inflate(data, self.raw)
        if len(raw) != self.raw or hashlib.sha256(raw).digest() != self.digest:
            raise DamagedError("a frame is not what its hash says")
        return raw


def inflate(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress to at most `limit` bytes. DamagedError."""
    try:
        # The library makes room for what the data says it becomes, whatever limit it is given.
        if not 0 <= zstandard.frame_content_size(data) <= limit:
            raise DamagedError("what was compressed says that it is larger than it can be")
        if not hasattr(_of_thread, "decompressor"):
            _of_thread.decompressor = zstandard.ZstdDecompressor()
        return _of_thread.decompressor.decompress(data, max_output_size=limit)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError("what was compressed is damaged") from error


@dataclass(frozen=True, slots=True)
class PackedUnit:
    """A unit's place in a pack."""

    digest: bytes
    length: int
    frame: int
    block: int
    """From the start of its frame, in blocks of 4 KiB."""


@dataclass(slots=True)
class PackIndex:
    """What a pack holds."""

    frames: list[Frame] = field(default_factory=list[Frame])
    units: list[PackedUnit] = field(default_factory=list[PackedUnit])

    def render(self) -> bytes:
        parts = [_COUNTS.pack(len(self.frames), len(self.units))]
        parts += [_FRAME.pack(frame.offset, frame.stored, frame.raw, frame.digest) for frame in self.frames]
        parts += [_UNIT.pack(unit.digest, unit.length, unit.frame, unit.block) for unit in self.units]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Pressed:
    """A frame that is ready to be put into a pack."""

    data: bytes
    raw: int
    digest: bytes


def press(raw: bytes) -> Pressed:
    """Compress a frame, where that is worth anything. May run in any thread."""
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    part, whole = _WORTH
    return Pressed(data if len(data) * whole < len(raw) * part else raw, len(raw), hashlib.sha256(raw).digest())


class PackWriter:
    """Gathers one pack in memory."""

    def __init__(self) -> None:
        self.index = PackIndex()
        self._parts: list[bytes] = [_BEGIN]
        self.size = len(_BEGIN)

    def add(self, pressed: Pressed, units: Sequence[tuple[bytes, int, int]]) -> Frame:
        """Add a frame with its units: digest, length, and block in the frame."""
        number = len(self.index.frames)
        frame = Frame(self.size, len(pressed.data), pressed.raw, pressed.digest)
        self.index.frames.append(frame)
        self.index.units += [PackedUnit(digest, length, number, block) for digest, length, block in units]
        self._parts.append(pressed.data)
        self.size += len(pressed.data)
        return frame

    def finish(self) -> tuple[str, bytes]:
        """Return the name and the bytes."""
        raw = self.index.render()
        pressed = press(raw)
        end = _END.pack(self.size, len(pressed.data), len(raw), pressed.digest, _ENDING)
        data = b"".join((*self._parts, pressed.data, end))
        return hashlib.sha256(data).hexdigest(), data


def read_index(blobs: Blobs, name: PackName, size: int) -> PackIndex:
    """Read what a pack of that size holds. DamagedError, BlobError."""
    if not len(_BEGIN) + _END.size <= size <= MOST_PACK_BYTES:
        raise DamagedError(f"pack {name.hex} has an impossible size")
    offset, stored, raw, digest, ending = _END.unpack(blobs.get_range(name.key, size - _END.size, _END.size))
    if ending != _ENDING or offset + stored + _END.size != size or raw > _MOST_INDEX_BYTES:
        raise DamagedError(f"pack {name.hex} has no end that we know")
    return parse_index(
        bytes(Frame(offset, stored, raw, digest).open(blobs.get_range(name.key, offset, stored))), offset
    )


def parse_index(raw: bytes, end: int) -> PackIndex:
    """Read an index whose frames end before `end`. DamagedError."""
    try:
        frames, units = _COUNTS.unpack_from(raw)
        if len(raw) != _COUNTS.size + frames * _FRAME.size + units * _UNIT.size:
            raise DamagedError("the index of a pack is cut off")
        middle = _COUNTS.size + frames * _FRAME.size
        index = PackIndex(
            [Frame(*row) for row in _FRAME.iter_unpack(raw[_COUNTS.size : middle])],
            [PackedUnit(*row) for row in _UNIT.iter_unpack(raw[middle:])],
        )
    except struct.error as error:
        raise DamagedError("the index of a pack is cut off") from error
    for frame in index.frames:
        if not _is_possible(frame, end):
            raise DamagedError("a pack has a frame beyond its end")
    for unit in index.units:
        if unit.frame >= frames or unit.block * BLOCK + unit.length > index.frames[unit.frame].raw:
            raise DamagedError("a pack has a unit beyond its frame")
    return index


def check_pack(data: bytes, name: PackName) -> None:
    """Look at every byte of a pack. DamagedError."""
    if hashlib.sha256(data).hexdigest() != name.hex:
        raise DamagedError(f"pack {name.hex} is not what its name says")


def _is_possible(frame: Frame, end: int) -> bool:
    return len(_BEGIN) <= frame.offset <= frame.offset + frame.stored <= end and frame.raw <= MOST_FRAME_BYTES


@dataclass(slots=True)
class FrameTable:
    """Frames of many packs, in columns."""

    packs: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("I"))
    stored: "array[int]" = field(default_factory=lambda: array("I"))
    raw: "array[int]" = field(default_factory=lambda: array("I"))
    digests: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.packs)

    def reserve(self) -> int:
        """Give a frame its number before its place is known."""
        for column in (self.packs, self.offsets, self.stored, self.raw):
            column.append(0)
        self.digests += bytes(32)
        return len(self.packs) - 1

    def set(self, number: int, pack: int, frame: Frame) -> None:
        self.packs[number] = pack
        self.offsets[number] = frame.offset
        self.stored[number] = frame.stored
        self.raw[number] = frame.raw
        self.digests[number * 32 : number * 32 + 32] = frame.digest

    def frame(self, number: int) -> Frame:
        digest = bytes(self.digests[number * 32 : number * 32 + 32])
        return Frame(self.offsets[number], self.stored[number], self.raw[number], digest)

    def by_pack(self) -> Iterator[tuple[int, list[int]]]:
        """Go through packs with their frames, in the order in which they lie."""
        order = sorted(range(len(self.packs)), key=lambda each: (self.packs[each], self.offsets[each]))
        at = 0
        while at < len(order):
            pack = self.packs[order[at]]
            end = at
            while end < len(order) and self.packs[order[end]] == pack:
                end += 1
            yield pack, order[at:end]
            at = end
