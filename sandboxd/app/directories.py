"""Cursors of directory listings: the last path shown, sealed to what was listed."""

import base64
import binascii
import hashlib
import json

from sandboxd.contract.files import MAX_PATH_BYTES, FileInfo
from sandboxd.contract.problems import ProblemError

Filters = tuple[str | None, ...]


def cursor_after(last: FileInfo, filters: Filters) -> str:
    """Return the cursor of the page behind an entry."""
    path = last.path_base64 or base64.b64encode((last.path or "").encode()).decode()
    return base64.urlsafe_b64encode(json.dumps([_seal(filters), path]).encode()).decode().rstrip("=")


def read_cursor(cursor: str, filters: Filters) -> bytes:
    """Return the path in a cursor. `invalid_cursor` unless it was made for the same listing."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        sealed, encoded = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        path = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise _invalid() from None
    if sealed != _seal(filters) or not path or b"\0" in path or len(path) > MAX_PATH_BYTES:
        raise _invalid()
    return path


def _seal(filters: Filters) -> str:
    return hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]


def _invalid() -> ProblemError:
    return ProblemError("invalid_cursor", "The cursor is not one of this list.", hint="Begin again without cursor.")
