"""What `image` of a create means: an id, a name of the project's, a name of the platform's, a reference.

In this order, and pinned: names move, sandboxes do not. A reference that nobody here has yet starts an import.
"""

import re
from dataclasses import dataclass
from typing import Final

from api.services import image_following, image_making
from api.services.identity import Caller
from api.services.image_requests import NAME, TAG, split_tag
from api.services.platform import Platform
from api.store import images as store
from api.store.image_tables import Image
from sandboxd.contract.ids import is_id
from sandboxd.contract.images import ImageReason, ImageState
from sandboxd.contract.messages import ImageRef
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.references import (
    InvalidReferenceError,
    Naming,
    NoDefaultRegistryError,
    names_registry,
    parse,
)

_TAGGED: Final = re.compile(rf"{NAME}(:{TAG})?")


@dataclass(frozen=True, slots=True)
class Pinned:
    """An image that a sandbox can start from."""

    image_id: str
    """What callers know it by."""
    ref: ImageRef
    """What nodes know it by."""
    record: Image | None
    """None: the platform's own."""


@dataclass(frozen=True, slots=True)
class Coming:
    """An image that is being made."""

    record: Image
    text: str


def naming_of(platform: Platform) -> Naming:
    """Return what stands for what references leave out."""
    settings = platform.settings
    return Naming(settings.default_registry, frozenset(settings.library_registries))


def platforms_name(platform: Platform, text: str) -> tuple[Pinned, tuple[str, str]] | None:
    """Return what a text means unless the caller's project has given that name and tag to something else.

    Whether it has is for the transaction to say in which the sandbox is promised: most have not, and need no other.
    """
    if _TAGGED.fullmatch(text) is None or is_id("img", text):
        return None
    found = platform.fleet.resolve(text)
    return None if found is None else (Pinned(found.id, found, None), split_tag(text))


async def resolve(platform: Platform, caller: Caller, text: str) -> Pinned | Coming:
    """Find what a text means for a caller. ProblemError says why it is nothing."""
    if is_id("img", text):
        record = await platform.database.read(store.find_visible, caller.project_id, text)
        return _own(platform, text, record) if record is not None else _platforms(platform, text)
    if _TAGGED.fullmatch(text) is not None:
        name, tag = split_tag(text)
        record = await platform.database.read(store.find_tagged, caller.project_id, name, tag)
        if record is not None:
            return _own(platform, text, record)
    if (found := platform.fleet.resolve(text)) is not None:
        return Pinned(found.id, found, None)
    return await _referenced(platform, caller, text)


def pin(text: str, record: Image) -> Pinned:
    """Pin a text to a ready image."""
    return Pinned(record.id, ImageRef(id=record.content_id or "", reference=text, digest=record.digest or ""), record)


def _own(platform: Platform, text: str, record: Image) -> Pinned | Coming:
    if record.state == ImageState.READY:
        return pin(text, record)
    if record.state == ImageState.FAILED:
        raise refused(text, record)
    image_following.follow(platform, record, None)
    return Coming(record, text)


def _platforms(platform: Platform, text: str) -> Pinned:
    found = platform.fleet.resolve(text)
    if found is None:
        raise _no_image(platform, text, "GET /v1/images lists what there is.")
    return Pinned(found.id, found, None)


async def _referenced(platform: Platform, caller: Caller, text: str) -> Pinned | Coming:
    """Take a reference: what is here of it, or is on its way, or an import that starts now."""
    naming = naming_of(platform)
    try:
        reference = parse(text, naming)
    except NoDefaultRegistryError:
        hint = "Name the registry (host/repository:tag), or an operator sets SANDLOT_DEFAULT_REGISTRY."
        raise _no_image(platform, text, hint) from None
    except InvalidReferenceError as error:
        if names_registry(text):
            raise _no_image(platform, text, f"{error}.") from None
        raise _no_image(platform, text, "GET /v1/images lists what there is.") from None
    if not caller.may("images", write=True):
        raise _no_image(platform, text, "Import it with a key that has the scope images:write.")
    record = await image_making.imported(platform, caller, reference)
    return _own(platform, text, record)


def _no_image(platform: Platform, text: str, hint: str) -> ProblemError:
    if not platform.fleet.views():
        return ProblemError("no_capacity", "No node has reported yet.", retry_after_seconds=1)
    return ProblemError("image_not_found", f"There is no image {text[:200]!r}.", hint=hint)


_CODES: Final = {
    ImageReason.REGISTRY_UNAVAILABLE: "registry_unavailable",
    ImageReason.INTERRUPTED: "registry_unavailable",
    ImageReason.UNAUTHORIZED: "image_unauthorized",
}


def refused(text: str, record: Image) -> ProblemError:
    """Say why nothing can start from an image that has failed."""
    reason = ImageReason(record.reason or ImageReason.INTERRUPTED)
    detail = f"The image {text[:200]!r} could not be had: {record.message or reason}"
    return ProblemError(
        _CODES.get(reason, "image_refused"), detail[:2000].rstrip(".") + ".", reason=reason, image_id=record.id
    )
