"""Files: served by the node, passed through unchanged, streaming both ways."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Response

from api.routes.calls import MERGE_PATCH, Call, scoped
from api.routes.data_plane import SANDBOX_CODES, pass_on
from api.routes.operations import IF_MATCH, Schema, bytes_body, header, json_body, json_of, operation, query
from api.routes.sandboxes import SandboxPath
from sandboxd.contract.files import (
    ARCHIVE_FORMATS,
    MAX_DEPTH,
    MAX_GLOB_BYTES,
    MAX_GLOBS,
    MAX_STRIP,
    ArchiveResult,
    DirectorySpec,
    FileInfo,
    FileList,
    FilePatch,
    MoveSpec,
)

router = APIRouter()

Read = Annotated[Call, Depends(scoped("files", write=False))]
Write = Annotated[Call, Depends(scoped("files", write=True))]

_FILES: Final = "/v1/sandboxes/{sandbox_id}/files"
_DIRECTORIES: Final = "/v1/sandboxes/{sandbox_id}/directories"
_ARCHIVE: Final = "/v1/sandboxes/{sandbox_id}/archive"
_CODES: Final = (
    *SANDBOX_CODES,
    "invalid_path",
    "permission_denied",
    "file_not_found",
    "is_directory",
    "not_a_directory",
    "in_use",
    "user_not_found",
    "cwd_not_found",
    "too_many_streams",
)
_CHANGE_CODES: Final = (*_CODES, "already_exists", "directory_not_empty", "disk_full")
_JSON_CODES: Final = (*_CHANGE_CODES, "body_too_large", "unsupported_media_type")
_TEXT: Final[Schema] = {"type": "string"}
_BYTES: Final[Schema] = {"type": "string", "format": "binary"}
_TARGET: Final = (
    query("path", _TEXT, "A file of the sandbox, of at most 4,096 bytes. This, or `path_base64`."),
    query("path_base64", _TEXT, "The same, if it is not UTF-8."),
    query("user", {"type": "string", "maxLength": 64, "pattern": r"^[^\x00\s/]+$"}, "Who acts."),
)
_MODE: Final = query("mode", {"type": "string", "pattern": "^0?[0-7]{3,4}$"})
_FORMAT: Final = query("format", {"type": "string", "enum": list(ARCHIVE_FORMATS), "default": "tar"})
_UNLESS: Final = header("If-None-Match", {"type": "string"}, "Answer 304 if the ETag is one of these.")
_RANGE: Final = header("Range", {"type": "string"}, "`bytes=first-last`: one part of the file.")
_ETAG: Final[Schema] = {"ETag": {"schema": _TEXT, "description": "Changes whenever the content may have."}}


def _flag(name: str, description: str = "", *, default: bool = False) -> Schema:
    return query(name, {"type": "boolean", "default": default}, description)


def _described(**description: Any) -> dict[str, Any]:
    return operation(**description, tags=["files"])


def _tagged(**description: Any) -> dict[str, Any]:
    return _described(**description, headers=_ETAG)


@router.get(
    _FILES,
    **_tagged(
        answers={
            200: ("The content.", {"application/octet-stream": {"schema": _BYTES}}),
            206: ("A part of it.", {"application/octet-stream": {"schema": _BYTES}}),
            304: ("It has not changed.", None),
        },
        codes=[*_CODES, "range_not_satisfiable"],
        parameters=[*_TARGET, _RANGE, _UNLESS],
    ),
)
async def read_file(call: Read, sandbox_id: SandboxPath) -> Response:
    """Read a file. An answer that ends early breaks its connection."""
    return await pass_on(call, sandbox_id)


@router.head(
    _FILES,
    **_tagged(
        answers={200: ("It can be read.", None), 304: ("It has not changed.", None)},
        codes=_CODES,
        parameters=[*_TARGET, _UNLESS],
    ),
)
async def look_at_file(call: Read, sandbox_id: SandboxPath) -> Response:
    """Answer as reading the file would, without its content."""
    return await pass_on(call, sandbox_id)


@router.put(
    _FILES,
    **_tagged(
        answers={
            201: ("It was made.", json_of(FileInfo)),
            200: ("It was there, and was written.", json_of(FileInfo)),
        },
        codes=[*_CHANGE_CODES, "generation_mismatch", "unsupported_media_type"],
        body=bytes_body(),
        parameters=[
            *_TARGET,
            _MODE,
            _flag("parents", "Make the directories it goes into.", default=True),
            _flag("append", "Write behind what is there, instead of replacing it whole."),
            IF_MATCH,
            header("If-None-Match", {"type": "string"}, "`*`: only if it is not there."),
            header("Content-Encoding", {"type": "string", "enum": ["gzip", "zstd"]}, "Unpacked in the sandbox."),
        ],
    ),
)
async def write_file(call: Write, sandbox_id: SandboxPath) -> Response:
    """Write a file, of any length. A broken upload changes nothing, unless it appends."""
    return await pass_on(call, sandbox_id)


@router.patch(
    _FILES,
    **_tagged(
        answers={200: ("The file.", json_of(FileInfo))},
        codes=_JSON_CODES,
        body=json_body(FilePatch, *sorted(MERGE_PATCH)),
    ),
)
async def change_file(call: Write, sandbox_id: SandboxPath) -> Response:
    """Change mode, owner, group or time of a file, or of a whole directory."""
    return await pass_on(call, sandbox_id)


@router.delete(
    _FILES,
    **_described(
        answers={204: ("It is gone.", None)},
        codes=[*_CODES, "directory_not_empty"],
        parameters=[
            *_TARGET,
            _flag("recursive", "A directory with what is in it."),
            _flag("missing_ok", "It is no error if it is not there."),
        ],
    ),
)
async def remove_file(call: Write, sandbox_id: SandboxPath) -> Response:
    """Remove a file or a directory; a link itself."""
    return await pass_on(call, sandbox_id)


@router.get(
    _FILES + "/stat",
    **_tagged(
        answers={200: ("The file.", json_of(FileInfo))},
        codes=_CODES,
        parameters=[*_TARGET, _flag("follow", "What a link leads to, not the link.", default=True)],
    ),
)
async def stat_file(call: Read, sandbox_id: SandboxPath) -> Response:
    """Describe a file."""
    return await pass_on(call, sandbox_id)


@router.post(
    _FILES + "/move",
    **_tagged(answers={200: ("The file.", json_of(FileInfo))}, codes=_JSON_CODES, body=json_body(MoveSpec)),
)
async def move_file(call: Write, sandbox_id: SandboxPath) -> Response:
    """Give a file or a directory another name."""
    return await pass_on(call, sandbox_id)


@router.get(
    _DIRECTORIES,
    **_described(
        answers={
            200: ("Its entries.", json_of(FileList) | {"application/x-ndjson": {"schema": _TEXT}}),
        },
        codes=[*_CODES, "invalid_cursor"],
        parameters=[
            *_TARGET,
            query("depth", {"type": "integer", "minimum": 1, "maximum": MAX_DEPTH, "default": 1}),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000}, "Not for NDJSON."),
            query("cursor", _TEXT, "Not for NDJSON."),
        ],
    ),
)
async def list_directory(call: Read, sandbox_id: SandboxPath) -> Response:
    """List a directory, sorted by the bytes of the paths; as NDJSON without a limit."""
    return await pass_on(call, sandbox_id)


@router.put(
    _DIRECTORIES,
    **_tagged(
        answers={
            201: ("It was made.", json_of(FileInfo)),
            200: ("It was there already.", json_of(FileInfo)),
        },
        codes=_JSON_CODES,
        body=json_body(DirectorySpec),
    ),
)
async def make_directory(call: Write, sandbox_id: SandboxPath) -> Response:
    """Make a directory."""
    return await pass_on(call, sandbox_id)


@router.get(
    _ARCHIVE,
    **_described(
        answers={
            200: (
                "The archive.",
                {kind: {"schema": _BYTES} for kind in ("application/x-tar", "application/gzip", "application/zstd")},
            ),
        },
        codes=_CODES,
        parameters=[
            *_TARGET,
            _FORMAT,
            query(
                "exclude",
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_GLOB_BYTES},
                    "maxItems": MAX_GLOBS,
                },
                "A name, or with a slash a path; `*`, `?`, `[…]`, `**`.",
            ),
        ],
    ),
)
async def read_archive(call: Read, sandbox_id: SandboxPath) -> Response:
    """Read a directory, or one file, as an archive. One that is cut short is broken."""
    return await pass_on(call, sandbox_id)


@router.put(
    _ARCHIVE,
    **_described(
        answers={200: ("What came out of it.", json_of(ArchiveResult))},
        codes=[*_CHANGE_CODES, "unsafe_archive", "unsupported_media_type"],
        body=bytes_body(),
        parameters=[
            *_TARGET,
            _FORMAT,
            query("strip_components", {"type": "integer", "minimum": 0, "maximum": MAX_STRIP, "default": 0}),
            _flag("overwrite", "Replace what is there.", default=True),
        ],
    ),
)
async def write_archive(call: Write, sandbox_id: SandboxPath) -> Response:
    """Extract an archive below a directory. What was extracted before an error stays."""
    return await pass_on(call, sandbox_id)


@router.get(
    "/v1/sandboxes/{sandbox_id}/watch",
    **_described(
        answers={
            200: (
                "What happens.",
                {"application/x-ndjson": {"schema": _TEXT}, "text/event-stream": {"schema": _TEXT}},
            )
        },
        codes=_CODES,
        parameters=[*_TARGET, _flag("recursive", "What is in directories below, too.", default=True)],
    ),
)
async def watch_files(call: Read, sandbox_id: SandboxPath) -> Response:
    """Follow what happens to files, from `ready` on, as long as the connection lives."""
    return await pass_on(call, sandbox_id)
