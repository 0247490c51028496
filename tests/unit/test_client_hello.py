"""The name in a ClientHello: that of every client there is, however it is cut, and none in anything else."""

import ssl
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnels.hello import MOST_BYTES, HelloError, server_name


def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


WHOLE = hello("8000-sbx.example.com")


def records(data: bytes, size: int) -> bytes:
    """Cut the message into records of another size."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


def test_a_clients_name_is_read() -> None:
    assert server_name(WHOLE) == "8000-sbx.example.com"
    assert server_name(WHOLE + b"more") == "8000-sbx.example.com"
    assert server_name(hello("LOUD.example.com")) == "loud.example.com"


def test_every_beginning_is_not_whole_yet() -> None:
    for end in range(len(WHOLE)):
        assert server_name(WHOLE[:end]) is None


@given(st.integers(1, 600))
def test_records_of_any_size_hold_the_same_message(size: int) -> None:
    assert server_name(records(WHOLE, size)) == "8000-sbx.example.com"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x02\x00\x00\x10" + b"a" * 16,
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01a",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01a",
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(HelloError):
        server_name(data)


def test_who_names_nobody_is_refused() -> None:
    with pytest.raises(HelloError):
        server_name(hello(None))


def test_one_that_never_ends_is_refused() -> None:
    trickle = b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * (MOST_BYTES // 6)
    with pytest.raises(HelloError):
        server_name(trickle + b"\x16")


@given(st.binary(max_size=400) | st.binary(max_size=400).map((b"\x16\x03\x01\x01\x00").__add__))
def test_no_bytes_break_it(data: bytes) -> None:
    with suppress(HelloError):
        assert server_name(data) is None or data[0] == 0x16


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_no_changed_byte_breaks_it(at: int, value: int) -> None:
    with suppress(HelloError):
        name = server_name(WHOLE[:at] + bytes((value,)) + WHOLE[at + 1 :])
        assert name is None or len(name) <= 253
