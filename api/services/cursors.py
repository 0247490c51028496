"""Cursors: a position in a list, sealed to the project, the route and the filters it was made for. Pure."""

import base64
import binascii
import hmac
import struct
from typing import Final, NamedTuple

from sandboxd.contract.problems import ProblemError

LIFETIME_US: Final = 24 * 3600 * 1_000_000
_POSITION: Final = struct.Struct(">qq23s")
_SEAL_BYTES: Final = 16


class Position(NamedTuple):
    """The last item seen."""

    created_at: int
    id: str


def seal(secret: bytes, scope: str, position: Position, now_us: int) -> str:
    """Return the cursor that goes on after `position`; `scope` names project, route and filters."""
    payload = _POSITION.pack(now_us, position.created_at, position.id.encode())
    return base64.urlsafe_b64encode(payload + _mac(secret, scope, payload)).decode().rstrip("=")


def unseal(secret: bytes, scope: str, cursor: str, now_us: int) -> Position:
    """Raises ProblemError `invalid_cursor` for anything but a cursor of this scope, at most 24 hours old."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None
    payload, mac = data[: _POSITION.size], data[_POSITION.size :]
    if len(payload) != _POSITION.size or not hmac.compare_digest(mac, _mac(secret, scope, payload)):
        raise _invalid()
    made_at, created_at, last = _POSITION.unpack(payload)
    if now_us - made_at > LIFETIME_US:
        raise _invalid()
    return Position(created_at, last.decode())


def _mac(secret: bytes, scope: str, payload: bytes) -> bytes:
    return hmac.digest(secret, b"cursor\0" + scope.encode() + b"\0" + payload, "sha256")[:_SEAL_BYTES]


def _invalid() -> ProblemError:
    return ProblemError(
        "invalid_cursor",
        "The cursor is not one of this list with these filters, or is older than 24 hours.",
        hint="Start again without a cursor.",
    )
