"""Rows of a log: what a process wrote, that it ended, or that something is missing. Pure.

| bytes | field |
|---|---|
| 0 | 0xA5 |
| 1 | kind: a frame's, or MARK |
| 2-3 | reserved |
| 4-7 | length of the payload |
| 8-15 | time, µs since 1970 UTC |
| 16-23 | the process's position before the payload |
| 24-46 | process id, or 23 spaces |
| 47 | reserved |
| 48-51 | CRC-32 of all this and the payload |
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

_MAGIC: Final = 0xA5
_FIELDS: Final = struct.Struct(">BBHIqQ23sx")
_SUM: Final = struct.Struct(">I")
HEADER_BYTES: Final = _FIELDS.size + _SUM.size
MAX_ROW: Final = 4 * 1024 * 1024
"""Far above every row that is written: what says it is longer is no row."""
MARK: Final = 0x20
"""What was known of the processes where a segment begins; shown to nobody."""
NOBODY: Final = ""
"""The process id of what concerns the log itself."""


class LogRow(NamedTuple):
    """One row."""

    kind: int
    time_us: int
    process_id: str
    seq: int
    payload: bytes = b""


class Placed(NamedTuple):
    """A row and where it lies in the log."""

    begin: int
    end: int
    row: LogRow


def encode(row: LogRow) -> bytes:
    """Render a row."""
    name = row.process_id.encode().ljust(23)
    fields = _FIELDS.pack(_MAGIC, row.kind, 0, len(row.payload), row.time_us, row.seq, name)
    return fields + _SUM.pack(zlib.crc32(row.payload, zlib.crc32(fields))) + row.payload


def encode_all(rows: Iterable[LogRow]) -> bytes:
    """Render rows, back to back."""
    return b"".join(map(encode, rows))


def scan(data: bytes, base: int = 0) -> Iterator[Placed]:
    """Yield the rows of `data`, which begins at `base` of the log; stops where no whole and sound row follows."""
    at = 0
    while (placed := _row_at(data, at, base)) is not None:
        yield placed
        at = placed.end - base


def _row_at(data: bytes, at: int, base: int) -> Placed | None:
    start = at + HEADER_BYTES
    if start > len(data):
        return None
    magic, kind, _, length, time_us, seq, name = _FIELDS.unpack_from(data, at)
    end = start + length
    if magic != _MAGIC or length > MAX_ROW or end > len(data):
        return None
    payload = data[start:end]
    if zlib.crc32(payload, zlib.crc32(data[at : at + _FIELDS.size])) != _SUM.unpack_from(data, at + _FIELDS.size)[0]:
        return None
    process_id = name.rstrip().decode("ascii", "replace")
    return Placed(base + at, base + end, LogRow(kind, time_us, process_id, seq, payload))


class Known(NamedTuple):
    """What a log holds of each process: up to where, and whose end."""

    positions: dict[str, int]
    ended: dict[str, None]
    """In the order of their ends."""


MOST_ENDED: Final = 2048
"""Twice what a guest remembers."""


def nothing_known() -> Known:
    return Known({}, {})


def forget_oldest(known: Known) -> None:
    """Hold what is known of ended processes to its bound."""
    while len(known.ended) > MOST_ENDED:
        known.ended.pop(next(iter(known.ended)))


def mark(known: Known, time_us: int) -> LogRow:
    """Return the row that says what is known."""
    payload = json.dumps({"positions": known.positions, "ended": list(known.ended)}, separators=(",", ":"))
    return LogRow(MARK, time_us, NOBODY, 0, payload.encode())


def read_mark(row: LogRow) -> Known:
    """Return what a mark says; nothing where it is none of ours."""
    try:
        found = json.loads(row.payload)
        positions = {str(name): int(at) for name, at in found["positions"].items()}
        return Known(positions, dict.fromkeys(map(str, found["ended"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        return nothing_known()


def learn(known: Known, rows: Sequence[LogRow], *, exit_kind: int, lost_kind: int) -> None:
    """Bring what is known up to rows that follow."""
    for row in rows:
        if row.kind == MARK:
            found = read_mark(row)
            known.positions.update(found.positions)
            known.ended.update(found.ended)
        elif row.process_id == NOBODY:
            continue
        elif row.kind == exit_kind:
            known.positions.pop(row.process_id, None)
            known.ended[row.process_id] = None
        elif row.kind == lost_kind:
            known.positions[row.process_id] = row.seq + lost_bytes(row)
        else:
            known.positions[row.process_id] = row.seq + len(row.payload)
    forget_oldest(known)


def lost_bytes(row: LogRow) -> int:
    """Return how many bytes a `lost` row stands for; 0 where nobody knows."""
    try:
        return int(json.loads(row.payload)["lost_bytes"])
    except (ValueError, KeyError, TypeError):
        return 0


def lost_row(process_id: str, seq: int, count: int, time_us: int, kind: int) -> LogRow:
    """Return the row that stands for bytes which are missing."""
    return LogRow(kind, time_us, process_id, seq, b'{"lost_bytes":%d}' % count)
