"""Wakes who waits for a sandbox to change. Within this process: with one api, every change passes here."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


class Changes:
    """Subscriptions by sandbox id."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def notify(self, sandbox_id: str) -> None:
        for event in self._waiting.get(sandbox_id, ()):
            event.set()

    @contextmanager
    def subscribe(self, sandbox_id: str) -> Generator[asyncio.Event]:
        """Yield an event that is set at each change from now on; the waiter clears it before it looks."""
        event = asyncio.Event()
        self._waiting.setdefault(sandbox_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[sandbox_id]
            events.discard(event)
            if not events:
                del self._waiting[sandbox_id]
