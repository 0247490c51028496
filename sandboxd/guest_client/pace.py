"""How fast frames are taken from one sandbox. Pure.

Cutting and checking costs the node agent's only thread a few microseconds for each frame, however small. Without a
limit, a sandbox that sends nothing but tiny ones would have that thread for itself.
"""

from typing import Final

FRAMES_PER_SECOND: Final = 40_000
"""Of all streams of a sandbox together; with full frames, 2.5 GB/s."""
BURST_FRAMES: Final = 40_000
STEP_FRAMES: Final = 1024
"""Taken at once: some milliseconds, after which it is the others' turn."""


class Pace:
    """Frames by the second, with some credit."""

    def __init__(self, frames_per_second: float = FRAMES_PER_SECOND, burst_frames: float = BURST_FRAMES) -> None:
        self._seconds_each = 1 / frames_per_second
        self._credit_seconds = burst_frames / frames_per_second
        self._paid_until = 0.0

    def take(self, frames: int, now: float) -> float:
        """Return how many seconds to wait after taking so many."""
        begin = max(self._paid_until, now - self._credit_seconds)
        self._paid_until = begin + frames * self._seconds_each
        return max(0.0, self._paid_until - now)
