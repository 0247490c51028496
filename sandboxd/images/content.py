"""What files hold, without the files: units of at most 1 MiB, known by their SHA-256, each kept once.

A file is one unit, or a row of slices of 1 MiB. The spool keeps units in one file beside the work until the image is
written; a store of packs can take its place, as whatever has `put` and `get`.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol, Self

UNIT_BYTES: Final = 1024 * 1024
EMPTY: Final = 0
"""The unit without bytes."""
_NOWHERE: Final = -1
_DIGEST: Final = 32
_FIRST_SLOTS: Final = 1 << 12
_BUFFER: Final = 1 << 20


class ContentSink(Protocol):
    """Where content goes while sources are read, and comes from when images are written. All methods block."""

    units: "Units"

    def put(self, data: bytes) -> int:
        """Keep a unit; the same bytes are the same unit."""
        ...

    def get(self, unit: int) -> bytes | None:
        """Return a unit's bytes; None when they are all zero."""
        ...


class Units:
    """Digest, length and place of every unit: about 60 bytes each, in columns."""

    def __init__(self) -> None:
        self.lengths = array("I")
        self.places = array("q")
        self.digests = bytearray()
        self._slots = array("I", bytes(4 * _FIRST_SLOTS))
        self._mask = _FIRST_SLOTS - 1

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self, unit: int) -> bytes:
        return bytes(self.digests[unit * _DIGEST : (unit + 1) * _DIGEST])

    def find(self, digest: bytes) -> int | None:
        """Return the unit of that digest."""
        unit = self._slots[self._slot(digest)]
        return unit - 1 if unit else None

    def add(self, digest: bytes, length: int, place: int) -> int:
        """Add a unit that is not there yet."""
        unit = len(self.lengths)
        self.lengths.append(length)
        self.places.append(place)
        self.digests += digest
        self._slots[self._slot(digest)] = unit + 1
        if 2 * (unit + 1) > self._mask:
            self._grow()
        return unit

    def _slot(self, digest: bytes) -> int:
        """Find the slot a digest is in, or would be."""
        slots, mask, digests = self._slots, self._mask, self.digests
        slot = int.from_bytes(digest[:8], "little") & mask
        while (unit := slots[slot]) and not digests.startswith(digest, (unit - 1) * _DIGEST):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        count = 4 * (self._mask + 1)
        self._slots, self._mask = array("I", bytes(4 * count)), count - 1
        for unit in range(len(self.lengths)):
            slot = int.from_bytes(self.digests[unit * _DIGEST : unit * _DIGEST + 8], "little") & self._mask
            while self._slots[slot]:
                slot = (slot + 1) & self._mask
            self._slots[slot] = unit + 1


class Spool:
    """Units in one file, in the order in which they came. Units of zeros have no place in it."""

    def __init__(self, path: Path) -> None:
        self.units = Units()
        self._file: IO[bytes] = path.open("x+b", buffering=0)
        self._pending = bytearray()
        self._end = 0
        self.put(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def put(self, data: bytes) -> int:
        digest = hashlib.sha256(data).digest()
        unit = self.units.find(digest)
        if unit is not None:
            return unit
        # Most data does not begin with a zero, so that this costs nothing.
        if not data.lstrip(b"\0"):
            return self.units.add(digest, len(data), _NOWHERE)
        place = self._end
        self._pending += data
        self._end += len(data)
        if len(self._pending) >= _BUFFER:
            self._flush()
        return self.units.add(digest, len(data), place)

    def note(self, data: bytes, place: int) -> int:
        """Know a unit that lies elsewhere: `place` is below -1, and `get` is not asked for it."""
        zeros = not data.lstrip(b"\0")
        return self.know(hashlib.sha256(data).digest(), len(data), place, zeros=zeros)

    def know(self, digest: bytes, length: int, place: int, *, zeros: bool) -> int:
        """Know a unit that lies elsewhere without having its bytes."""
        unit = self.units.find(digest)
        if unit is not None:
            return unit
        return self.units.add(digest, length, _NOWHERE if zeros else place)

    def get(self, unit: int) -> bytes | None:
        place = self.units.places[unit]
        if place == _NOWHERE:
            return None
        self._flush()
        self._file.seek(place)
        return self._file.read(self.units.lengths[unit])

    def _flush(self) -> None:
        if self._pending:
            self._file.seek(self._end - len(self._pending))
            view = memoryview(bytes(self._pending))
            self._pending.clear()
            while view:
                view = view[self._file.write(view) :]


class Contents:
    """Files' contents: a unit by its number, or (below zero) a row of units."""

    def __init__(self, sink: ContentSink) -> None:
        self.sink = sink
        self._rows: list[array[int]] = []
        self._sizes: list[int] = []
        self._known: dict[bytes, int] = {}
        self._zeros: int | None = None

    def add(self, pieces: Iterable[bytes | int]) -> int:
        """Keep what a file holds, piece by piece; a number stands for as many zeros."""
        return self.row(array("I", self._cut(pieces)))

    def row(self, units: "array[int]") -> int:
        """Keep what a file holds that is these units."""
        if len(units) == 1:
            return units[0]
        digest = hashlib.sha256(b"".join(self.sink.units.digest(unit) for unit in units)).digest()
        if (known := self._known.get(digest)) is not None:
            return known
        self._rows.append(units)
        self._sizes.append(sum(self.sink.units.lengths[unit] for unit in units))
        return self._known.setdefault(digest, -len(self._rows))

    def size(self, content: int) -> int:
        return self.sink.units.lengths[content] if content >= 0 else self._sizes[-content - 1]

    def units(self, content: int) -> Iterable[int]:
        return (content,) if content >= 0 else self._rows[-content - 1]

    def _cut(self, pieces: Iterable[bytes | int]) -> Iterator[int]:
        """Cut a file into its units, whatever pieces it came in."""
        held = bytearray()
        some = False
        for unit in self._whole(pieces, held):
            some = True
            yield unit
        if held or not some:
            yield self.sink.put(bytes(held))

    def _whole(self, pieces: Iterable[bytes | int], held: bytearray) -> Iterator[int]:
        """Keep every unit that is full; what is left at the end stays in `held`."""
        for piece in pieces:
            if not isinstance(piece, int):
                if not held and len(piece) == UNIT_BYTES:
                    yield self.sink.put(piece)
                    continue
                held += piece
                while len(held) >= UNIT_BYTES:
                    yield self.sink.put(bytes(held[:UNIT_BYTES]))
                    del held[:UNIT_BYTES]
                continue
            fill = min(piece, -len(held) % UNIT_BYTES)
            held += bytes(fill)
            if len(held) == UNIT_BYTES:
                yield self.sink.put(bytes(held))
                held.clear()
            for _ in range((piece - fill) // UNIT_BYTES):
                yield self._hole()
            held += bytes((piece - fill) % UNIT_BYTES)

    def _hole(self) -> int:
        if self._zeros is None:
            self._zeros = self.sink.put(bytes(UNIT_BYTES))
        return self._zeros
