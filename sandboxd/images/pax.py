"""Numbers of tar headers, and extended headers: `length key=value` records."""

from functools import lru_cache
from typing import Final

from sandboxd.images.erofs import SourceDamagedError

HEADER_LIMIT: Final = 1024 * 1024
_DIGITS: Final = 20


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take a header apart. SourceDamagedError."""
    records: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + _DIGITS)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise SourceDamagedError("an extended header has a record without a length")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or data[end - 1] != ord("\n") or not equals or not key:
            raise SourceDamagedError("an extended header has a record that is none")
        records.append((key, value))
        at = end
    return records


def pax_number(value: bytes) -> int:
    if not value.isdigit() or len(value) > _DIGITS:
        raise SourceDamagedError("an extended header holds a number that is none")
    return int(value)


def pax_time(value: bytes) -> int:
    """Return nanoseconds; further digits are dropped."""
    sign = -1 if value.startswith(b"-") else 1
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if not seconds.isdigit() or len(seconds) > _DIGITS or not (not fraction or fraction.isdigit()):
        raise SourceDamagedError("an extended header holds a time that is none")
    return sign * (int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))


@lru_cache(4096)
def number(field: bytes) -> int:
    """Read a number of a header: octal digits, or binary behind a mark."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field[1:], "big") + ((first & 0x3F) << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 2) if first & 0x40 else value
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if not digits.isdigit():
        raise SourceDamagedError("a header holds a number that is none")
    try:
        return int(digits, 8)
    except ValueError as error:
        raise SourceDamagedError("a header holds a number that is none") from error
