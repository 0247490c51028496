"""Which sandboxes' reports have changed since somebody last looked."""

import asyncio


class Changes:
    """A set that can be waited for. One reader."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._some = asyncio.Event()

    def mark(self, sandbox_id: str) -> None:
        """Take note of a change."""
        self._ids.add(sandbox_id)
        self._some.set()

    async def wait(self) -> None:
        """Wait until there is a change."""
        await self._some.wait()

    def take(self) -> set[str]:
        """Return the changes since the last time, and forget them."""
        ids, self._ids = self._ids, set()
        self._some.clear()
        return ids
