"""A sandbox's files seen from the node: the interface that the HTTP client and the fake fulfil."""

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """What a call is about, and who acts; None: the sandbox's user."""

    path: bytes
    user: str | None = None

    def query(self) -> dict[str, str]:
        who = {} if self.user is None else {"user": self.user}
        return {"path_base64": encoded(self.path)} | who


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a file: from `first` to `last`, or the `suffix` last bytes; all of it if neither is given."""

    first: int | None = None
    last: int | None = None
    suffix: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a file is written."""

    mode: str | None = None
    parents: bool = True
    append: bool = False
    encoding: str | None = None
    match: str | None = None
    non_match: str | None = None
    length: int | None = None
    """How many bytes the body has; None: nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How an archive is extracted."""

    archive_format: str = "tar"
    strip: int = 0
    overwrite: bool = True
    length: int | None = None
    """As for WriteOptions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the guest says it is about to send, not yet checked. `etag` alone when nothing has changed."""

    etag: str
    unchanged: bool = False
    offset: str = ""
    size: str = ""
    length: int | None = None
    pieces: AsyncGenerator[bytes] | None = None


def encoded(path: bytes) -> str:
    """Write a path as the protocol takes it, whatever its bytes."""
    return base64.b64encode(path).decode()


class GuestFiles(Protocol):
    """The files of one sandbox, as its guest tells of them: nothing is checked yet. Errors as those of Guest."""

    async def stat(self, target: Target, *, follow: bool) -> dict[str, Any]:
        """Describe a file."""
        ...

    async def readable(self, target: Target) -> dict[str, Any]:
        """Describe a file that could be read."""
        ...

    def read(self, target: Target, part: Part, unless: str | None) -> AbstractAsyncContextManager[Content]:
        """Open a file, unless its entity tag is among those given."""
        ...

    async def write(
        self, target: Target, body: AsyncIterator[bytes], options: WriteOptions
    ) -> tuple[dict[str, Any], bool]:
        """Write a file, whole; whether it is new."""
        ...

    async def change(self, target: Target, changes: dict[str, str], *, recursive: bool) -> dict[str, Any]:
        """Change mode, owner, group and time."""
        ...

    async def remove(self, target: Target, *, recursive: bool, missing_ok: bool) -> None:
        """Remove a file or a directory."""
        ...

    async def move(self, target: Target, to: bytes, *, overwrite: bool) -> dict[str, Any]:
        """Give a file another name."""
        ...

    async def make_directory(self, target: Target, mode: str | None, *, parents: bool) -> tuple[dict[str, Any], bool]:
        """Make a directory; whether it is new."""
        ...

    def listing(
        self, target: Target, *, depth: int, limit: int, after: bytes
    ) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        """Open a listing: batches of lines, the last of which says whether there is more behind the limit (0: none)."""
        ...

    def pack(
        self, target: Target, archive_format: str, exclude: list[str]
    ) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
        """Open an archive."""
        ...

    async def unpack(self, target: Target, body: AsyncIterator[bytes], options: ExtractOptions) -> dict[str, Any]:
        """Extract an archive."""
        ...

    def watch(self, target: Target, *, recursive: bool) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        """Open a watch: batches of lines."""
        ...
