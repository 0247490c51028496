"""What the calls of files take and answer. Derived by generate.py: change the API instead."""

from typing import TypedDict


class ArchiveResult(TypedDict, total=False):
    files: int
    directories: int
    symlinks: int
    bytes: int


class DirectorySpec(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    user: str | None
    mode: str | None
    parents: bool


class FileInfo(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    name: str
    type: str
    size_bytes: int
    mode: str
    uid: int
    gid: int
    owner: str
    group: str
    modified_at: str
    symlink_target: str | None
    symlink_target_base64: str | None
    etag: str


class FileList(TypedDict, total=False):
    items: list[FileInfo]
    next_cursor: str | None


class FilePatch(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    user: str | None
    mode: str | None
    owner: str | None
    group: str | None
    modified_at: str | None
    recursive: bool


MoveSpec = TypedDict(
    "MoveSpec",
    {
        "from": str | None,
        "from_base64": str | None,
        "to": str | None,
        "to_base64": str | None,
        "overwrite": bool,
        "user": str | None,
    },
    total=False,
)
