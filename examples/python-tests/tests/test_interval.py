import unittest

from intervals import Interval, IntervalError


class Making(unittest.TestCase):
    def test_keeps_its_ends(self) -> None:
        one = Interval(1, 5)
        self.assertEqual((one.start, one.end), (1, 5))

    def test_empty_is_refused(self) -> None:
        with self.assertRaises(IntervalError):
            Interval(3, 3)

    def test_backwards_is_refused(self) -> None:
        with self.assertRaisesRegex(IntervalError, "empty"):
            Interval(5, 1)

    def test_is_hashable(self) -> None:
        self.assertEqual(len({Interval(1, 2), Interval(1, 2)}), 1)

    def test_cannot_be_changed(self) -> None:
        with self.assertRaises(AttributeError):
            Interval(1, 2).start = 0  # type: ignore[misc]


class Text(unittest.TestCase):
    def test_reads_what_it_prints(self) -> None:
        self.assertEqual(Interval.parse(str(Interval(-3, 8))), Interval(-3, 8))

    def test_reads_loose_spacing(self) -> None:
        self.assertEqual(Interval.parse("  [ 1,2 )"), Interval(1, 2))

    def test_refuses_other_text(self) -> None:
        for text in ("", "1, 2", "[1, 2]", "[a, b)", "[1, 2) x"):
            with self.subTest(text), self.assertRaises(IntervalError):
                Interval.parse(text)


class Points(unittest.TestCase):
    def test_holds_its_start(self) -> None:
        self.assertIn(1, Interval(1, 5))

    def test_does_not_hold_its_end(self) -> None:
        self.assertNotIn(5, Interval(1, 5))

    def test_length(self) -> None:
        self.assertEqual(len(Interval(-2, 3)), 5)

    def test_counts_through(self) -> None:
        self.assertEqual(list(Interval(2, 5)), [2, 3, 4])

    def test_order_is_by_start_then_end(self) -> None:
        self.assertEqual(sorted([Interval(2, 3), Interval(1, 9), Interval(1, 2)])[0], Interval(1, 2))


class Pairs(unittest.TestCase):
    def test_overlap(self) -> None:
        self.assertTrue(Interval(1, 5).overlaps(Interval(4, 9)))

    def test_neighbours_do_not_overlap(self) -> None:
        self.assertFalse(Interval(1, 5).overlaps(Interval(5, 9)))

    def test_neighbours_touch(self) -> None:
        self.assertTrue(Interval(1, 5).touches(Interval(5, 9)))

    def test_far_ones_do_not_touch(self) -> None:
        self.assertFalse(Interval(1, 5).touches(Interval(6, 9)))

    def test_intersection(self) -> None:
        self.assertEqual(Interval(1, 5).intersection(Interval(3, 9)), Interval(3, 5))

    def test_intersection_of_neighbours_is_none(self) -> None:
        self.assertIsNone(Interval(1, 5).intersection(Interval(5, 9)))

    def test_shift(self) -> None:
        self.assertEqual(Interval(1, 5).shifted(-3), Interval(-2, 2))

    def test_split(self) -> None:
        self.assertEqual(Interval(1, 5).split(2), (Interval(1, 2), Interval(2, 5)))

    def test_split_outside_is_refused(self) -> None:
        with self.assertRaises(IntervalError):
            Interval(1, 5).split(5)
