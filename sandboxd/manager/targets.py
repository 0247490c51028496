"""How many of each kind the ready pool aims at: what always stands ready, and what was asked for lately. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sandboxd.contract.ready import ReadyKey

MEMORY_SECONDS: Final = 60.0
"""After this long an asking counts for a third, after five times as long for nothing."""
_FORGOTTEN: Final = 0.01
_MOST_KINDS: Final = 256
"""Kinds are made up by callers: of more than this many the least wanted are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """Bounds of the ready pool."""

    most: int
    """In all kinds together; 0: no pool."""
    bridge_seconds: float
    """How long the recent demand is to be met out of the pool, while nothing is made anew."""


@dataclass(slots=True)
class _Asked:
    weight: float
    at: float


class Demand:
    """How often each kind was asked for lately: every asking counts less the longer ago it was."""

    def __init__(self) -> None:
        self._asked: dict[ReadyKey, _Asked] = {}

    def note(self, key: ReadyKey, at: float) -> None:
        """Count an asking, at a time that does not go back."""
        asked = self._asked.setdefault(key, _Asked(0.0, at))
        asked.weight = asked.weight * _decay(at - asked.at) + 1
        asked.at = at
        if len(self._asked) > _MOST_KINDS:
            del self._asked[min(self._asked, key=lambda each: self._weight(each, at))]

    def rates(self, at: float) -> dict[ReadyKey, float]:
        """Return askings a second, and forget kinds that nobody asks for any more."""
        for key in [key for key in self._asked if self._weight(key, at) < _FORGOTTEN]:
            del self._asked[key]
        return {key: self._weight(key, at) / MEMORY_SECONDS for key in self._asked}

    def _weight(self, key: ReadyKey, at: float) -> float:
        asked = self._asked[key]
        return asked.weight * _decay(at - asked.at)


def targets(rates: Mapping[ReadyKey, float], standing: Mapping[ReadyKey, int], rules: PoolRules) -> dict[ReadyKey, int]:
    """Return how many of each kind should be ready; kinds without any are left out.

    What stands ready always comes first, then what is asked for most, until the pool is as large as it may be.
    """
    left = rules.most
    chosen: dict[ReadyKey, int] = {}
    for key, count in standing.items():
        chosen[key] = min(count, left)
        left -= chosen[key]
    for key in sorted(rates, key=lambda each: rates[each], reverse=True):
        wanted = math.floor(rates[key] * rules.bridge_seconds + 0.5)
        more = min(max(0, wanted - chosen.get(key, 0)), left)
        chosen[key] = chosen.get(key, 0) + more
        left -= more
    return {key: count for key, count in chosen.items() if count}


def _decay(seconds: float) -> float:
    return math.exp(-max(0.0, seconds) / MEMORY_SECONDS)
