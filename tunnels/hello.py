"""The name in the first message of TLS, read without any of its rights or wrongs. Pure, and bounded.

What cannot be read has no name: nothing is passed on then.
"""

from typing import Final

MOST_BYTES: Final = 16_384
"""Of a ClientHello with the records around it."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD_HEAD, _HANDSHAKE_HEAD = 5, 4
_MOST_RECORD: Final = 16_384
_SERVER_NAME, _HOST_NAME = 0, 0


class HelloError(Exception):
    """What came is no ClientHello, or one that is too long, or one that names nobody."""


class _Short(Exception):  # noqa: N818 - not an error: more may come
    """The message ends before what was asked for."""


class _Cursor:
    """Reads fields one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Short
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def block(self, size: int) -> "_Cursor":
        """Take a field with its length of so many bytes in front."""
        return _Cursor(self.take(self.number(size)))

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)


def server_name(data: bytes) -> str | None:
    """Return the name that a ClientHello asks for; None while it is not whole. HelloError."""
    message = _message(data)
    if message is None:
        if len(data) > MOST_BYTES:
            raise HelloError("the ClientHello is too long")
        return None
    try:
        return _name_in(_Cursor(message))
    except _Short:
        raise HelloError("the ClientHello is not whole") from None


def _message(data: bytes) -> bytes | None:
    """Join the records of the first handshake message; None while it is not whole."""
    cursor, message = _Cursor(data), b""
    while True:
        try:
            kind, major, _, length = cursor.number(1), cursor.number(1), cursor.number(1), cursor.number(2)
        except _Short:
            _check_beginning(data)
            return None
        if kind != _HANDSHAKE or major != 3 or not 0 < length <= _MOST_RECORD:
            raise HelloError("this is not TLS")
        try:
            message += cursor.take(length)
        except _Short:
            return None
        if message[0] != _CLIENT_HELLO:
            raise HelloError("this is not a ClientHello")
        if len(message) >= _HANDSHAKE_HEAD:
            size = int.from_bytes(message[1:_HANDSHAKE_HEAD])
            if size > MOST_BYTES:
                raise HelloError("the ClientHello is too long")
            if len(message) >= _HANDSHAKE_HEAD + size:
                return message[_HANDSHAKE_HEAD : _HANDSHAKE_HEAD + size]


def _check_beginning(data: bytes) -> None:
    if data and data[0] != _HANDSHAKE:
        raise HelloError("this is not TLS")


def _name_in(hello: _Cursor) -> str:
    hello.take(2 + 32)  # version, random
    hello.block(1)  # session
    hello.block(2)  # cipher suites
    hello.block(1)  # compression
    if hello.is_done:
        raise HelloError("the ClientHello names nobody")
    extensions = hello.block(2)
    while not extensions.is_done:
        kind, body = extensions.number(2), extensions.block(2)
        if kind == _SERVER_NAME:
            return _first_host(body.block(2))
    raise HelloError("the ClientHello names nobody")


def _first_host(names: _Cursor) -> str:
    while not names.is_done:
        kind, name = names.number(1), names.block(2)
        if kind == _HOST_NAME:
            return _plain(name)
    raise HelloError("the ClientHello names nobody")


def _plain(name: _Cursor) -> str:
    data = name._data  # noqa: SLF001 - of this module
    try:
        text = data.decode("ascii").lower()
    except UnicodeDecodeError:
        raise HelloError("the name is no host's") from None
    if not 0 < len(text) <= 253 or not all(letter.isalnum() or letter in ".-" for letter in text):
        raise HelloError("the name is no host's")
    return text.removesuffix(".")
