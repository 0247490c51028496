"""How much of this program one sandbox's callers can hold: calls under way, and bodies kept until they are whole."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sandboxd.contract.problems import ProblemError

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Most:
    """What there may be at once."""

    calls_of_one: int = 512
    calls: int = 16_384
    bytes_of_one: int = 64 * _MIB
    bytes: int = 512 * _MIB


class Bounds:
    """Counts what is held for each sandbox and for all. A call beyond a bound is refused at once, not kept waiting."""

    def __init__(self, most: Most | None = None) -> None:
        self._most = most or Most()
        self._calls: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._all_calls = 0
        self._all_bytes = 0

    @contextmanager
    def call(self, sandbox_id: str) -> Generator["Hold"]:
        """Count one call while inside. `too_many_streams`."""
        if self._calls[sandbox_id] >= self._most.calls_of_one:
            raise _too_many("calls on this sandbox", self._most.calls_of_one)
        if self._all_calls >= self._most.calls:
            raise _too_many("calls on this node", self._most.calls)
        hold = Hold(self, sandbox_id)
        self._calls[sandbox_id] += 1
        self._all_calls += 1
        try:
            yield hold
        finally:
            self._all_calls -= 1
            self._all_bytes -= hold.bytes
            _lower(self._calls, sandbox_id, 1)
            _lower(self._bytes, sandbox_id, hold.bytes)

    def take(self, sandbox_id: str, count: int) -> None:
        if self._bytes[sandbox_id] + count > self._most.bytes_of_one:
            raise _too_many("bytes on their way into this sandbox", self._most.bytes_of_one)
        if self._all_bytes + count > self._most.bytes:
            raise _too_many("bytes on their way into this node", self._most.bytes)
        self._bytes[sandbox_id] += count
        self._all_bytes += count


class Hold:
    """What one call holds."""

    def __init__(self, bounds: Bounds, sandbox_id: str) -> None:
        self._bounds = bounds
        self._sandbox_id = sandbox_id
        self.bytes = 0

    def take(self, count: int) -> None:
        """Hold more bytes until the call is over. `too_many_streams`."""
        self._bounds.take(self._sandbox_id, count)
        self.bytes += count


def _lower(counter: Counter[str], key: str, by: int) -> None:
    counter[key] -= by
    if counter[key] <= 0:
        del counter[key]


def _too_many(what: str, limit: int) -> ProblemError:
    return ProblemError("too_many_streams", f"Too many {what} at once.", retry_after_seconds=1, limit=limit)
