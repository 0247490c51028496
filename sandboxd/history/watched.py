"""Who waits for more of what is kept of a sandbox."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


class Watched:
    """What may be followed, by sandbox."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watched(self, sandbox_id: str) -> Generator[asyncio.Event]:
        """Have an event set whenever there is more to read, and at the end."""
        event = asyncio.Event()
        self._watchers.setdefault(sandbox_id, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[sandbox_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[sandbox_id]

    def notify(self, sandbox_id: str) -> None:
        for event in self._watchers.get(sandbox_id, ()):
            event.set()
