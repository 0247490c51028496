import random
import unittest

from intervals import Interval, IntervalSet


def _set(text: str) -> IntervalSet:
    return IntervalSet.parse(text)


class Normal(unittest.TestCase):
    def test_empty(self) -> None:
        self.assertFalse(IntervalSet())

    def test_merges_overlaps(self) -> None:
        self.assertEqual(str(_set("[1, 5) [3, 9)")), "[1, 9)")

    def test_merges_neighbours(self) -> None:
        self.assertEqual(str(_set("[5, 9) [1, 5)")), "[1, 9)")

    def test_swallows_what_lies_inside(self) -> None:
        self.assertEqual(str(_set("[1, 9) [2, 3) [4, 5)")), "[1, 9)")

    def test_keeps_gaps(self) -> None:
        self.assertEqual(str(_set("[1, 2) [3, 4)")), "[1, 2) [3, 4)")

    def test_reads_what_it_prints(self) -> None:
        one = _set("[-4, -2) [0, 7)")
        self.assertEqual(_set(str(one)), one)

    def test_reads_nothing_as_empty(self) -> None:
        self.assertEqual(_set("  "), IntervalSet())

    def test_equal_sets_hash_alike(self) -> None:
        self.assertEqual(hash(_set("[1, 2) [2, 3)")), hash(_set("[1, 3)")))

    def test_is_no_tuple(self) -> None:
        self.assertNotEqual(_set("[1, 2)"), (Interval(1, 2),))

    def test_length_counts_integers(self) -> None:
        self.assertEqual(len(_set("[1, 3) [10, 13)")), 5)


class Algebra(unittest.TestCase):
    def test_union(self) -> None:
        self.assertEqual(_set("[1, 3)") | _set("[2, 5)"), _set("[1, 5)"))

    def test_intersection(self) -> None:
        self.assertEqual(_set("[1, 4) [6, 9)") & _set("[3, 7)"), _set("[3, 4) [6, 7)"))

    def test_difference_cuts_the_middle(self) -> None:
        self.assertEqual(_set("[1, 9)") - _set("[3, 5)"), _set("[1, 3) [5, 9)"))

    def test_difference_takes_all(self) -> None:
        self.assertEqual(_set("[3, 5)") - _set("[1, 9)"), IntervalSet())

    def test_difference_with_nothing(self) -> None:
        self.assertEqual(_set("[3, 5)") - IntervalSet(), _set("[3, 5)"))

    def test_either_but_not_both(self) -> None:
        self.assertEqual(_set("[1, 5)") ^ _set("[3, 8)"), _set("[1, 3) [5, 8)"))

    def test_gaps(self) -> None:
        self.assertEqual(_set("[1, 2) [4, 6) [9, 10)").gaps(), _set("[2, 4) [6, 9)"))

    def test_span(self) -> None:
        self.assertEqual(_set("[1, 2) [8, 9)").span(), Interval(1, 9))

    def test_span_of_nothing(self) -> None:
        self.assertIsNone(IntervalSet().span())

    def test_contains(self) -> None:
        one = _set("[1, 3) [5, 8)")
        self.assertEqual([point for point in range(10) if point in one], [1, 2, 5, 6, 7])


class AgainstPlainSets(unittest.TestCase):
    """The same operations on sets of integers give the same integers."""

    def setUp(self) -> None:
        self.random = random.Random(7)

    def _draw(self) -> IntervalSet:
        starts = [self.random.randrange(-50, 50) for _ in range(self.random.randrange(6))]
        return IntervalSet(Interval(start, start + self.random.randrange(1, 12)) for start in starts)

    def _check(self, operation: str) -> None:
        for _ in range(200):
            one, other = self._draw(), self._draw()
            plain = getattr(_points(one), operation)(_points(other))
            with self.subTest(one=str(one), other=str(other)):
                self.assertEqual(_points(getattr(one, operation)(other)), plain)

    def test_union(self) -> None:
        self._check("__or__")

    def test_intersection(self) -> None:
        self._check("__and__")

    def test_difference(self) -> None:
        self._check("__sub__")

    def test_either(self) -> None:
        self._check("__xor__")


def _points(one: IntervalSet) -> set[int]:
    return {point for interval in one for point in interval}
