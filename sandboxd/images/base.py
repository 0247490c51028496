"""The image seam: a name or id resolves to one immutable EROFS file and the image's default config."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sandboxd.contract.messages import NodeImage


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """Defaults an image brings."""

    env: dict[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    cwd: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """An image on this node, leased: its file stays while the lease is held."""

    id: str
    digest: str
    path: Path
    config: ImageConfig


class ImageMissingError(Exception):
    """No such image on this node."""


class ImageDamagedError(Exception):
    """The file is not what its digest says, or cannot be read."""


class Images(Protocol):
    """The images of one node."""

    def held(self) -> list[NodeImage]:
        """List what can be started at once. Cheap: kept in memory, refreshed when the directory changes."""
        ...

    def lease(self, image_id: str) -> AbstractAsyncContextManager[LocalImage]:
        """Hold an image while a sandbox lives. ImageMissingError, ImageDamagedError."""
        ...
