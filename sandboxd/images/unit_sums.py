"""What the units of images on this node hash to, kept beside them: an image built on another need not read it whole.

Each row is true of the image whose digest names the file, whatever becomes of the image's own file: the node worked it
out from bytes that it had compared with that digest. A file that is damaged, or gone, costs time and nothing else.
"""

import hashlib
import mmap
import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.images.erofs_units import units_of

_BEGIN: Final = b"SLUNITS1"
_DIGEST: Final = 32
_ROW: Final = 8 + 4 + _DIGEST
_HEAD: Final = len(_BEGIN) + _DIGEST

Row = tuple[int, int, bytes]
"""Offset in the image, length, SHA-256."""


@dataclass(frozen=True, slots=True)
class KnownUnits:
    """Rows of one image, by offset."""

    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    digests: bytes = b""

    def find(self, offset: int, length: int) -> bytes | None:
        """Return the digest of exactly these bytes, if it is known."""
        at = bisect_left(self.offsets, offset)
        if at == len(self.offsets) or self.offsets[at] != offset or self.lengths[at] != length:
            return None
        return self.digests[at * _DIGEST : (at + 1) * _DIGEST]

    def within(self, start: int, end: int) -> Iterator[Row]:
        """Go through the rows whose bytes lie between two places."""
        for at in range(bisect_left(self.offsets, start), len(self.offsets)):
            offset, length = self.offsets[at], self.lengths[at]
            if offset + length > end:
                break
            yield offset, length, self.digests[at * _DIGEST : (at + 1) * _DIGEST]


def render(rows: Iterable[Row]) -> bytes:
    """Return a file of rows, which may come in any order."""
    ordered = sorted(rows)
    columns = array("Q", [row[0] for row in ordered]), array("I", [row[1] for row in ordered])
    if sys.byteorder == "big":
        for column in columns:
            column.byteswap()
    body = b"".join((columns[0].tobytes(), columns[1].tobytes(), *(row[2] for row in ordered)))
    return _BEGIN + hashlib.sha256(body).digest() + body


def parse(data: bytes) -> KnownUnits:
    """Read such a file. ValueError: it is damaged."""
    body = memoryview(data)[_HEAD:]
    if not data.startswith(_BEGIN) or len(body) % _ROW or hashlib.sha256(body).digest() != data[len(_BEGIN) : _HEAD]:
        raise ValueError("the digests of an image's units are damaged")
    count = len(body) // _ROW
    offsets, lengths = array("Q"), array("I")
    offsets.frombytes(body[: 8 * count])
    lengths.frombytes(body[8 * count : 12 * count])
    if sys.byteorder == "big":
        offsets.byteswap()
        lengths.byteswap()
    return KnownUnits(offsets, lengths, bytes(body[12 * count :]))


class UnitSums:
    """The files of one directory of images. Everything blocks."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._home = images / ".units"

    def path(self, image: Path) -> Path | None:
        """Return the file for an image of the directory, looked at; None when there is none, or not a whole one."""
        path = self._home / image.stem
        with suppress(OSError, ValueError):
            parse(path.read_bytes())
            return path
        return None

    def known(self, image: Path) -> KnownUnits:
        """Return what is known of an image of the directory; when nothing is, read it and find out.

        ImageDamagedError, OSError.
        """
        path = self._home / image.stem
        with suppress(OSError, ValueError):
            return parse(path.read_bytes())
        data = render(hashed(image, units_of(image)))
        self._write(path, data)
        return parse(data)

    def keep(self, image: Path, rows: Iterable[Row]) -> None:
        """Keep what is known of an image; forget what is known of images that are not here any more. OSError."""
        self._write(self._home / image.stem, render(rows))
        for path in self._home.iterdir():
            if not (self._images / f"{path.stem}.erofs").exists():
                path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        self._home.mkdir(mode=0o700, exist_ok=True)
        aside = path.with_suffix(f".{os.urandom(4).hex()}")
        try:
            aside.write_bytes(data)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def hashed(image: Path, units: Iterable[tuple[int, int]]) -> Iterator[Row]:
    """Hash stretches of a file, by offset and length; what lies beyond its end is left out. OSError."""
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
            for offset, length in units:
                if offset + length <= len(view):
                    with view[offset : offset + length] as unit:
                        yield offset, length, hashlib.sha256(unit).digest()
    finally:
        os.close(descriptor)
