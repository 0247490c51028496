"""DNS on the wire, as much of it as the resolver needs: questions for names, answers with IPv4 addresses. Pure.

Everything read is bounded: one question, no compression in it, pointers in answers that only lead backwards, chains of
at most sixteen names. What does not fit raises DnsError and is never guessed at.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

A: Final = 1
CNAME: Final = 5
OPT: Final = 41
_INTERNET: Final = 1

NO_ERROR: Final = 0
FORMAT_ERROR: Final = 1
SERVER_FAILURE: Final = 2
NO_SUCH_NAME: Final = 3
NOT_IMPLEMENTED: Final = 4

PROHIBITED: Final = 18
"""The extended error of RFC 8914 that says: a policy, not the world, keeps this name from resolving."""

_HEADER: Final = struct.Struct(">6H")
_RECORD: Final = struct.Struct(">HHIH")
_QUERY_BYTES: Final = 512
_NAME_BYTES: Final = 253
_LABEL_BYTES: Final = 63
_CHAIN: Final = 16
_RECORDS: Final = 256
_ADDRESSES: Final = 32
_UDP_SIZE: Final = 1232
_TTL: Final = 0x7FFFFFFF
_LABEL: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class DnsError(Exception):
    """What was read is no question, or no answer to ours."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it came."""

    number: int
    name: str
    """Lower case, without the trailing dot; letters, digits, hyphens and underscores only."""
    kind: int
    wire: bytes
    """The question section as it came, because an asker may compare its case."""
    extended: bool
    """The asker reads extended errors."""
    recursion: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream resolver said of a name."""

    code: int
    addresses: tuple[IPv4Address, ...]
    ttl: int


def read_question(data: bytes) -> Question:
    """Parse a query; DnsError for anything but one plain question."""
    if not _HEADER.size < len(data) <= _QUERY_BYTES:
        raise DnsError("the length of a query is out of bounds")
    number, flags, questions, answers, authorities, more = _HEADER.unpack_from(data)
    if flags & 0xF800 or (questions, answers, authorities) != (1, 0, 0) or more > 2:
        raise DnsError("not a query with one question")
    name, end = _plain_name(data, _HEADER.size)
    kind, of_class = _two(data, end)
    if of_class != _INTERNET:
        raise DnsError("not a question about the internet")
    extended = more > 0 and data[end + 4 : end + 7] == b"\0" + OPT.to_bytes(2, "big")
    return Question(number, name, kind, data[_HEADER.size : end + 4], extended, bool(flags & 0x100))


def answer(question: Question, addresses: Iterable[IPv4Address], ttl: int) -> bytes:
    """Return an answer with addresses; without any it says that the name has none of that kind."""
    records = b"".join(
        b"\xc0\x0c" + _RECORD.pack(A, _INTERNET, ttl, 4) + address.packed for address in list(addresses)[:_ADDRESSES]
    )
    return _reply(question, NO_ERROR, len(records) // 16, records, b"")


def refusal(question: Question, code: int, *, extended_error: int | None = None) -> bytes:
    """Return an answer without records."""
    option = b"" if extended_error is None else struct.pack(">HHH", 15, 2, extended_error)
    return _reply(question, code, 0, b"", option)


def malformed(data: bytes) -> bytes | None:
    """Return the answer to what could not be read, if it was a question at all."""
    if len(data) < _HEADER.size or data[2] & 0x80:
        return None
    return data[:2] + bytes((0x80 | data[2] & 0x79, 0x80 | FORMAT_ERROR)) + b"\0" * 8


def ask(name: str, number: int) -> bytes:
    """Return a query for the IPv4 addresses of a name."""
    labels = b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split("."))
    option = b"\0" + _RECORD.pack(OPT, _UDP_SIZE, 0, 0)
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 1) + labels + b"\0" + struct.pack(">HH", A, _INTERNET) + option


def read_answer(data: bytes, name: str, number: int) -> Answer:
    """Parse the answer to `ask(name, number)`: the addresses at the end of the chain that begins at `name`.

    Records of other names are ignored: an answer speaks for nothing but what was asked. DnsError where it is none.
    """
    if len(data) <= _HEADER.size:
        raise DnsError("an answer is too short")
    came, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if came != number or not flags & 0x8000 or flags & 0x7800 or questions != 1:
        raise DnsError("not the answer to this question")
    asked, place = _any_name(data, _HEADER.size)
    if asked != name or _two(data, place) != (A, _INTERNET):
        raise DnsError("an answer to another question")
    records = _records(data, place + 4, min(answers, _RECORDS), truncated=bool(flags & 0x200))
    code = flags & 0xF
    addresses, ttl = _follow(name, records)
    return Answer(code, addresses, ttl)


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    kind: int
    ttl: int
    data: bytes
    target: str


def _records(data: bytes, place: int, count: int, *, truncated: bool) -> list[_Record]:
    found: list[_Record] = []
    for _ in range(count):
        if truncated and place >= len(data):
            break
        name, place = _any_name(data, place)
        if place + _RECORD.size > len(data):
            raise DnsError("a record ends early")
        kind, of_class, ttl, length = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        if place + length > len(data):
            raise DnsError("a record ends early")
        if of_class == _INTERNET and kind in {A, CNAME}:
            target = _any_name(data, place)[0] if kind == CNAME else ""
            found.append(_Record(name, kind, min(ttl, _TTL), data[place : place + length], target))
        place += length
    return found


def _follow(name: str, records: Sequence[_Record]) -> tuple[tuple[IPv4Address, ...], int]:
    ttl = _TTL
    for _ in range(_CHAIN):
        here = [record for record in records if record.name == name]
        found = [record for record in here if record.kind == A and len(record.data) == 4]
        if found:
            ttl = min([ttl, *(record.ttl for record in found)])
            return tuple(dict.fromkeys(IPv4Address(record.data) for record in found))[:_ADDRESSES], ttl
        aliases = [record for record in here if record.kind == CNAME]
        if not aliases:
            return (), 0
        ttl = min(ttl, aliases[0].ttl)
        name = aliases[0].target
    raise DnsError("a chain of names is too long")


def _reply(question: Question, code: int, count: int, records: bytes, option: bytes) -> bytes:
    flags = 0x8080 | (0x100 if question.recursion else 0) | code
    more = b"\0" + _RECORD.pack(OPT, _UDP_SIZE, 0, len(option)) + option if question.extended else b""
    return _HEADER.pack(question.number, flags, 1, count, 0, 1 if more else 0) + question.wire + records + more


def _plain_name(data: bytes, place: int) -> tuple[str, int]:
    """Read a name without compression."""
    labels: list[bytes] = []
    while True:
        length = _byte(data, place)
        place += 1
        if length == 0:
            break
        label = data[place : place + length].lower()
        if length > _LABEL_BYTES or len(label) != length or not _LABEL.issuperset(label):
            raise DnsError("a label that no host has")
        labels.append(label)
        place += length
    name = b".".join(labels).decode("ascii")
    if not name or len(name) > _NAME_BYTES:
        raise DnsError("the length of a name is out of bounds")
    return name, place


def _any_name(data: bytes, place: int) -> tuple[str, int]:
    """Read a name that may be compressed. Each pointer leads further back than the one before, so this ends."""
    labels: list[str] = []
    size = 0
    after: int | None = None
    least = place
    while True:
        length = _byte(data, place)
        if length >= 0xC0:
            target = (length & 0x3F) << 8 | _byte(data, place + 1)
            after = place + 2 if after is None else after
            if target >= least:
                raise DnsError("a pointer that leads nowhere")
            place = least = target
            continue
        place += 1
        if length == 0:
            return ".".join(labels), after if after is not None else place
        size += length + 1
        if length > _LABEL_BYTES or place + length > len(data) or size > _NAME_BYTES + 1:
            raise DnsError("the length of a name is out of bounds")
        # Whatever the bytes are, they are compared only: a byte that no host name has makes a name nobody asks for.
        labels.append(data[place : place + length].lower().decode("latin-1").replace(".", "\\."))
        place += length


def _byte(data: bytes, place: int) -> int:
    if place >= len(data):
        raise DnsError("a name ends early")
    return data[place]


def _two(data: bytes, place: int) -> tuple[int, int]:
    if place + 4 > len(data):
        raise DnsError("a question ends early")
    kind, of_class = struct.unpack_from(">HH", data, place)
    return kind, of_class
