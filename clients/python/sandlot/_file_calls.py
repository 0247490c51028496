"""Queries and positions of file calls. Pure."""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from sandlot.errors import ApiError, FileChangedError, FileConflictError, ProtocolError, SandlotError

_OK: Final = 200
_PARTIAL: Final = 206
_PAST_THE_END: Final = 416
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


def file_query(path: str, user: str | None, *, mode: str | int | None = None) -> dict[str, Any]:
    r"""Return the parameters that say which file, for whom, with which mode.

    >>> file_query("/a", None, mode=0o755), file_query("/b\udcff", "root")
    ({'path': '/a', 'mode': '0755'}, {'path_base64': 'L2L/', 'user': 'root'})
    """
    query: dict[str, Any] = path_field(path)
    if user is not None:
        query["user"] = user
    if mode is not None:
        query["mode"] = octal(mode)
    return query


def path_field(path: str, name: str = "path") -> dict[str, Any]:
    """Return the field that carries a path, also one whose bytes are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return {f"{name}_base64": base64.b64encode(path.encode(errors="surrogateescape")).decode()}
    return {name: path}


def already_exists(path: str) -> FileConflictError:
    """Return the error for a file that was to be new."""
    return FileConflictError(409, {"code": "already_exists", "detail": f"{path} is there already"})


def permission_body(
    path: str, user: str | None, *, mode: str | int | None, owner: str | None, group: str | None, recursive: bool
) -> dict[str, Any]:
    """Return the body of a change of permissions: what was given and nothing else."""
    given = {"user": user, "mode": None if mode is None else octal(mode), "owner": owner, "group": group}
    body: dict[str, Any] = path_field(path) | {name: value for name, value in given.items() if value is not None}
    return body | ({"recursive": True} if recursive else {})


def octal(mode: str | int) -> str:
    """Return a mode as the API writes it.

    >>> octal(0o644), octal("0600")
    ('0644', '0600')
    """
    return mode if isinstance(mode, str) else f"{mode:04o}"


class ReadState:
    """How far a file was read, over any number of connections, and that it is still the same file."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._etag: str | None = None
        self.position = start
        self.total: int | None = None

    def headers(self) -> dict[str, str]:
        """Return what the next request says of where to begin."""
        return {"Range": f"bytes={self.position}-"} if self.position > 0 else {}

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Take note of an answer before its bytes. FileChangedError if it is about another file."""
        etag = headers.get("etag")
        if self._etag is not None and etag != self._etag:
            raise FileChangedError("the file was replaced while it was read", hint="Read it again.")
        self._etag = etag
        if status == _PARTIAL:
            found = _RANGE.fullmatch(headers.get("content-range", ""))
            if found is None or int(found[1]) != self.position:
                raise ProtocolError(f"asked for bytes from {self.position}, got {headers.get('content-range')!r}")
            self.total = int(found[2])
        elif self.position > 0:
            raise ProtocolError(f"asked for bytes from {self.position}, got an answer {status} with all of them")
        else:
            length = headers.get("content-length", "")
            self.total = int(length) if length.isdecimal() else None

    @property
    def is_whole(self) -> bool:
        """Whether the end was reached, as far as anybody said where that is."""
        return self.total is None or self.position >= self.total

    def is_at_end(self, error: SandlotError) -> bool:
        """Tell whether an error only says that nothing is left behind the position."""
        if not isinstance(error, ApiError) or error.status != _PAST_THE_END:
            return False
        return self.position == self.total or error.members.get("size_bytes") == self.position
