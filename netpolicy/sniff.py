"""The name in the first bytes of a connection: the Host of an HTTP request, the server name of a TLS hello. Pure.

Nothing is decrypted or changed. Each reader says one of three things: not enough yet (None), a name, or why there is
none (NoNameError with the stable reason). A name is text as it came; canonical is what `names` makes of it.
"""

import re
from dataclasses import dataclass
from typing import Final

MOST_HELLO_BYTES: Final = 16_384
MOST_HEADER_BYTES: Final = 16_384
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ENCRYPTED_HELLO: Final = 0xFE0D
_HOST_NAME: Final = 0
_OUTER: Final = 0
_RECORD_BYTES: Final = 16_384
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/1\.[01]")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?")
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)([/?#].*)?", re.IGNORECASE)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class NoNameError(Exception):
    """There is no name that could be decided on; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Hello:
    """What a TLS client says before anything is encrypted."""

    name: str
    encrypted: bool
    """It also carries an encrypted hello, of which the name above is only the outside."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an HTTP/1 request, as far as it decides anything."""

    method: str
    target: str
    name: str
    port: int | None
    fields: tuple[tuple[str, bytes], ...]
    """Names in lower case."""
    size: int
    """Bytes up to where the body begins."""


def read_hello(data: bytes) -> Hello | None:
    """Read the server name of a TLS client hello, over as many records as it was cut into."""
    if data and data[0] != _HANDSHAKE:
        raise NoNameError("not_tls")
    message = _handshake(data)
    if message is None:
        if len(data) > MOST_HELLO_BYTES:
            raise NoNameError("header_too_large")
        return None
    try:
        return _hello(message)
    except (IndexError, ValueError):
        raise NoNameError("malformed") from None


def read_head(data: bytes) -> Head | None:
    """Read the head of an HTTP/1 request. Anything two parsers might read in two ways is refused."""
    if data[:3] == PREFACE[: len(data[:3])] and len(data) >= 3:
        raise NoNameError("no_name")
    end = data.find(b"\r\n\r\n", 0, MOST_HEADER_BYTES + 4)
    if end < 0:
        _check_unfinished(data)
        return None
    lines = data[:end].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None or any(b"\n" in each or b"\r" in each or b"\0" in each for each in lines):
        raise NoNameError("malformed")
    fields = tuple(_field(each) for each in lines[1:])
    target = line[2].decode("ascii")
    name, port = _authority(line[1].decode("ascii"), target, [value for key, value in fields if key == "host"])
    return Head(line[1].decode("ascii"), target, name, port, fields, end + 4)


def _check_unfinished(data: bytes) -> None:
    if len(data) > MOST_HEADER_BYTES:
        raise NoNameError("header_too_large")
    first = data[:16]
    # Every method is letters: anything else will never become a request, so nobody waits for it.
    if first and re.match(rb"[A-Za-z]{1,16}$|[A-Za-z]{1,15} ", first) is None:
        raise NoNameError("not_http")


def _field(line: bytes) -> tuple[str, bytes]:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise NoNameError("malformed")
    return found[1].decode("ascii").lower(), found[2]


def _authority(method: str, target: str, hosts: list[bytes]) -> tuple[str, int | None]:
    if len(hosts) > 1:
        raise NoNameError("name_mismatch")
    if not hosts or not hosts[0]:
        raise NoNameError("no_name")
    host = _split(hosts[0].decode("latin-1"))
    if method == "CONNECT":
        raise NoNameError("malformed")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None and _split(absolute[1])[0].lower() != host[0].lower():
        raise NoNameError("name_mismatch")
    if absolute is None and not target.startswith("/") and target != "*":
        raise NoNameError("malformed")
    return host


def _split(authority: str) -> tuple[str, int | None]:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise NoNameError("malformed")
    return found[1], int(found[2]) if found[2] else None


def _handshake(data: bytes) -> bytes | None:
    """Join the records until the first handshake message is whole."""
    joined = bytearray()
    place = 0
    while place + 5 <= len(data):
        if data[place] != _HANDSHAKE or data[place + 1] != 3:
            raise NoNameError("malformed")
        length = int.from_bytes(data[place + 3 : place + 5], "big")
        if not 0 < length <= _RECORD_BYTES:
            raise NoNameError("malformed")
        joined += data[place + 5 : place + 5 + length]
        place += 5 + length
        if len(joined) >= 4:
            if joined[0] != _CLIENT_HELLO:
                raise NoNameError("malformed")
            size = int.from_bytes(joined[1:4], "big")
            if size > MOST_HELLO_BYTES:
                raise NoNameError("header_too_large")
            if len(joined) >= 4 + size:
                return bytes(joined[4 : 4 + size])
    return None


def _hello(body: bytes) -> Hello:
    reader = _Reader(body)
    reader.take(34)  # version and random
    reader.vector(1)  # session
    reader.vector(2)  # ciphers
    reader.vector(1)  # compressions
    extensions = _Reader(reader.vector(2) if reader.left else b"")
    if reader.left:
        raise ValueError
    found: dict[int, bytes] = {}
    while extensions.left:
        kind = extensions.number(2)
        if kind in found:
            raise ValueError
        found[kind] = extensions.vector(2)
    if _SERVER_NAME not in found:
        raise NoNameError("ech_refused" if _is_outer(found) else "no_name")
    return Hello(_server_name(found[_SERVER_NAME]), _is_outer(found))


def _is_outer(extensions: dict[int, bytes]) -> bool:
    return extensions.get(_ENCRYPTED_HELLO, b"")[:1] == bytes((_OUTER,))


def _server_name(extension: bytes) -> str:
    names = _Reader(_Reader(extension).vector(2))
    kind = names.number(1)
    value = names.vector(2)
    if names.left or kind != _HOST_NAME or not value:
        raise ValueError
    return value.decode("ascii")


class _Reader:
    """Takes fields from the front; ValueError where there is too little."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))
