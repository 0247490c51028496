"""What becomes of a request into which something is put: what it must look like, and its headers afterwards. Pure."""

from collections.abc import Iterable
from typing import Final

from netpolicy.credentials import Credentials
from netpolicy.inject import PLACE, Inject
from netpolicy.names import name_from_wire
from netpolicy.sniff import Head

TLS_PORT: Final = 443
MOST_VALUE: Final = 8192
"""Of a header: servers take hardly more."""
_ECHOING: Final = frozenset({"TRACE", "TRACK"})
_SPACE: Final = " \t\r\n"

Fields = list[tuple[bytes, bytes]]


class RefusedError(Exception):
    """A request is not passed on. `text` is for its sender; `reason`, where there is one, is a decision's."""

    def __init__(self, status: int, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason


def check_head(head: Head, host: str) -> None:
    """Refuse a request for another host, and one whose end two parsers might see in two places. RefusedError."""
    if name_from_wire(head.name) != host or head.port not in (None, TLS_PORT):
        raise RefusedError(421, f"this connection is for {host} and for no other host", "name_mismatch")
    if not head.target.startswith("/") and not (head.target == "*" and head.method == "OPTIONS"):
        raise RefusedError(400, "a request names a path, and its host in Host", "request_refused")
    if head.method.upper() in _ECHOING:
        raise RefusedError(405, f"{head.method} asks a server to repeat what it was sent", "request_refused")
    lengths = [value for name, value in head.fields if name == "content-length"]
    codings = [value for name, value in head.fields if name == "transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise RefusedError(400, "the length of the body is said twice", "request_refused")
    if codings and codings[0].lower() != b"chunked":
        raise RefusedError(501, "chunked is the only transfer coding", "request_refused")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= 18):
        raise RefusedError(400, "the length of the body is no number", "request_refused")


def placed(entries: Iterable[Inject], credentials: Credentials | None) -> Fields:
    """Return the headers that are put into requests. RefusedError, which says no value, where one is not known."""
    made: Fields = []
    for entry in entries:
        value = None if credentials is None else credentials.values.get(entry.secret)
        if value is None:
            raise RefusedError(502, f"the value of secret {entry.secret} is not here", "credentials_missing")
        # Space around a header's value says nothing, and many a secret was read from a file with a line's end.
        field = entry.format.replace(PLACE, value.strip(_SPACE)).strip(_SPACE).encode()
        if len(field) > MOST_VALUE or any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in field):
            raise RefusedError(502, f"secret {entry.secret} cannot stand in a header", "credentials_missing")
        made.append((entry.header.encode(), field))
    return made


def with_placed(fields: Iterable[tuple[bytes, bytes]], put: Fields) -> Fields:
    """Return a request's headers with ours in place of every one of the same names."""
    return [*without(fields, put), *put]


def without(fields: Iterable[tuple[bytes, bytes]], put: Fields) -> Fields:
    """Return headers, or trailers, without those that are ours to set."""
    names = {name for name, _ in put}
    return [(name, value) for name, value in fields if name.lower() not in names]
