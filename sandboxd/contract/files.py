"""Files as clients see them: the same models cross the public API and the node seam."""

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Open, Strict, Time, UserName
from sandboxd.contract.validation import invalid_field

MAX_PATH_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
MAX_SIZE_BYTES: Final = 2**62
MAX_DEPTH: Final = 64
MAX_GLOBS: Final = 64
MAX_GLOB_BYTES: Final = 1024
MAX_STRIP: Final = 64

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
ArchiveFormat = Literal["tar", "tar.gz", "tar.zst"]
ARCHIVE_FORMATS: Final[tuple[ArchiveFormat, ...]] = ("tar", "tar.gz", "tar.zst")
EventKind = Literal["ready", "create", "write", "remove", "rename", "chmod", "overflow", "keepalive"]

Mode = Annotated[str, StringConstraints(pattern="^0?[0-7]{3,4}$")]
Owner = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\s/]+$")]


class FileInfo(Open):
    """One file. Where a path is not UTF-8, it is in `path_base64` instead, and `name` shows it with U+FFFD."""

    path: str | None = None
    path_base64: str | None = None
    name: str
    type: FileType
    size_bytes: int
    mode: str
    uid: int
    gid: int
    owner: str
    group: str
    modified_at: Time
    symlink_target: str | None = None
    symlink_target_base64: str | None = None
    etag: str


class FileList(Open):
    """One page of a directory."""

    items: list[FileInfo]
    next_cursor: str | None = None


class _Located(Strict):
    path: str | None = None
    path_base64: str | None = None
    user: UserName | None = None

    def location(self) -> bytes:
        """Return the path as bytes; `invalid_request`, `invalid_path`."""
        return path_of(self.path, self.path_base64, "/path")


class FilePatch(_Located):
    """What a file is to be given; what is absent stays as it is."""

    mode: Mode | None = None
    owner: Owner | None = None
    group: Owner | None = None
    modified_at: Time | None = None
    recursive: bool = False


class DirectorySpec(_Located):
    """A directory to be made."""

    mode: Mode | None = None
    parents: bool = True


class MoveSpec(Strict):
    """What is to have another name."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str | None = Field(default=None, alias="from")
    from_base64: str | None = None
    to: str | None = None
    to_base64: str | None = None
    overwrite: bool = False
    user: UserName | None = None


class ArchiveResult(Open):
    """What came out of an archive."""

    files: int
    directories: int
    symlinks: int
    bytes: int


class FileEvent(Open):
    """Something that happened to a file."""

    kind: EventKind
    path: str | None = None
    path_base64: str | None = None
    to: str | None = None
    to_base64: str | None = None
    is_directory: bool | None = None
    at: Time | None = None

    @model_validator(mode="after")
    def _about_a_path(self) -> "FileEvent":
        if self.kind not in ("ready", "keepalive") and (self.path is None) == (self.path_base64 is None):
            msg = "one path"
            raise ValueError(msg)
        return self


def path_of(text: str | None, encoded: str | None, name: str) -> bytes:
    """Return a path given as text or in base64. `invalid_request` unless it is one of them, `invalid_path`."""
    if (text is None) == (encoded is None):
        code = "missing" if text is None else "exclusive"
        raise invalid_field(name, code, "give the path as text or as base64, one of them")
    try:
        raw = (text or "").encode() if encoded is None else base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_field(name + "_base64" if encoded is not None else name, "encoding", "cannot be read") from None
    longest = max(map(len, raw.split(b"/")))
    if not raw or b"\0" in raw or len(raw) > MAX_PATH_BYTES or longest > MAX_NAME_BYTES:
        raise ProblemError("invalid_path", "A path has 1 to 4096 bytes, no NUL, and components of at most 255 bytes.")
    return raw
