"""What of the images is needed, as the api on this box knows it; and what of this node's own nobody needs any more."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from api.config import Settings
from infra.config import LauncherConfig
from infra.launcher import as_user
from infra.launcher.account import LauncherError
from infra.launcher.as_user import CommandFailedError
from sandboxd.builds.cache import KEPT_SECONDS
from sandboxd.images.store import ImageInUseError, ImageStore, Record
from sandboxd.ledger.reading import images_in_use

_FIX: Final = "start Sandlot once, so that its database is of this release, then run the same again"
_MOST_SAID: Final = 64 << 20
_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class ImageRoots:
    """What the api's database knows to be needed."""

    digests: frozenset[str]
    unsettled: bool
    """Something is being made: what comes of it is not known there yet."""


_ROOTS: Final = TypeAdapter(ImageRoots)


def roots_of_api(config: LauncherConfig) -> ImageRoots | None:
    """Ask what the api knows to be needed; None where the api is not on this box. LauncherError."""
    settings = Settings.model_validate({"data_dir": config.data_dir})
    if settings.database_url is None and not os.path.lexists(settings.private_dir / "api.db"):
        return None
    try:
        said = as_user.run(config, os.environ, "infra.needed_images", most_bytes=_MOST_SAID, seconds=_SECONDS)
        return _ROOTS.validate_json(said)
    except (CommandFailedError, ValidationError) as error:
        raise LauncherError(f"the api's database cannot be read: {error}", _FIX) from None


@dataclass(slots=True)
class Forgotten:
    """Images of this node that nobody needs."""

    records: list[Record] = field(default_factory=list[Record])

    @property
    def size_bytes(self) -> int:
        return sum(record.sum.size_bytes for record in self.records)


async def forget(
    config: LauncherConfig, store: ImageStore, roots: ImageRoots | None, cache: Path, *, seconds: float, dry_run: bool
) -> Forgotten:
    """Remove from this node what has no name, is no project's, in no use, and has not been touched for a time.

    Nothing while images are being made: what comes of that is not known to the database yet.
    """
    gone = Forgotten()
    if roots is None or roots.unsettled:
        return gone
    in_use = images_in_use(config.data_dir / "ledger.db") | _cached(cache)
    for record in store.records():
        wanted = record.names or record.owed or record.sum.digest in roots.digests or record.id in in_use
        if wanted or not _untouched(store.directory / f"{record.hex}.json", seconds):
            continue
        try:
            if not dry_run:
                await store.remove(record.id)
        except ImageInUseError:
            continue
        gone.records.append(record)
    return gone


def _untouched(record: Path, seconds: float) -> bool:
    """Every start from an image touches its record."""
    with suppress(FileNotFoundError):
        return time.time() - record.stat().st_mtime >= seconds
    return False


def _cached(cache: Path) -> set[str]:
    """Return what steps of builds came to that are still remembered."""
    return set(_texts(cache, time.time() - KEPT_SECONDS)) if cache.is_dir() else set()


def _texts(cache: Path, since: float) -> Iterable[str]:
    for path in cache.iterdir():
        with suppress(OSError, ValueError):
            if path.stat().st_mtime >= since:
                yield path.read_text()
