"""Who uses a sandbox now, and when it was last used."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from sandboxd.clock import Clock


class Activity:
    """Counts open calls and streams. Times are boot time."""

    def __init__(self, clock: Clock, last_active: float) -> None:
        self._clock = clock
        self._last_active = last_active
        self._uses = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def in_use(self) -> bool:
        """Whether a call or stream is open now."""
        return self._uses > 0

    def last_active(self) -> float:
        """Return when it was last used: now, while it is in use."""
        if self._uses:
            self._last_active = self._clock.boottime()
        return self._last_active

    def happened(self, at: float) -> None:
        """Take note of a sign of use that was no call."""
        self._last_active = max(self._last_active, at)

    @contextmanager
    def use(self) -> Generator[None]:
        """Count as use while inside."""
        self._uses += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._uses -= 1
            self._last_active = self._clock.boottime()
            if not self._uses:
                self._quiet.set()

    async def quiet(self) -> None:
        """Wait until nothing is open."""
        await self._quiet.wait()
