"""The clocks of a node: boot time for deadlines, because it counts suspension and no one sets it; UTC for people."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final, Protocol

_NAP_SECONDS: Final = 30.0
"""The loop's own clock stands still while the host is suspended, so no sleep is longer than this."""


class Clock(Protocol):
    """Time, passed in wherever logic depends on it."""

    def boottime(self) -> float:
        """Return seconds since the host booted, suspension included."""
        ...

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""
        ...

    async def sleep_until(self, boottime: float) -> None:
        """Return once `boottime()` has reached the given value."""
        ...


class HostClock:
    """The host's clocks."""

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep_until(self, boottime: float) -> None:
        while (left := boottime - self.boottime()) > 0:  # noqa: ASYNC110 - time itself is what is waited for
            await asyncio.sleep(min(left, _NAP_SECONDS))
