"""Sandboxes the node no longer has, or never had, and below which generation nobody may bring them to life."""

from collections import OrderedDict
from typing import Final

_MOST: Final = 10_000
"""A late request is late by seconds; this many deletes ago is much longer."""


class Tombstones:
    """Bounded: the oldest are forgotten first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._generations: OrderedDict[str, int] = OrderedDict()

    def add(self, sandbox_id: str, generation: int) -> None:
        """Refuse generations below this one from now on."""
        self._generations[sandbox_id] = max(generation, self._generations.pop(sandbox_id, 0))
        if len(self._generations) > self._most:
            self._generations.popitem(last=False)

    def generation(self, sandbox_id: str) -> int:
        """Return the lowest generation that may live; 0 if any."""
        return self._generations.get(sandbox_id, 0)
