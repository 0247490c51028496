"""Half-open integer intervals, and sets of them."""

from intervals.interval import Interval, IntervalError
from intervals.interval_set import IntervalSet

__all__ = ["Interval", "IntervalError", "IntervalSet"]
