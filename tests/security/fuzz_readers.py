"""`python fuzz_readers.py READER OPTIONS... CORPUS`: gives one reader what libFuzzer makes of a corpus.

A reader may refuse, in its own way; it may not fail in another, or understand what somebody else would take for
something else: a hello is also read by OpenSSL, and a request by h11.
"""

import contextlib
import resource
import ssl
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

import atheris

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - has no types
    include=["netpolicy", "tunnels"]
):
    from netpolicy import dns, sniff
    from tunnels import hello

import h11

_NAME: Final = "packages.example.com"
_NUMBER: Final = 4711
_MEMORY: Final = 1536 << 20  # bytes of addresses; past it an allocation fails, and that is a finding

_seen: Final[list[str | None]] = []
_server: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # one for all: each takes memory that only a collection frees
_server.sni_callback = lambda _, name, __: _seen.append(name)


def _by_openssl(data: bytes) -> str | None:
    """The server name as the library reads it that most servers have."""
    _seen.clear()
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    connection = _server.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with contextlib.suppress(ssl.SSLError, ValueError):
        connection.do_handshake()
    return _seen[0] if _seen else None


def read_hello(data: bytes) -> None:
    """Both readers and OpenSSL see one name, or one of them sees none."""
    try:
        ours = sniff.read_hello(data)
    except sniff.NoNameError:
        ours = None
    try:
        gateways = hello.server_name(data)
    except hello.HelloError:
        gateways = None
    names = {name.lower().removesuffix(".") for name in (ours and ours.name, gateways, _by_openssl(data)) if name}
    assert len(names) <= 1, (names, data.hex())


def read_head(data: bytes) -> None:
    """H11 sees the same request, or none."""
    try:
        ours = sniff.read_head(data)
    except sniff.NoNameError:
        return
    if ours is None:
        return
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(data)
    try:
        request = parser.next_event()
    except h11.RemoteProtocolError:
        return
    assert isinstance(request, h11.Request), data
    assert (request.method.decode(), request.target.decode()) == (ours.method, ours.target), data
    (theirs,) = [value.decode() for key, value in request.headers if key == b"host"]
    assert theirs.partition(":")[0] == ours.name, data


def read_question(data: bytes) -> None:
    """What is understood can be answered, and the answer says the same."""
    try:
        question = dns.read_question(data)
    except dns.DnsError:
        dns.malformed(data)
        return
    reply = dns.answer(question, [IPv4Address("192.0.2.1")], 60)
    assert reply[:2] == data[:2], data
    assert question.wire in reply, data
    assert question.name == question.name.lower(), data
    assert dns.read_question(dns.ask(question.name, question.number)).name == question.name, data


def read_answer(data: bytes) -> None:
    """Only addresses come out, few of them, and only of an answer to what was asked."""
    try:
        answer = dns.read_answer(data, _NAME, _NUMBER)
    except dns.DnsError:
        return
    assert all(isinstance(each, IPv4Address) for each in answer.addresses), data
    assert answer.ttl >= 0, data
    assert int.from_bytes(data[:2]) == _NUMBER, data


def broken(data: bytes) -> None:
    """A reader with a mistake, so that a test can see mistakes found."""
    if data[:1] == b"\x12" and data[2:3] > b"\0":
        data[data[2] + 200]


READERS: Final[dict[str, Callable[[bytes], None]]] = {
    "hello": read_hello,
    "head": read_head,
    "question": read_question,
    "answer": read_answer,
    "broken": broken,
}

if __name__ == "__main__":
    sys.unraisablehook = lambda _: None  # the ssl module says there of names that are no text
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    reader = READERS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, reader)
    atheris.Fuzz()
