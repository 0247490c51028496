"""What callers send about images."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from api.services.requests import Metadata, MetadataKey, Text, check_metadata
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


def _later(*names: str) -> ConfigDict:
    """Leave fields out of the document that this version refuses."""

    def prune(schema: dict[str, Any]) -> None:
        for name in names:
            schema["properties"].pop(name, None)

    return ConfigDict(json_schema_extra=prune)


class RegistryImage(Strict):
    """An image in a registry."""

    model_config = _later("username", "password_secret")
    reference: ReferenceText
    platform: PlatformText = "linux/amd64"
    username: str | None = Field(default=None, max_length=255)
    password_secret: str | None = Field(default=None, max_length=64)


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
        registry, build = self.registry, self.build
        if registry is not None and (registry.username is not None or registry.password_secret is not None):
            return "secrets"
        return "secret_env" if build is not None and build.secret_env else None


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
