"""How often somebody may do something: a bucket for each, forgotten when it is full again. Pure."""

from typing import Final

_SWEEP: Final = 4096


class Pace:
    """So many a second for each key, and a burst above that."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left: dict[str, tuple[float, float]] = {}

    def admits(self, key: str, now: float) -> bool:
        """Take one if there is one."""
        left, at = self._left.get(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        self._left[key] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _SWEEP:
            self._forget(now)
        return left >= 1

    def _forget(self, now: float) -> None:
        full = [key for key, (left, at) in self._left.items() if left + (now - at) * self._per_second >= self._burst]
        for key in full:
            del self._left[key]
