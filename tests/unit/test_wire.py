"""DNS, TLS hellos and HTTP heads from strangers: whatever the bytes are, they are read within bounds or refused."""

import contextlib
import ssl
import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from names_kit import record, wire_name
from netpolicy import dns
from netpolicy.names import name_from_wire
from netpolicy.sniff import MOST_HEADER_BYTES, MOST_HELLO_BYTES, Hello, NoNameError, read_head, read_hello

QUERY = dns.ask("pkg.test", 7)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = hello("pkg.test")


def answered(name: str, *records: bytes, number: int = 7, flags: int = 0x8180) -> bytes:
    question = wire_name(name) + struct.pack(">HH", dns.A, 1)
    return struct.pack(">6H", number, flags, 1, len(records), 0, 0) + question + b"".join(records)


@given(NAME, st.integers(0, 65535))
def test_what_is_asked_is_read_back(name: str, number: int) -> None:
    question = dns.read_question(dns.ask(name, number))
    assert (question.name, question.kind, question.number) == (name, dns.A, number)
    answer = dns.answer(question, [IPv4Address("1.2.3.4")], 60)
    assert dns.read_answer(answer, name, number) == dns.Answer(0, (IPv4Address("1.2.3.4"),), 60)


@given(st.binary(max_size=700))
def test_any_bytes_are_a_question_or_refused(data: bytes) -> None:
    with contextlib.suppress(dns.DnsError):
        question = dns.read_question(data)
        assert 0 < len(question.name) <= 253
        assert question.name == question.name.lower()
        assert "\0" not in question.name
    malformed = dns.malformed(data)
    assert malformed is None or len(malformed) == 12


@given(st.binary(max_size=700), st.integers(0, 40), st.integers(0, 255))
def test_any_bytes_are_an_answer_or_refused(data: bytes, place: int, byte: int) -> None:
    whole = bytearray(answered("pkg.test", record("pkg.test", dns.A, 9, b"\1\2\3\4")) + data)
    whole[place] = byte
    for each in (data, bytes(whole)):
        with contextlib.suppress(dns.DnsError):
            found = dns.read_answer(each, "pkg.test", 7)
            assert len(found.addresses) <= 32


@pytest.mark.parametrize(
    "data",
    [
        answered("evil.test", record("evil.test", dns.A, 9, b"\1\2\3\4")),
        answered("pkg.test", number=8),
        answered("pkg.test", flags=0x0180),
        answered("pkg.test", b"\xc0\xff" + b"\0" * 10),
        answered("pkg.test", b"\xc0\x1a" + struct.pack(">HHIH", 1, 1, 9, 4) + b"\1\2\3\4"),
        answered("pkg.test", record("pkg.test", dns.A, 9, b"\1\2\3\4")[:-1]),
        answered(
            "pkg.test", *(record(f"n{n}.test", dns.CNAME, 9, wire_name(f"n{n + 1}.test")) for n in range(0)), b"x"
        ),
    ],
)
def test_answers_that_are_none(data: bytes) -> None:
    with pytest.raises(dns.DnsError):
        dns.read_answer(data, "pkg.test", 7)


def test_an_answer_speaks_of_nothing_but_its_question() -> None:
    data = answered("pkg.test", record("other.test", dns.A, 9, b"\1\2\3\4"))
    assert dns.read_answer(data, "pkg.test", 7).addresses == ()
    loop = answered(
        "pkg.test",
        record("pkg.test", dns.CNAME, 9, wire_name("b.test")),
        record("b.test", dns.CNAME, 9, wire_name("pkg.test")),
    )
    with pytest.raises(dns.DnsError):
        dns.read_answer(loop, "pkg.test", 7)


@pytest.mark.parametrize(
    "data",
    [
        QUERY[:2] + b"\x81" + QUERY[3:],  # an answer
        QUERY[:4] + b"\0\2" + QUERY[6:],  # two questions
        QUERY[:12] + b"\xc0\x0c\0\1\0\1",  # compressed
        QUERY + b"\0" * 600,
        QUERY.replace(b"pkg", b"p\0g"),
        QUERY.replace(b"pkg", b"p.g"),
        QUERY[:12] + b"\0\0\1\0\1",  # the root
        QUERY[:12]
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\0\0\1\0\1",
    ],
)
def test_questions_that_are_none(data: bytes) -> None:
    with pytest.raises(dns.DnsError):
        dns.read_question(data)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_hello_a_head_or_refused(data: bytes) -> None:
    for each in (data, HELLO[: len(data)] + data, b"GET / HTTP/1.1\r\n" + data):
        with contextlib.suppress(NoNameError):
            found = read_hello(each)
            assert found is None or found.name
        with contextlib.suppress(NoNameError):
            head = read_head(each)
            assert head is None or (head.name and head.size <= len(each))


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_hello_with_one_wrong_byte_is_read_or_refused(place: int, byte: int) -> None:
    data = bytearray(HELLO)
    data[place] = byte
    with contextlib.suppress(NoNameError):
        read_hello(bytes(data))


@given(st.lists(st.integers(1, 80), min_size=1, max_size=20))
def test_a_hello_in_any_pieces_and_records_says_the_same(sizes: list[int]) -> None:
    assert read_hello(HELLO) == Hello("pkg.test", encrypted=False)
    for end in range(len(HELLO)):
        assert read_hello(HELLO[:end]) is None
    body, cut, place = HELLO[5:], b"", 0
    for size in sizes:
        cut += HELLO[:3] + len(body[place : place + size]).to_bytes(2, "big") + body[place : place + size]
        place += size
        if place >= len(body):
            break
    else:
        cut += HELLO[:3] + len(body[place:]).to_bytes(2, "big") + body[place:]
    assert read_hello(cut) == Hello("pkg.test", encrypted=False)


def with_extension(kind: int, data: bytes) -> bytes:
    """Return the hello with one more extension."""
    body = HELLO[9:]
    place = 34 + 1 + body[34]
    place += 2 + int.from_bytes(body[place : place + 2], "big")
    place += 1 + body[place]
    extensions = body[place + 2 :] + struct.pack(">HH", kind, len(data)) + data
    message = body[:place] + len(extensions).to_bytes(2, "big") + extensions
    message = b"\1" + len(message).to_bytes(3, "big") + message
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def test_an_encrypted_hello_is_seen_for_what_it_is() -> None:
    assert read_hello(with_extension(0xFE0D, b"\0" * 40)) == Hello("pkg.test", encrypted=True)


def test_two_names_are_none() -> None:
    with pytest.raises(NoNameError, match="malformed"):
        read_hello(with_extension(0, b"\0\x0c\0\0\x09evil.test"))


def test_there_is_an_end_to_how_much_is_read() -> None:
    with pytest.raises(NoNameError, match="header_too_large"):
        read_head(b"GET / HTTP/1.1\r\nX: " + b"a" * MOST_HEADER_BYTES)
    with pytest.raises(NoNameError, match="header_too_large"):
        read_hello(b"\x16\x03\x01\x40\x00\x01\x00\xff\xff" + b"\0" * MOST_HELLO_BYTES)


@given(st.text(max_size=40))
def test_a_name_that_is_read_is_matched_and_dialled_as_it_was_read(host: str) -> None:
    try:
        head = read_head(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("utf-8", "surrogatepass"))
    except (NoNameError, UnicodeEncodeError):
        return
    assert head is not None
    name = name_from_wire(head.name)
    assert name is None or host.strip(" \t").lower().startswith(name)
