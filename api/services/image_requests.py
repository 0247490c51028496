"""What callers send about images."""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from api.services.requests import Metadata, MetadataKey, Text, check_metadata
from api.services.secret_requests import SecretName
from sandboxd.contract.ids import ImageId
from sandboxd.contract.images import (
    SOURCES,
    ArchiveSource,
    Build,
    ImageOverrides,
    PlatformText,
    ReferenceText,
    SandboxSource,
    SnapshotSource,
    exactly_one,
)
from sandboxd.contract.processes import Strict

NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"

TagText = Annotated[str, StringConstraints(pattern=rf"^{NAME}(:{TAG})?$")]
Visibility = Literal["project", "tree", "public"]


class RegistryImage(Strict):
    """An image in a registry."""

    reference: ReferenceText
    platform: PlatformText = "linux/amd64"
    username: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f:]+$")] | None = None
    """With `password_secret`: what the registry knows the project by."""
    password_secret: SecretName | None = None
    """The secret that is the password; its `hosts` must cover the registry's."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> "RegistryImage":
        if (self.username is None) != (self.password_secret is None):
            msg = "give both username and password_secret, or neither"
            raise ValueError(msg)
        return self


class ImageSpec(Strict):
    """Body of `POST /v1/images`: exactly one of registry, archive, build, sandbox and snapshot."""

    registry: RegistryImage | None = None
    archive: ArchiveSource | None = None
    build: Build | None = None
    sandbox: SandboxSource | None = None
    snapshot: SnapshotSource | None = None
    tags: list[TagText] = Field(default_factory=list, max_length=64)
    """`name` or `name:tag`; they point here once the image is ready."""
    visibility: Visibility = "project"
    """Who else may start from it: `tree` descendants of the project, `public` everybody (operators only)."""
    config: ImageOverrides | None = None
    """Over what the source says."""
    metadata: Metadata = Field(default_factory=dict)
    wait_seconds: Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 60, "default": 0})] = (
        Field(default=0, ge=0, le=60)
    )
    """How long the answer may wait for the image to be settled."""

    @model_validator(mode="after")
    def _one_source(self) -> "ImageSpec":
        exactly_one(self, SOURCES)
        return self

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, metadata: dict[str, str]) -> dict[str, str]:
        return check_metadata(metadata)

    @property
    def kind(self) -> str:
        """Which source it is."""
        return exactly_one(self, SOURCES)

    def later_feature(self) -> str | None:
        """Return the name of what this version does not offer, if it is asked for."""
        egress = self.build.egress if self.build is not None else None
        return "build.egress.inject" if egress is not None and egress.inject else None


class PatchImage(Strict):
    """Merge patch of an image."""

    visibility: Visibility = "project"
    metadata: dict[MetadataKey, Text | None] | None = None


class PutTag(Strict):
    """Body of `PUT /v1/tags/{name}:{tag}`."""

    image_id: ImageId


def split_tag(text: str) -> tuple[str, str]:
    """Return name and tag; without one it is `latest`."""
    name, _, tag = text.partition(":")
    return name, tag or "latest"
