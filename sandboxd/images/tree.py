"""How much a root file system may consist of: the limits of an import, and the count that holds them."""

from dataclasses import dataclass
from threading import Event
from typing import Final

from sandboxd.images.erofs import ImageBuildError, SourceTooLargeError

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLimits:
    """More than this is no image but an attack, or a mistake."""

    size_bytes: int = 64 * GIB
    entries: int = 2_000_000
    depth: int = 128
    path_bytes: int = 4096
    text_bytes: int = 256 * 1024**2
    """Names and targets of links, all together: they are kept in memory."""
    expansion: int = 250
    """How many times its size compressed data may become, beyond the first GiB."""


class Tally:
    """Counts what comes in; SourceTooLargeError at the first thing too many. `stop` set from outside ends the work."""

    def __init__(self, limits: ImportLimits, stop: Event | None = None) -> None:
        self._limits = limits
        self._stop = stop
        self._entries = 0
        self._bytes = 0

    def go_on(self) -> None:
        """Raise ImageBuildError when nobody wants the result any more."""
        if self._stop is not None and self._stop.is_set():
            raise ImageBuildError("stopped")

    def entry(self, path: bytes, depth: int) -> None:
        self.go_on()
        self._entries += 1
        if self._entries > self._limits.entries:
            raise SourceTooLargeError(f"more than {self._limits.entries} files")
        if depth > self._limits.depth or len(path) > self._limits.path_bytes:
            raise SourceTooLargeError(f"path is too long or too deep: {path[:80].decode(errors='replace')}…")

    def data(self, count: int) -> None:
        """Say that a file of so many bytes comes, before it does."""
        self._bytes += count
        if self._bytes > self._limits.size_bytes:
            raise SourceTooLargeError(f"more than {self._limits.size_bytes} bytes")
