"""What a guest says about files, checked: types, ranges and lengths. A breach is a GuestError.

What is well formed may still be untrue: a file's size and owner are the sandbox's own word.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from sandboxd.contract.files import MAX_SIZE_BYTES, ArchiveResult, FileEvent, FileInfo
from sandboxd.contract.processes import Time
from sandboxd.guest_client.base import GuestError
from sandboxd.guest_client.file_calls import Content

ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{1,126}"')
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)

_Size = Annotated[int, Field(ge=0, le=MAX_SIZE_BYTES)]
_Id = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Text = Annotated[str, StringConstraints(max_length=4096)]
_Encoded = Annotated[str, StringConstraints(max_length=5464, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        msg = "not an absolute path"
        raise ValueError(msg)
    return path


def _sane(moment: Time) -> Time:
    if moment.tzinfo is None:
        msg = "without a time zone"
        raise ValueError(msg)
    return moment


_Path = Annotated[_Text, AfterValidator(_absolute)]
_Moment = Annotated[Time, AfterValidator(_sane)]


class _GuestFile(FileInfo):
    path: _Path | None = None
    path_base64: _Encoded | None = None
    name: _Name
    size_bytes: _Size
    mode: Annotated[str, StringConstraints(pattern="^[0-7]{4}$")]
    uid: _Id
    gid: _Id
    owner: _Name
    group: _Name
    modified_at: _Moment
    symlink_target: _Text | None = None
    symlink_target_base64: _Encoded | None = None
    etag: Annotated[str, StringConstraints(pattern=f"^{ETAG.pattern}$")]

    @model_validator(mode="after")
    def _one_path(self) -> "_GuestFile":
        if (self.path is None) == (self.path_base64 is None):
            msg = "one path"
            raise ValueError(msg)
        return self


class _GuestEvent(FileEvent):
    path: _Path | None = None
    path_base64: _Encoded | None = None
    to: _Path | None = None
    to_base64: _Encoded | None = None
    at: _Moment | None = None


class _GuestArchive(ArchiveResult):
    files: _Size
    directories: _Size
    symlinks: _Size
    bytes: _Size


_FILE: Final = TypeAdapter(_GuestFile)
_EVENT: Final = TypeAdapter(_GuestEvent)


def check_file(answer: dict[str, Any]) -> FileInfo:
    """Return what a guest says of one file."""
    try:
        return _FILE.validate_python(answer)
    except ValidationError as error:
        raise GuestError("the guest's word on a file is not what the protocol says") from error


def check_file_line(line: bytes) -> FileInfo:
    """Return what a line of a listing says of one file."""
    try:
        return _FILE.validate_json(line)
    except ValidationError as error:
        raise GuestError("a line of the guest's listing is not what the protocol says") from error


def check_more(line: bytes) -> bool:
    """Return whether there is more behind a listing, as its last line says."""
    try:
        match from_json(line, allow_inf_nan=False):
            case {"more": bool(more)}:
                return more
            case _:
                raise GuestError("the guest's listing has no end")
    except ValueError as error:
        raise GuestError("the end of the guest's listing is not JSON") from error


def check_event_line(line: bytes) -> FileEvent:
    """Return what a line of a watch says."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        raise GuestError("a line of the guest's watch is not what the protocol says") from error


def check_archive(answer: dict[str, Any]) -> ArchiveResult:
    """Return what came out of an archive."""
    try:
        return _GuestArchive.model_validate(answer)
    except ValidationError as error:
        raise GuestError("the guest's word on an archive is not what the protocol says") from error


@dataclass(frozen=True, slots=True)
class Span:
    """What is about to be sent of a file."""

    etag: str
    offset: int
    length: int
    size: int


def check_content(content: Content) -> Span:
    """Return what a guest promises to send; the promises fit together."""
    etag = check_etag(content.etag)
    if content.unchanged:
        return Span(etag, 0, 0, 0)
    numbers = [_NUMBER.fullmatch(content.offset), _NUMBER.fullmatch(content.size)]
    if content.length is None or not all(numbers):
        raise GuestError("the guest does not say how much it sends")
    offset, size = int(content.offset), int(content.size)
    if size > MAX_SIZE_BYTES or offset + content.length > size:
        raise GuestError("the guest sends more than there is")
    return Span(etag, offset, content.length, size)


def check_etag(text: str) -> str:
    """Return an entity tag."""
    if ETAG.fullmatch(text) is None:
        raise GuestError("the guest's entity tag is none")
    return text
