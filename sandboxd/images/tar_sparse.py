"""Sparse files in tar archives: where each stretch of data belongs, in the four ways GNU tar has said it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sandboxd.images.erofs import SourceDamagedError, SourceTooLargeError
from sandboxd.images.pax import HEADER_LIMIT, number, pax_number

Map = Sequence[tuple[int, int]]

REPEATED: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_STRETCHES: Final = 100_000
_IN_HEADER: Final = 4
_IN_BLOCK: Final = 21
_ROW: Final = 24
_BLOCK: Final = 512
_MARKS: Final = (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size")


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    return any(mark in records for mark in _MARKS)


def old_gnu(header: bytes, more: Callable[[], bytes]) -> tuple[Map, int]:
    """Read the map of a header of type S, and the blocks that go on with it."""
    rows = _rows(header[386:482], _IN_HEADER)
    going_on = header[482]
    while going_on:
        block = more()
        if len(block) < _BLOCK:
            raise SourceDamagedError("the archive is cut off")
        rows += _rows(block, _IN_BLOCK)
        going_on = block[504]
        _bounded(len(rows))
    return rows, number(header[483:495])


def leading(more: Callable[[], bytes]) -> Map:
    """Read the map that stands before the data, as decimal lines in whole blocks."""
    lines: list[bytes] = []
    rest = b""
    wanted = 1
    read = 0
    while len(lines) < wanted:
        block = more()
        read += len(block)
        if not block:
            raise SourceDamagedError("a sparse file has no whole map")
        if read > HEADER_LIMIT:
            raise SourceTooLargeError("a sparse file has a map without end")
        *whole, rest = (rest + block).split(b"\n")
        lines += whole
        if wanted == 1 and lines:
            wanted = 1 + 2 * pax_number(lines[0])
            _bounded(wanted // 2)
    numbers = [pax_number(line) for line in lines[1:wanted]]
    return _pairs(numbers)


def in_records(records: Mapping[bytes, bytes], repeated: Sequence[tuple[bytes, bytes]]) -> Map:
    """Read the map from extended headers: one list, or the same two keys again and again."""
    if (listed := records.get(b"GNU.sparse.map")) is not None:
        numbers = [pax_number(word) for word in listed.split(b",")] if listed else []
    else:
        numbers = [pax_number(value) for _, value in repeated]
        if [key for key, _ in repeated] != list(REPEATED) * (len(repeated) // 2):
            raise SourceDamagedError("a sparse file has a map that is none")
    return _pairs(numbers)


def checked(rows: Map, size: int, stored: int, what: str) -> Map:
    """Return the map without its empty stretches, when it is in order and fits the sizes. SourceDamagedError."""
    rows = [row for row in rows if row[1]]
    at = 0
    for offset, length in rows:
        if offset < at or length < 0:
            raise SourceDamagedError(f"{what} is a sparse file whose parts overlap")
        at = offset + length
    if at > size or sum(length for _, length in rows) != stored:
        raise SourceDamagedError(f"{what} is a sparse file that is not as long as it says")
    return rows


def _rows(data: bytes, count: int) -> list[tuple[int, int]]:
    rows: list[tuple[int, int]] = []
    for at in range(0, count * _ROW, _ROW):
        offset, length = data[at : at + 12], data[at + 12 : at + _ROW]
        if not offset[0] and not length[0]:
            break
        rows.append((number(offset), number(length)))
    return rows


def _pairs(numbers: Sequence[int]) -> Map:
    _bounded(len(numbers) // 2)
    if len(numbers) % 2:
        raise SourceDamagedError("a sparse file has a map that is none")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _bounded(count: int) -> None:
    if count > _STRETCHES:
        raise SourceTooLargeError(f"a sparse file has more than {_STRETCHES} parts")
