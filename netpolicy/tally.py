"""Decisions on their way from a program to sandboxd: equal ones counted together, refusals told at once. Bounded."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from netpolicy.judge import Ruling

_INTERVAL_SECONDS: Final = 0.1
_DENIED_INTERVAL_SECONDS: Final = 0.01
_OF_ONE: Final = 64
"""How many different decisions of one sandbox are told in one interval; the rest are counted as one row."""
_IN_ALL: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One decision about one sandbox's traffic."""

    sandbox: str
    """Its address."""
    ruling: Ruling
    name: str | None = None
    address: str | None = None
    port: int | None = None
    protocol: str | None = None


class Tally:
    """Collects decisions; `tell` gets them as JSON rows, some often in one message."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._counts: dict[Decided, int] = {}
        self._of_one: dict[str, int] = {}
        self._due: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0

    def add(self, decided: Decided) -> None:
        """Take note of one decision."""
        if decided not in self._counts:
            if self._of_one.get(decided.sandbox, 0) >= _OF_ONE or len(self._counts) >= _IN_ALL:
                ruling = Ruling(allowed=decided.ruling.allowed, source="limit", reason="too_many_to_list")
                decided = Decided(sandbox=decided.sandbox, ruling=ruling)
            else:
                self._of_one[decided.sandbox] = self._of_one.get(decided.sandbox, 0) + 1
        self._counts[decided] = self._counts.get(decided, 0) + 1
        loop = asyncio.get_running_loop()
        seconds = _INTERVAL_SECONDS
        if not decided.ruling.allowed:
            # A refusal is told before whoever was refused hears of it: the next thing they do may be to ask why.
            seconds = self._flushed_at + _DENIED_INTERVAL_SECONDS - loop.time()
            if seconds <= 0:
                self.flush()
                return
        if self._due is not None and self._due.when() > loop.time() + seconds:
            self._due.cancel()
            self._due = None
        if self._due is None:
            self._due = loop.call_later(seconds, self.flush)

    def flush(self) -> None:
        """Tell everything that is waiting."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._flushed_at = asyncio.get_running_loop().time()
        counts, self._counts = self._counts, {}
        self._of_one = {}
        if counts:
            self._tell({"decisions": [_row(decided, count) for decided, count in counts.items()]})


def _row(decided: Decided, count: int) -> dict[str, Any]:
    return {
        "sandbox": decided.sandbox,
        "count": count,
        "verdict": "allow" if decided.ruling.allowed else "deny",
        "source": decided.ruling.source,
        "rule": decided.ruling.rule,
        "reason": decided.ruling.reason,
        "name": decided.name,
        "address": decided.address,
        "port": decided.port,
        "protocol": decided.protocol,
    }
