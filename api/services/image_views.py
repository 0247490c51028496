"""Images as callers see them: the row, with what its node last told."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from api.services.views import time_of
from api.store.image_tables import Image as Row
from api.store.image_tables import Tag as TagRow
from sandboxd.contract.images import (
    ImageDefaults,
    ImageJob,
    ImageProgress,
    ImageReason,
    ImageState,
    StepRecord,
)
from sandboxd.contract.messages import NodeImage
from sandboxd.contract.processes import Open, Time


class Image(Open):
    """An image. `digest` is that of its content: the same content is the same everywhere."""

    id: str
    project_id: str | None
    """Null: the platform's own."""
    state: ImageState
    reason: ImageReason | None
    message: str | None
    source: dict[str, Any]
    reference: str | None
    digest: str | None
    source_digest: str | None
    """Of the manifest it was made from."""
    platform: str | None
    config: ImageDefaults
    tags: list[str]
    visibility: str
    size_bytes: int | None
    unique_bytes: int | None = None
    """Of what it takes in the store, what no other image has that you may see; null while that is not known."""
    dropped: dict[str, int]
    progress: ImageProgress | None
    steps: list[StepRecord] | None = Field(default=None)
    metadata: dict[str, str]
    generation: int
    created_at: Time | None
    ready_at: Time | None
    last_used_at: Time | None


class ImageList(Open):
    """A page of images; the platform's own come last."""

    items: list[Image]
    next_cursor: str | None


class Tag(Open):
    """A name of an image."""

    name: str
    tag: str
    image_id: str
    created_at: Time
    updated_at: Time


class TagList(Open):
    """A page of tags."""

    items: list[Tag]
    next_cursor: str | None


def image_view(row: Row, tags: Sequence[str], job: ImageJob | None, unique_bytes: int | None = None) -> Image:
    """Render a row; `job` is what its node last told of it."""
    unsettled = row.state not in {ImageState.READY, ImageState.FAILED}
    told = job if job is not None and unsettled else None
    return Image.model_construct(
        id=row.id,
        project_id=row.project_id,
        state=ImageState(row.state),
        reason=None if row.reason is None else ImageReason(row.reason),
        message=row.message or (waiting_message(job) if unsettled else None),
        source={row.kind: row.source},
        reference=row.reference,
        digest=row.digest,
        source_digest=row.origin_digest,
        platform=row.platform,
        config=ImageDefaults.model_construct(**(ImageDefaults().model_dump() | row.config)),
        tags=list(tags),
        visibility=row.visibility,
        size_bytes=row.size_bytes,
        unique_bytes=unique_bytes,
        dropped=row.dropped,
        progress=told.progress if told else None,
        steps=told.steps if told else None if row.steps is None else [StepRecord.model_validate(s) for s in row.steps],
        metadata=row.labels,
        generation=row.generation,
        created_at=time_of(row.created_at),
        ready_at=time_of(row.ready_at),
        last_used_at=time_of(row.last_used_at),
    )


def waiting_message(job: ImageJob | None) -> str:
    """Say in words how far an image is that is being made."""
    if job is None or job.state == ImageState.PENDING:
        return "It waits for its turn."
    if job.progress is None:
        return "It is being made."
    done, total = job.progress.done_bytes, job.progress.total_bytes
    return f"{done / 1048576:.1f} of {total / 1048576:.1f} MiB are here."


def platform_image_view(image: NodeImage, unique_bytes: int | None = None) -> Image:
    """Render an image of the platform: an operator put it there."""
    return Image.model_construct(
        id=image.id,
        project_id=None,
        state=ImageState.READY,
        reason=None,
        message=None,
        source={},
        reference=None,
        digest=image.digest,
        source_digest=None,
        platform=None,
        config=ImageDefaults(),
        tags=list(image.names),
        visibility="public",
        size_bytes=image.size_bytes,
        unique_bytes=unique_bytes,
        dropped={},
        progress=None,
        steps=None,
        metadata={},
        generation=1,
        created_at=None,
        ready_at=None,
        last_used_at=None,
    )


def tag_view(row: TagRow) -> Tag:
    return Tag.model_construct(
        name=row.name,
        tag=row.tag,
        image_id=row.image_id,
        created_at=time_of(row.created_at),
        updated_at=time_of(row.updated_at),
    )
