"""What a worker says of the image it made: what the file still lacks, and where in its parent that lies."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.images.erofs_layout import BLOCK
from sandboxd.images.erofs_writer import Moves

_COUNTS: Final = struct.Struct("<II")
_MOVE: Final = struct.Struct("<III")
_UNIT: Final = struct.Struct("<QI")
_LARGEST_UNIT: Final = 1 << 20
MOST_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Table:
    """Looked at: moves follow each other and stay inside both files."""

    moves: Sequence[tuple[int, int, int]]
    units: Sequence[tuple[int, int]]


def render(moves: Moves) -> bytes:
    return b"".join(
        (
            _COUNTS.pack(len(moves.rows), len(moves.units)),
            *(_MOVE.pack(*row) for row in moves.rows),
            *(_UNIT.pack(*row) for row in moves.units),
        )
    )


def parse(data: bytes, size: int, parent_size: int) -> Table:
    """Read what a worker said of a file of that size, and of a parent of that. ValueError."""
    try:
        moves, units = _COUNTS.unpack_from(data)
    except struct.error as error:
        raise ValueError("it is cut off") from error
    middle = _COUNTS.size + moves * _MOVE.size
    if len(data) != middle + units * _UNIT.size:
        raise ValueError("it is cut off")
    table = Table(list(_MOVE.iter_unpack(data[_COUNTS.size : middle])), list(_UNIT.iter_unpack(data[middle:])))
    at = 0
    for to, start, count in table.moves:
        if to < at or not count or (to + count) * BLOCK > size or (start + count) * BLOCK > parent_size:
            raise ValueError("something is to lie where nothing can")
        at = to + count
    at = 0
    for offset, length in table.units:
        if offset < at or not 0 < length <= _LARGEST_UNIT or offset + length > size:
            raise ValueError("units lie over each other")
        at = offset + length
    return table
