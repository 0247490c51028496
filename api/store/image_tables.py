"""What the database holds of images: the images, the names projects gave them, and where uploads lie."""

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index
from sqlmodel import Field, SQLModel

from api.store.tables import one_of, table_of
from sandboxd.contract.images import SOURCES, ImageState

VISIBILITIES: Final = ("project", "tree", "public")


class Image(SQLModel):
    """An image that a project asked for. `source` is without passwords: those are never stored."""

    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="projects.id")
    key_id: str
    node_id: str
    """Where its job runs."""
    state: str
    reason: str | None = None
    message: str | None = None
    kind: str
    source: dict[str, Any] = Field(sa_type=JSON)
    """As a node is asked for it."""
    overrides: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    reference: str | None = None
    """Canonical, of a registry's."""
    content_id: str | None = Field(default=None, index=True)
    """What nodes know it by, once it is ready."""
    digest: str | None = None
    origin_digest: str | None = None
    platform: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    dropped: dict[str, int] = Field(default_factory=dict, sa_type=JSON)
    steps: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON)
    size_bytes: int | None = Field(default=None, sa_type=BigInteger)
    visibility: str = "project"
    labels: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    generation: int = 1
    created_at: int = Field(sa_type=BigInteger)
    updated_at: int = Field(sa_type=BigInteger)
    ready_at: int | None = Field(default=None, sa_type=BigInteger)
    last_used_at: int | None = Field(default=None, sa_type=BigInteger)


class ImageTable(Image, table=True):
    """Images."""

    __tablename__ = "images"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (
        CheckConstraint(one_of("state", ImageState), name="image_state"),
        CheckConstraint(one_of("kind", SOURCES), name="image_kind"),
        CheckConstraint(one_of("visibility", VISIBILITIES), name="image_visibility"),
        CheckConstraint("(state = 'ready') = (content_id IS NOT NULL)", name="image_content"),
        CheckConstraint("(state = 'ready') = (ready_at IS NOT NULL)", name="image_ready_at"),
        CheckConstraint("(state = 'failed') = (reason IS NOT NULL)", name="image_reason"),
        Index("images_by_time", "project_id", "created_at", "id"),
        Index("images_by_reference", "project_id", "reference"),
        Index("images_by_state", "state"),
    )


class Tag(SQLModel):
    """A name that a project gave an image."""

    project_id: str = Field(foreign_key="projects.id", primary_key=True)
    name: str = Field(primary_key=True)
    tag: str = Field(primary_key=True)
    image_id: str = Field(foreign_key="images.id", index=True)
    created_at: int = Field(sa_type=BigInteger)
    updated_at: int = Field(sa_type=BigInteger)


class TagTable(Tag, table=True):
    """Tags."""

    __tablename__ = "tags"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string


class Upload(SQLModel):
    """On which node an upload of a project lies."""

    project_id: str = Field(foreign_key="projects.id", primary_key=True)
    sha256: str = Field(primary_key=True)
    node_id: str
    used_at: int = Field(sa_type=BigInteger, index=True)


class UploadTable(Upload, table=True):
    """Uploads."""

    __tablename__ = "uploads"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string


IMAGES: Final = table_of(ImageTable)
TAGS: Final = table_of(TagTable)
UPLOADS: Final = table_of(UploadTable)
