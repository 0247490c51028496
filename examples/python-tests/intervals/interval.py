"""One interval: the integers from `start` up to, not including, `end`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PATTERN = re.compile(r"\s*\[\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*")


class IntervalError(ValueError):
    """The text or the ends do not describe an interval."""


@dataclass(frozen=True, order=True)
class Interval:
    """Never empty: `start < end`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise IntervalError(f"[{self.start}, {self.end}) is empty")

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Read `[1, 5)`."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise IntervalError(f"not an interval: {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, point: int) -> bool:
        return self.start <= point < self.end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def overlaps(self, other: "Interval") -> bool:
        return self.start < other.end and other.start < self.end

    def touches(self, other: "Interval") -> bool:
        """Tell whether the two make one interval together."""
        return self.start <= other.end and other.start <= self.end

    def intersection(self, other: "Interval") -> "Interval | None":
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Interval(start, end) if start < end else None

    def shifted(self, distance: int) -> "Interval":
        return Interval(self.start + distance, self.end + distance)

    def split(self, point: int) -> "tuple[Interval, Interval]":
        """Cut in two before `point`, which must lie inside."""
        return Interval(self.start, point), Interval(point, self.end)
