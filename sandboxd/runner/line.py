"""The lines in which cold starts, and claims, wait for their turn."""

import asyncio


class Line:
    """Bounds how many are inside at once. `empty` is set while nobody is inside or waits."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._there = 0
        self.empty = asyncio.Event()
        self.empty.set()

    async def __aenter__(self) -> None:
        self._there += 1
        self.empty.clear()
        try:
            await self._places.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._places.release()
        self._leave()

    def _leave(self) -> None:
        self._there -= 1
        if not self._there:
            self.empty.set()
