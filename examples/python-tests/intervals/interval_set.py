"""A set of integers kept as the fewest intervals that describe it."""

from collections.abc import Iterable, Iterator

from intervals.interval import Interval


class IntervalSet:
    """Sorted, disjoint, never touching. Immutable."""

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._intervals = tuple(_merged(sorted(intervals)))

    @classmethod
    def parse(cls, text: str) -> "IntervalSet":
        """Read `[1, 3) [5, 9)`; nothing is the empty set."""
        return cls(Interval.parse(part + ")") for part in text.split(")") if part.strip())

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._intervals)

    def __len__(self) -> int:
        """Count the integers, not the intervals."""
        return sum(len(one) for one in self._intervals)

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._intervals == other._intervals

    def __hash__(self) -> int:
        return hash(self._intervals)

    def __str__(self) -> str:
        return " ".join(map(str, self._intervals))

    def __contains__(self, point: int) -> bool:
        low, high = 0, len(self._intervals)
        while low < high:
            middle = (low + high) // 2
            if point < self._intervals[middle].end:
                high = middle
            else:
                low = middle + 1
        return low < len(self._intervals) and point in self._intervals[low]

    def __or__(self, other: "IntervalSet") -> "IntervalSet":
        return IntervalSet((*self, *other))

    def __and__(self, other: "IntervalSet") -> "IntervalSet":
        common = (one.intersection(another) for one in self for another in other)
        return IntervalSet(one for one in common if one is not None)

    def __sub__(self, other: "IntervalSet") -> "IntervalSet":
        rest = list(self)
        for cut in other:
            rest = [piece for one in rest for piece in _without(one, cut)]
        return IntervalSet(rest)

    def __xor__(self, other: "IntervalSet") -> "IntervalSet":
        return (self | other) - (self & other)

    def gaps(self) -> "IntervalSet":
        """Return what lies between the first and the last integer and is not in the set."""
        pairs = zip(self._intervals, self._intervals[1:])
        return IntervalSet(Interval(one.end, another.start) for one, another in pairs)

    def span(self) -> "Interval | None":
        """Return the smallest interval around it all."""
        if not self._intervals:
            return None
        return Interval(self._intervals[0].start, self._intervals[-1].end)


def _merged(intervals: Iterable[Interval]) -> Iterator[Interval]:
    current: Interval | None = None
    for one in intervals:
        if current is None:
            current = one
        elif current.touches(one):
            current = Interval(current.start, max(current.end, one.end))
        else:
            yield current
            current = one
    if current is not None:
        yield current


def _without(one: Interval, cut: Interval) -> Iterator[Interval]:
    if not one.overlaps(cut):
        yield one
        return
    if one.start < cut.start:
        yield Interval(one.start, cut.start)
    if cut.end < one.end:
        yield Interval(cut.end, one.end)
