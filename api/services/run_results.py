"""The last results of `POST /v1/run`, for callers who lost the answer and ask again with the same key.

In memory and bounded: output does not belong in the database. What has fallen out is answered as carried out, never
carried out again.
"""

from collections import OrderedDict
from typing import Final

MAX_BYTES: Final = 64 * 1024 * 1024


class RunResults:
    """Rendered results by sandbox id, oldest dropped first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._results: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes

    def keep(self, sandbox_id: str, result: bytes) -> None:
        self._results[sandbox_id] = result
        self._bytes += len(result)
        while self._bytes > self._max_bytes:
            _, dropped = self._results.popitem(last=False)
            self._bytes -= len(dropped)

    def get(self, sandbox_id: str) -> bytes | None:
        return self._results.get(sandbox_id)
