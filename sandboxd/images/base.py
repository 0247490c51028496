"""The image seam: a name or id resolves to one immutable EROFS file and the image's default config."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the program that puts images together starts for each one: it has no use for the whole contract
    from sandboxd.contract.messages import NodeImage


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """Defaults an image brings."""

    env: dict[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    cwd: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """For people and programs that ask; nothing here acts on them."""
    ports: tuple[str, ...] = ()
    """What its makers say it listens on, such as `8080/tcp`; information only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an image came from, once."""

    kind: str
    """`registry` or `file`."""
    reference: str
    """The canonical reference, or the name of the file."""
    digest: str
    """Of the manifest that was taken; of the config where there was no manifest."""
    platform: str
    at: str
    """When, RFC 3339."""


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

    def held(self) -> "list[NodeImage]":
        """List what can be started at once. Cheap: kept in memory, refreshed when the directory changes."""
        ...

    def lease(self, image_id: str, digest: str | None = None) -> AbstractAsyncContextManager[LocalImage]:
        """Hold an image while a sandbox lives; one that is only in the store is brought here first.

        `digest` finds there what this node has never heard of. ImageMissingError, ImageDamagedError.
        """
        ...
