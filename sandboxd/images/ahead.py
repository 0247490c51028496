"""Chunks made one thread ahead of whoever takes them: decompressing and hashing beside reading and keeping."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Full, Queue
from threading import Event
from typing import Final

_WAITING: Final = 8
_LOOK_SECONDS: Final = 0.05


@contextmanager
def ahead(chunks: Iterable[bytes]) -> Generator[Iterator[bytes]]:
    """Lend the chunks, a bounded number of them made in advance; at the end the thread is gone."""
    maker = _Maker(chunks)
    with ThreadPoolExecutor(1, "ahead") as thread:
        try:
            yield maker.taken(thread.submit(maker.run))
        finally:
            maker.unwanted.set()


class _Maker:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.unwanted = Event()
        self._chunks = chunks
        self._queue: Queue[bytes | None] = Queue(_WAITING)

    def run(self) -> None:
        try:
            for chunk in self._chunks:
                self._hand_over(chunk)
                if self.unwanted.is_set():
                    return
        finally:
            self._hand_over(None)

    def taken(self, making: Future[None]) -> Iterator[bytes]:
        while (chunk := self._queue.get()) is not None:
            yield chunk
        making.result()

    def _hand_over(self, chunk: bytes | None) -> None:
        while not self.unwanted.is_set():
            try:
                self._queue.put(chunk, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return
