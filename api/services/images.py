"""Reading, changing and removing images, and the names of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from api.services import cursors, image_following, image_nodes, image_sizes
from api.services.cursors import Position
from api.services.identity import Caller
from api.services.image_making import require_operator
from api.services.image_requests import PatchImage
from api.services.image_views import Image as View
from api.services.image_views import image_view, platform_image_view
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.requests import check_metadata
from api.store import images as store
from api.store.image_tables import Image, Tag
from api.store.images import ImageFilter
from sandboxd.contract.validation import invalid_field

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list."""

    items: list[View]
    next_cursor: str | None


async def get(
    platform: Platform, caller: Caller, image_id: str, *, wait_for: frozenset[str], wait_seconds: float
) -> View:
    """Return an image the caller may see; waits until it is in one of `wait_for`, or the time is up."""
    record = await platform.database.read(store.find_visible, caller.project_id, image_id)
    if record is None:
        own = next((image for image in platform.fleet.named() if image.id == image_id), None)
        if own is None:
            raise store.image_not_found(image_id)
        return platform_image_view(own, image_sizes.known(platform, caller.project_id, {own.id}).get(own.id))
    found = await image_following.wait_until(platform, record, lambda row: row.state in wait_for, seconds=wait_seconds)
    if found is None:
        raise store.image_not_found(image_id)
    return await view(platform, caller, found)


async def view(platform: Platform, caller: Caller, record: Image) -> View:
    """Render an image with the caller's names of it."""
    tags = await platform.database.read(store.tags_of, caller.project_id, [record.id])
    return _view(platform, record, tags, _sizes(platform, caller, [record]))


def _sizes(platform: Platform, caller: Caller, rows: Sequence[Image]) -> Mapping[str, int]:
    """Return what is known of the caller's own: how much others' share with each other is not theirs to know."""
    own = {row.content_id for row in rows if row.content_id is not None and row.project_id == caller.project_id}
    known = image_sizes.known(platform, caller.project_id, own)
    return {content: known[content] for content in own if content in known}


def _view(platform: Platform, row: Image, tags: Mapping[str, list[str]], sizes: Mapping[str, int]) -> View:
    unique_bytes = sizes.get(row.content_id or "")
    return image_view(row, tags.get(row.id, []), platform.images.jobs.get(row.id), unique_bytes)


async def list_page(
    platform: Platform, caller: Caller, wanted: ImageFilter, *, cursor: str | None, descending: bool, limit: int
) -> Page:
    """Return a page in order of creation; the platform's own images follow on the last one."""
    now_us = platform.sources.now_us()
    scope = f"images\0{caller.project_id}\0{descending}\0{wanted!r}"
    after = None if cursor is None else cursors.unseal(platform.secret, scope, cursor, now_us)
    rows = await platform.database.read(
        store.list_page, caller.project_id, wanted, after=after, descending=descending, limit=limit + 1
    )
    items = rows[:limit]
    tags = await platform.database.read(store.tags_of, caller.project_id, [row.id for row in items])
    sizes = _sizes(platform, caller, items)
    views = [_view(platform, row, tags, sizes) for row in items]
    if len(rows) <= limit:
        return Page([*views, *_own_of_platform(platform, wanted)], None)
    last = items[-1]
    return Page(views, cursors.seal(platform.secret, scope, Position(last.created_at, last.id), now_us))


def _own_of_platform(platform: Platform, wanted: ImageFilter) -> list[View]:
    if wanted.tag is not None or wanted.visibility not in {None, "public"}:
        return []
    if wanted.states and "ready" not in wanted.states:
        return []
    return [platform_image_view(image) for image in platform.fleet.named()]


async def patch(
    platform: Platform, caller: Caller, image_id: str, body: PatchImage, match: frozenset[int] | None
) -> View:
    """Apply a merge patch."""
    record = await platform.database.read(store.get_own, caller.project_id, image_id)
    changes: dict[str, Any] = {}
    if "visibility" in body.model_fields_set:
        if "public" in {body.visibility, record.visibility}:
            require_operator(caller)
        changes["visibility"] = body.visibility
    if "metadata" in body.model_fields_set:
        given = body.metadata or {}
        kept = {} if body.metadata is None else {k: v for k, v in record.labels.items() if k not in given}
        try:
            changes["labels"] = check_metadata(kept | {k: v for k, v in given.items() if v is not None})
        except ValueError as error:
            raise invalid_field("/metadata", "value_error", str(error)) from error
    if changes:
        now_us = platform.sources.now_us()
        record = await platform.database.write(
            store.change, caller.project_id, image_id, match=match, changes=changes, now_us=now_us
        )
    return await view(platform, caller, record)


async def remove(platform: Platform, caller: Caller, image_id: str, match: frozenset[int] | None) -> None:
    """Remove an image and its names, and end what makes it. Sandboxes on it live on."""
    if match is not None:
        await platform.database.write(
            store.change,
            caller.project_id,
            image_id,
            match=match,
            changes={},
            now_us=platform.sources.now_us(),
        )
    image = await platform.database.write(store.remove, caller.project_id, image_id)
    if (following := platform.images.following.get(image_id)) is not None:
        following.cancel()
    platform.changes.notify(image_id)
    platform.background.start(_forget(platform, image))


async def _forget(platform: Platform, image: Image) -> None:
    """End the job, and remove the content where nobody else has it. What stays is for the collector."""
    try:
        await image_nodes.remove_job(platform, image.node_id, image.id)
        if image.content_id is not None and not await platform.database.write(
            store.is_wanted_any_project, image.content_id
        ):
            await image_nodes.remove_content(platform, image.node_id, image.content_id)
    except (NodeProblemError, NodeUnreachableError) as error:
        _log.warning("image not removed from its node", image=image.id, why=str(error))


@dataclass(frozen=True, slots=True)
class TagPage:
    """A page of tags."""

    items: list[Tag]
    next_cursor: str | None


async def list_tags(platform: Platform, caller: Caller, *, after: tuple[str, str] | None, limit: int) -> TagPage:
    """Return a page of the project's tags, by name; a cursor is the last name seen."""
    rows = await platform.database.read(store.list_tags, caller.project_id, after=after, limit=limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    return TagPage(rows[:limit], None if last is None else f"{last.name}:{last.tag}")
