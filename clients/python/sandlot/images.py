"""Images: what one shall be, and what the API said of one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from sandlot.errors import SandlotError
from sandlot.models import as_object, parse_time, required, text

SETTLED: Final = frozenset({"ready", "failed"})
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Image:
    """What an image shall be made of. Nothing is asked of a server until it is used.

    >>> Image.from_registry("registry.example.com/team/app:1").source
    {'registry': {'reference': 'registry.example.com/team/app:1'}}
    """

    source: Mapping[str, Any]
    """The source as the API takes it."""
    archive: Path | None = None
    """A file that is uploaded before, if it is not there."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_registry(cls, reference: str, *, platform: str | None = None) -> "Image":
        """Return the image of a reference: `[registry/]repository[:tag][@digest]`."""
        given = {"reference": reference, "platform": platform}
        return cls({"registry": {name: value for name, value in given.items() if value is not None}})

    @classmethod
    def from_archive(cls, path: str | Path, *, format: str = "oci") -> "Image":  # noqa: A002 - the word of the API
        """Return the image in a file: an `oci` layout, what `docker` save wrote, or a `rootfs`; each as a tar."""
        return cls({"archive": {"format": format}}, archive=Path(path))

    def with_config(
        self,
        *,
        env: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
    ) -> "Image":
        """Return the same with other defaults than its source says; `env` adds to those."""
        given: dict[str, Any] = {
            "env": None if env is None else dict(env),
            "entrypoint": None if entrypoint is None else list(entrypoint),
            "cmd": None if cmd is None else list(cmd),
            "user": user,
            "cwd": cwd,
        }
        return replace(self, config=dict(self.config) | {key: one for key, one in given.items() if one is not None})


@dataclass(frozen=True)
class ImageInfo:
    """An image as the API described it at one moment."""

    id: str
    state: str
    reason: str | None
    message: str | None
    reference: str | None
    digest: str | None
    tags: tuple[str, ...]
    visibility: str | None
    size_bytes: int | None
    done_bytes: int | None
    """Of what is to be fetched, while it is being made."""
    total_bytes: int | None
    created_at: datetime | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "ImageInfo":
        """Read an Image. ProtocolError if it is none."""
        raw = as_object(value)
        progress = cast("dict[str, Any]", raw.get("progress") or {})
        return cls(
            id=required(raw, "id"),
            state=required(raw, "state"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            reference=text(raw, "reference"),
            digest=text(raw, "digest"),
            tags=tuple(raw.get("tags") or ()),
            visibility=text(raw, "visibility"),
            size_bytes=raw.get("size_bytes"),
            done_bytes=progress.get("done_bytes"),
            total_bytes=progress.get("total_bytes"),
            created_at=parse_time(raw.get("created_at")),
            raw=raw,
        )

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED


class ImageFailedError(SandlotError):
    """An image could not be made. `info` has the reason."""

    def __init__(self, info: ImageInfo) -> None:
        said = info.message or info.reason or "it failed"
        super().__init__(f"image {info.id}: {info.reason}: {said}", hint=f"sandlot image log {info.id}")
        self.info = info


@dataclass(frozen=True)
class ImageTag:
    """A name of an image."""

    name: str
    tag: str
    image_id: str

    @classmethod
    def parse(cls, value: object) -> "ImageTag":
        """Read a Tag. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(required(raw, "name"), required(raw, "tag"), required(raw, "image_id"))


def sum_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file, and its size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_PIECE_BYTES):
            digest.update(data)
            size += len(data)
    return digest.hexdigest(), size


def part_of(path: Path, offset: int, count: int) -> bytes:
    """Return a part of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)
