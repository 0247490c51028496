"""The seam to what keeps bytes: objects by key, each whole or not there. Everything blocks: call it in a thread."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

_KEY: Final = re.compile(r"[a-z0-9][A-Za-z0-9_.-]{0,127}(/[a-z0-9][A-Za-z0-9_.-]{0,127}){0,7}")


class BlobError(Exception):
    """The store did not do what was asked; `str()` says why, without credentials."""


class BlobMissingError(BlobError):
    """There is no such object, in a store that is there."""


class StoreReadOnlyError(BlobError):
    """The store may be read only, or not with these credentials."""


class StoreFullError(BlobError):
    """The store has no room."""


class StoreUnavailableError(BlobError):
    """The store is not there, does not answer, or does not let us in."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What a listing says of an object."""

    key: str
    size: int
    modified: float
    """Seconds since 1970, by the store's clock."""


class Blobs(Protocol):
    """A store of objects. Every method may be called from any thread, and raises a BlobError."""

    def open(self) -> None:
        """Have what the store needs before anything else; may be left out where it was done before."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object: after this it is there whole and durable, and before it not at all. Replaces another."""
        ...

    def get(self, key: str, limit: int) -> bytes:
        """Read a whole object of at most `limit` bytes. BlobMissingError."""
        ...

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes. BlobMissingError, also when the object is shorter."""
        ...

    def list(self, prefix: str) -> Iterator[Blob]:
        """Go through everything below a key, in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; none is as good as removed."""
        ...


def checked(key: str) -> str:
    """Return a key that can be one in every store; it comes from us, so that another is a mistake of ours."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no key of an object")
    return key


def too_large(key: str, limit: int) -> BlobError:
    return BlobError(f"{key} has more than {limit} bytes")


def too_short(key: str) -> BlobMissingError:
    return BlobMissingError(f"{key} is shorter than it is said to be")
