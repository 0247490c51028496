"""Which content somebody still has: what keeps images in the store, whatever nodes say."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from api.store.image_tables import IMAGES
from api.store.tables import SANDBOXES

_UNSETTLED: Final = ("pending", "importing", "building")


@dataclass(frozen=True, slots=True)
class ImageRoots:
    """What the database knows to be needed."""

    digests: frozenset[str]
    """Of images that are listed, with names or without, of those that live sandboxes are on, and of what builds are
    from that are not done.
    """
    unsettled: bool
    """Something is being made: what comes of it is not known here yet."""


def roots_any_project(connection: Connection) -> ImageRoots:
    """Return what must stay."""
    listed = connection.execute(select(IMAGES.c.digest).where(IMAGES.c.digest.is_not(None))).scalars()
    coming = list(connection.execute(select(IMAGES.c.source).where(IMAGES.c.state.in_(_UNSETTLED))).scalars())
    live = connection.execute(select(SANDBOXES.c.spec).where(SANDBOXES.c.ended_at.is_(None))).scalars()
    digests = {*listed, *_bases(coming), *(_image_of(spec) for spec in live)}
    return ImageRoots(frozenset(filter(None, digests)), unsettled=bool(coming))


def _image_of(spec: dict[str, Any]) -> str:
    image: dict[str, Any] = spec.get("image") or {}
    return str(image.get("digest") or "")


def _bases(sources: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Return what builds are from: the api pinned it when they were asked for."""
    for source in sources:
        images: dict[str, dict[str, Any]] = source.get("images") or {}
        for ref in images.values():
            yield str(ref.get("digest") or "")
