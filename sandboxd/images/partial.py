"""A file on its way in: written piece by piece, taken up again after any break, named only when its digest is right."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sandboxd.images.failures import ImageSourceError, corrupt, too_large
from sandboxd.images.manifests import Descriptor

_PIECE: Final = 1024 * 1024

Moved = Callable[[int], None]
"""Told of bytes that came in, or (negative) that came in for nothing."""


class PartialFile:
    """`<digest>.part`, to become `<digest>`. All methods block; one user at a time, who holds the directory's lock."""

    def __init__(self, directory: Path, descriptor: Descriptor, moved: Moved) -> None:
        self.target = directory / descriptor.hex
        self.size = 0
        self.pieced = False
        """Whether its bytes came in more than one stretch: a wrong digest may then be the seams' fault."""
        self._path = directory / f"{descriptor.hex}.part"
        self._descriptor = descriptor
        self._moved = moved
        self._hash = hashlib.sha256()
        self._fd = -1
        self._finished = False

    def open(self) -> bool:
        """Take up what is there; True when the file is complete already."""
        if self.target.exists():
            self._moved(self._descriptor.size)
            return True
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size > self._descriptor.size:
            os.ftruncate(self._fd, 0)
        while piece := os.read(self._fd, _PIECE):
            self._count(piece)
        self.pieced = self.size > 0
        return False

    def write(self, data: bytes) -> None:
        """Add bytes. ImageSourceError when they are more than there can be."""
        if self.size + len(data) > self._descriptor.size:
            raise corrupt(
                f"{self._descriptor.digest} has more than the {self._descriptor.size} bytes it is said to have"
            )
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise no_room(error) from error
        self._count(data)

    def restart(self) -> None:
        """Forget everything that came."""
        self._moved(-self.size)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.ftruncate(self._fd, 0)
        self.size, self.pieced, self._hash = 0, False, hashlib.sha256()

    def finish(self) -> None:
        """Check it and give it its name. ImageSourceError, with nothing left of it."""
        digest = f"sha256:{self._hash.hexdigest()}"
        if self.size != self._descriptor.size or digest != self._descriptor.digest:
            self.restart()
            raise corrupt(f"{self._descriptor.digest} came as {digest}")
        try:
            os.fsync(self._fd)
            self._path.rename(self.target)
            self._finished = True
        except OSError as error:
            raise no_room(error) from error

    def close(self) -> None:
        """Let go of it; what came stays for the next try, which counts it anew."""
        if self._fd >= 0:
            if not self._finished:
                self._moved(-self.size)
            os.close(self._fd)
            self._fd = -1

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._moved(len(data))


def no_room(error: OSError) -> ImageSourceError:
    """Say that this node's disk does not take it."""
    return too_large(f"this node cannot keep it: {error.strerror}")
