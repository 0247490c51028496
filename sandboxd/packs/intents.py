"""Records of what is being written: while one is there, nothing it may build on is collected.

The order is what makes it safe, not any clock. Whoever writes: the intent, then the list of what is condemned, then
the list of what is there; a condemned pack is never built on, and the intent says which ones its writer avoids. The
manifest comes before the intent goes. Whoever collects looks at these in the same order, and deletes a condemned pack
only if every intent avoids it and no manifest names it.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from sandboxd.packs.blobs import Blob, BlobMissingError, Blobs
from sandboxd.packs.keys import CONDEMNED, INTENTS, PackName, parse_key, parse_tombstone

LIVES_SECONDS: Final = 24 * 3600
"""An intent that nobody touched for so long is of a writer that died."""
TOUCH_SECONDS: Final = 600
_WRITER_TRUSTS_SECONDS: Final = LIVES_SECONDS / 2
_LIMIT: Final = 16 * 1024 * 1024


class ExpiredError(Exception):
    """The writer slept so long that its intent may have been taken for a dead one's."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a writer says of itself."""

    avoids: frozenset[PackName]
    """Empty until it has looked: it avoids nothing yet."""
    images: frozenset[str]


@dataclass(slots=True)
class Writing:
    """An intent of ours. Used by one thread at a time."""

    blobs: Blobs
    clock: Callable[[], float] = time.monotonic
    avoids: frozenset[PackName] = frozenset()
    _images: set[str] = field(default_factory=set[str])
    _key: str = field(default_factory=lambda: f"{INTENTS}/{secrets.token_hex(16)}")
    _touched: float = 0.0

    def begin(self) -> None:
        """Say that something is being written; after this `avoids` is what must not be built on."""
        self._put()
        self.avoids = frozenset(condemned_packs(self.blobs))
        self._put()

    def protect(self, image: str) -> None:
        """Name an image that will be somebody's soon."""
        self._images.add(image)
        self._put()

    def go_on(self) -> None:
        """Keep the intent young; call it often. ExpiredError."""
        age = self.clock() - self._touched
        if age > _WRITER_TRUSTS_SECONDS:
            raise ExpiredError("the import slept too long; do it again: what it stored is kept")
        if age > TOUCH_SECONDS:
            self._put()

    def end(self) -> None:
        self.blobs.delete(self._key)

    def _put(self) -> None:
        document = {"avoids": sorted(name.key for name in self.avoids), "images": sorted(self._images)}
        self.blobs.put(self._key, json.dumps(document).encode())
        self._touched = self.clock()


def condemned_packs(blobs: Blobs) -> Iterable[PackName]:
    """List the packs that wait for their deletion."""
    for blob in blobs.list(CONDEMNED):
        name = parse_tombstone(blob.key)
        if isinstance(name, PackName):
            yield name


def live_intents(blobs: Blobs, now: float) -> list[Intent]:
    """Read the intents whose writers may live; those of dead ones are removed."""
    found: list[Intent] = []
    for blob in list(blobs.list(INTENTS)):
        if now - blob.modified > LIVES_SECONDS:
            blobs.delete(blob.key)
        elif (intent := _read(blobs, blob)) is not None:
            found.append(intent)
    return found


def _read(blobs: Blobs, blob: Blob) -> Intent | None:
    """Read one; one that cannot be read avoids nothing."""
    try:
        document = cast("dict[str, Any]", json.loads(blobs.get(blob.key, _LIMIT)))
        names = (parse_key(str(key)) for key in document["avoids"])
        return Intent(
            frozenset(name for name in names if isinstance(name, PackName)),
            frozenset(str(image) for image in document["images"]),
        )
    except BlobMissingError:
        return None
    except (ValueError, KeyError, TypeError):
        return Intent(frozenset(), frozenset())
