"""Secrets put into requests: at the real server and nowhere else, in one header, of one host."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncGenerator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from injection_kit import SECRET, Authority, RealServer, authority, credentials, real_server
from names_kit import Stand, stand
from netpolicy import exchange, proxy
from netpolicy.platform import PLATFORM
from netpolicy.policy import parse_policy

SANDBOX, STRANGER = "127.0.0.2", "127.0.0.3"
SERVER, OTHER_SERVER = "127.77.0.1", "127.77.0.2"
ENTRY = {"host": "api.test", "header": "Authorization", "value_from": {"secret": "token"}, "format": "Bearer {value}"}
PUT = f"authorization: Bearer {SECRET}".encode()


class World:
    def __init__(self, made: Stand, project: Authority, api: RealServer, other: RealServer) -> None:
        self.stand = made
        self.project = project
        self.api = api
        self.other = other

    async def inject(self, sandbox: str = SANDBOX, *entries: dict[str, Any], **values: str) -> int:
        policy = parse_policy({"mode": "open", "inject": list(entries) or [ENTRY]})
        return await self.stand.apply(sandbox, policy, credentials(self.project, **values))

    async def connect(
        self, name: str = "api.test", *, sandbox: str = SANDBOX, trusted: Authority | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cadata=(trusted or self.project).certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return await asyncio.open_connection(
            "127.0.0.1",
            self.stand.births["proxy"].ports[1],
            local_addr=(sandbox, 0),
            ssl=context,
            server_hostname=name,
        )

    async def say(self, data: bytes, name: str = "api.test", **more: Any) -> bytes:
        reader, writer = await self.connect(name, **more)
        writer.write(data)
        try:
            return await reader.read()
        finally:
            writer.close()


def get(path: str = "/", more: str = "", host: str = "api.test") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def last(more: str = "", **how: str) -> bytes:
    return get(more="Connection: close\r\n" + more, **how)


@pytest.fixture(name="outside")
def _outside() -> Authority:
    return authority("outside")


@pytest.fixture(name="world")
async def _world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outside: Authority) -> AsyncGenerator[World]:
    monkeypatch.setattr(proxy, "original_destination", lambda _: (IPv4Address("93.184.216.99"), 443))  # type: ignore[reportUnknownLambdaType]
    kinds = [socket.SOCK_STREAM, socket.SOCK_STREAM]
    async with (
        real_server(SERVER, outside.issue(tmp_path, "api.test", "second.test")) as api,
        real_server(OTHER_SERVER, outside.issue(tmp_path, "other.test")) as other,
        stand({"proxy": (proxy.run, kinds)}, authorities=outside.certificate) as made,
    ):
        made.zone.names |= {"api.test": [SERVER], "second.test": [SERVER], "other.test": [OTHER_SERVER]}
        yield World(made, authority("project"), api, other)


async def test_the_header_is_put_in_and_the_rest_is_as_it_was(world: World) -> None:
    await world.inject()
    answer = await world.say(last("X-Case: Kept\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Odd: Kept\r\n")
    assert answer.endswith(b"\r\n\r\nyou said 0\n")
    assert world.api.heads == [
        b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\nX-Case: Kept\r\n" + PUT + b"\r\n\r\n"
    ]
    row = await world.stand.decided(verdict="allow", name="api.test")
    assert (row["address"], row["rule"]) == (SERVER, "api.test:443")
    assert SECRET not in json.dumps(world.stand.decisions)


@pytest.mark.parametrize(
    "given",
    [
        "Authorization: mine\r\n",
        "authorization: mine\r\nAUTHORIZATION: mine\r\n",
        "X: 1\r\naUTHORIZATION:\tmine \r\nConnection: authorization\r\n",
    ],
)
async def test_what_the_sandbox_says_in_that_header_is_nothing(world: World, given: str) -> None:
    await world.inject()
    assert b" 200 " in await world.say(last(given))
    (head,) = world.api.heads
    assert head.lower().count(b"authorization:") == 1
    assert PUT in head
    assert b"mine" not in head


async def test_many_requests_of_one_connection_each_get_it(world: World) -> None:
    await world.inject()
    body = bytes(range(256)) * 2000
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:70_000], body[70_000:], b"x"))
    asked = b"".join(
        (
            get(),
            b"POST /a HTTP/1.1\r\nHost: API.test:443\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body),
            b"POST /b HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n",
            last(),
        )
    )
    answer = await world.say(asked)
    assert [line for line in answer.split(b"\n") if line.startswith(b"you said")] == [
        b"you said 0",
        b"you said %d" % len(body),
        b"you said %d" % (len(body) + 1),
        b"you said 0",
    ]
    assert [head.count(PUT) for head in world.api.heads] == [1, 1, 1, 1]
    assert world.api.connections == 1


async def test_the_header_in_a_trailer_is_dropped(world: World) -> None:
    await world.inject()
    asked = b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: mine\r\n\r\n"
    reader, writer = await world.connect()
    writer.write(asked)
    assert await reader.readuntil(b"said 0\n")
    assert b"mine" not in world.api.got
    writer.close()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (get(host="other.test"), 421),
        (get(host="api.test:8443"), 421),
        (get(host="api.test.evil.test"), 421),
        (get(host="api.test, other.test"), 400),
        (get(more="Host: other.test\r\n"), 421),
        (get(path="https://other.test/"), 421),
        (get(path="https://api.test/"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"CONNECT other.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n", 400),
        (b"TRACE / HTTP/1.1\r\nHost: api.test\r\n\r\n", 405),
        (get(more="X: 1\r\n folded\r\n"), 400),
        (get(more="X : 1\r\n"), 400),
        (get(more="X: 1\nAuthorization: mine\r\n"), 400),
        (get(more="X: 1\rAuthorization: mine\r\n"), 400),
        (get(more="X: \0\r\n"), 400),
        (b"GET / HTTP/1.1\nHost: api.test\n\n" + get(), 400),
        (get(more="Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 400),
        (get(more="Content-Length: 4\r\nContent-Length: 4\r\n") + b"abcd", 400),
        (get(more="Content-Length: 4\r\nContent-Length: 5\r\n") + b"abcd", 400),
        (get(more="Content-Length: 4, 4\r\n") + b"abcd", 400),
        (get(more="Content-Length: +4\r\n") + b"abcd", 400),
        (get(more="Content-Length: -1\r\n"), 400),
        (get(more="Transfer-Encoding: xchunked\r\n"), 501),
        (get(more="Transfer-Encoding: chunked, chunked\r\n"), 501),
        (get(more="Transfer-Encoding: identity, chunked\r\n"), 501),
        (get(more="Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400),
        (get(more="Transfer-Encoding: chunked\r\n") + b"zz\r\n", 400),
        (get(more="Transfer-Encoding: chunked\r\n") + b"-1\r\n", 400),
        (get(more="Transfer-Encoding: chunked\r\n") + b"3\r\nabcdef\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"G" * 40_000, 400),
        (get(more="X: " + "a" * 40_000 + "\r\n"), 400),
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(world: World, asked: bytes, status: int) -> None:
    await world.inject()
    answer = await world.say(asked)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert SECRET.encode() not in answer
    assert world.other.connections == 0
    assert len(world.api.heads) <= 1  # of one whose body turned out to be none
    row = await world.stand.decided(verdict="deny", name="api.test")
    assert row["reason"] in {"name_mismatch", "no_name", "request_refused"}


async def test_a_second_request_for_another_host_is_refused(world: World) -> None:
    await world.inject()
    answer = await world.say(get() + get(host="other.test"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 421 " in answer
    assert len(world.api.heads) == 1
    assert world.other.connections == 0


async def test_every_other_host_is_end_to_end(world: World, outside: Authority) -> None:
    await world.inject()
    for name, server in (("other.test", world.other), ("second.test", world.api)):
        # The certificate is the server's own, and what is said to it is what it gets.
        asked = last("Authorization: mine\r\n", host="api.test")
        assert b" 200 " in await world.say(asked, name, trusted=outside)
        assert server.heads == [asked]
    assert SECRET.encode() not in world.api.got + world.other.got


async def test_nobody_else_gets_anything(world: World, outside: Authority) -> None:
    await world.inject()
    await world.stand.apply(STRANGER, parse_policy({"mode": "open", "deny": ["nothing.test"]}))
    assert b" 200 " in await world.say(last(), sandbox=STRANGER, trusted=outside)
    assert world.api.heads == [last()]


async def test_two_projects_have_an_authority_each(world: World) -> None:
    await world.inject()
    theirs = authority("theirs")
    await world.stand.apply(
        STRANGER, parse_policy({"mode": "open", "inject": [ENTRY]}), credentials(theirs, token="their-own")
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        await world.say(last(), sandbox=STRANGER)
    assert b" 200 " in await world.say(last(), sandbox=STRANGER, trusted=theirs)
    assert b"their-own" in world.api.heads[0]
    assert SECRET.encode() not in world.api.got


async def test_several_headers_of_several_hosts(world: World) -> None:
    await world.inject(
        SANDBOX,
        ENTRY,
        {"host": "api.test", "header": "X-Key", "value_from": {"secret": "key"}},
        {"host": "second.test", "header": "X-Key", "value_from": {"secret": "token"}},
        token=SECRET + "\n",
        key="grün",
    )
    await world.say(last("x-key: mine\r\n"))
    await world.say(last("Authorization: mine\r\n", host="second.test"), "second.test")
    assert PUT + b"\r\nx-key: gr\xc3\xbcn\r\n" in world.api.heads[0]
    assert b"Authorization: mine\r\nx-key: " + SECRET.encode() + b"\r\n" in world.api.heads[1]


async def test_deny_beats_inject(world: World) -> None:
    policy = parse_policy({"mode": "open", "inject": [ENTRY], "deny": ["api.test"]})
    await world.stand.apply(SANDBOX, policy, credentials(world.project))
    with pytest.raises(OSError):  # noqa: PT011 - reset, or the end of the handshake
        await world.say(last())
    assert world.api.connections == 0
    assert (await world.stand.decided(verdict="deny"))["reason"] == "denied_by_rule"


@pytest.mark.parametrize(
    "values", [None, {}, {"other": "x"}, {"token": "a\r\nX: y"}, {"token": "x" * 9000}, {"token": "ü" * 5000}]
)
async def test_without_its_value_the_host_is_closed(world: World, values: dict[str, str] | None) -> None:
    policy = parse_policy({"mode": "open", "inject": [ENTRY]})
    known = None if values is None else credentials(world.project, **(values or {"unused": "x"}))
    await world.stand.apply(SANDBOX, policy, known)
    if known is None:
        with pytest.raises(OSError):  # noqa: PT011 - reset, or the end of the handshake
            await world.say(last())
    else:
        answer = await world.say(last())
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"secret token" in answer
    assert world.api.connections == 0
    assert (await world.stand.decided(verdict="deny"))["reason"] == "credentials_missing"
    await world.inject()
    assert b" 200 " in await world.say(last())


async def test_a_broken_authority_closes_the_host(world: World) -> None:
    policy = parse_policy({"mode": "open", "inject": [ENTRY]})
    await world.stand.apply(SANDBOX, policy, credentials(Authority("no certificate", "no key")))
    with pytest.raises(OSError):  # noqa: PT011 - reset, or the end of the handshake
        await world.say(last())
    assert (await world.stand.decided(verdict="deny"))["reason"] == "credentials_missing"


@pytest.mark.parametrize("kind", ["unknown authority", "another name"])
async def test_a_server_that_cannot_prove_its_name_gets_nothing(world: World, tmp_path: Path, kind: str) -> None:
    await world.inject()
    signer = authority("nobody") if kind == "unknown authority" else None
    names = ("api.test",) if signer else ("other.test",)
    context = (signer or authority("x")).issue(tmp_path, *names)
    address = "127.77.0.3" if signer else OTHER_SERVER
    world.stand.zone.names["api.test"] = [address]
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(real_server(address, context)) if signer else world.other
        answer = await world.say(last())
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"the certificate of api.test is not trusted" in answer
        assert not server.got
    assert (await world.stand.decided(verdict="deny"))["reason"] == "certificate_refused"


async def test_a_private_address_is_not_dialled(world: World) -> None:
    await world.stand.names.set_platform(PLATFORM)
    world.stand.zone.names["api.test"] = ["93.184.216.34", "10.0.0.1"]
    await world.inject()
    assert (await world.say(last())).startswith(b"HTTP/1.1 502 ")
    row = await world.stand.decided(verdict="deny", name="api.test")
    assert (row["source"], row["reason"], row["address"]) == ("platform", "private_address", "10.0.0.1")


async def test_a_name_that_leads_nowhere(world: World) -> None:
    del world.stand.zone.names["api.test"]
    await world.inject()
    assert (await world.say(last())).startswith(b"HTTP/1.1 502 ")
    assert (await world.stand.decided(verdict="deny"))["reason"] == "unresolvable"


async def test_a_redirect_is_the_clients_to_follow(world: World, outside: Authority) -> None:
    await world.inject()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: https://other.test/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    world.api.handler = redirect
    answer = await world.say(last())
    assert b"\r\nLocation: https://other.test/\r\n" in answer
    assert b" 200 " in await world.say(last(host="other.test"), "other.test", trusted=outside)
    assert SECRET.encode() not in world.other.got


async def test_a_new_value_is_used_from_the_next_request(world: World) -> None:
    await world.inject()
    reader, writer = await world.connect()
    writer.write(get())
    await reader.readuntil(b"said 0\n")
    assert await world.inject(SANDBOX, token="rotated") == 0
    writer.write(get())
    await reader.readuntil(b"said 0\n")
    assert PUT in world.api.heads[0]
    assert b"authorization: Bearer rotated\r\n" in world.api.heads[1]
    writer.close()


async def test_a_policy_without_it_ends_the_connection(world: World) -> None:
    await world.inject()
    reader, writer = await world.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 100\r\n\r\nhalf")
    await world.api.asked.wait()
    assert await world.stand.apply(SANDBOX, parse_policy({"mode": "open"})) == 1
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_a_policy_with_it_ends_connections_without(world: World, outside: Authority) -> None:
    await world.stand.apply(SANDBOX, parse_policy({"mode": "allowlist", "allow": ["api.test"]}))
    reader, writer = await world.connect(trusted=outside)
    writer.write(get())
    await reader.readuntil(b"said 0\n")
    assert await world.inject() == 1
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert PUT not in world.api.got
    writer.close()


async def test_a_proxy_that_comes_back_knows_everything(world: World) -> None:
    await world.inject()
    await world.stand.back_again("proxy")
    assert b" 200 " in await world.say(last())
    assert PUT in world.api.heads[0]


async def test_a_websocket_passes_untouched(world: World) -> None:
    await world.inject()

    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nfirst")
        while data := await reader.read(100):
            writer.write(data[::-1])

    world.api.handler = switch
    reader, writer = await world.connect()
    writer.write(get(more="Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    assert (await reader.readuntil(b"first")).startswith(b"HTTP/1.1 101 ")
    writer.write(b"GET / HTTP/1.1\0")
    assert await reader.readexactly(15) == b"GET / HTTP/1.1\0"[::-1]
    assert PUT in world.api.heads[0]
    writer.close()


async def test_a_body_waits_for_the_servers_word(world: World) -> None:
    await world.inject()

    async def say_go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        body = await reader.readexactly(4)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n" % body)
        await writer.drain()

    world.api.handler = say_go_on
    reader, writer = await world.connect()
    writer.write(get(more="Expect: 100-continue\r\nContent-Length: 4\r\n"))
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
    assert b" 103 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"body")
    answer = await reader.readuntil(b"X-Sum: 1\r\n\r\n")
    assert b"4\r\nbody\r\n0\r\n" in answer
    writer.close()


async def test_an_answer_before_the_body_is_passed_on(world: World) -> None:
    await world.inject()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    world.api.handler = refuse
    answer = await world.say(get(more="Expect: 100-continue\r\nContent-Length: 1000000\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 No\r\n")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
    ],
)
async def test_a_server_that_speaks_nonsense(world: World, nonsense: bytes) -> None:
    await world.inject()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(nonsense)
        await writer.drain()

    world.api.handler = babble
    answer = await world.say(last())
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert SECRET.encode() not in answer


async def test_big_bodies_both_ways_wait_for_each_other(world: World) -> None:
    await world.inject()
    body = bytes(range(256)) * 40_000

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        left = len(body)
        while left:
            data = await reader.read(65536)
            left -= len(data)
            writer.write(data)
            await writer.drain()

    world.api.handler = echo
    reader, writer = await world.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(len(body)) == body
    writer.close()


async def test_a_slow_head_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_HEAD_SECONDS", 0.05)
    await world.inject()
    assert (await world.say(b"GET / HTTP/1.1\r\nHo")).startswith(b"HTTP/1.1 408 ")
    assert world.api.connections == 0


async def test_silence_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_IDLE_SECONDS", 0.05)
    await world.inject()
    assert await world.say(b"") == b""


async def test_who_goes_away_leaves_nothing(world: World) -> None:
    await world.inject()
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await world.api.head(reader)
        with contextlib.suppress(OSError):
            await reader.read()
        gone.set()

    world.api.handler = wait
    _, writer = await world.connect()
    writer.write(get())
    await world.api.asked.wait()
    writer.transport.abort()
    await gone.wait()


async def test_a_proxy_broken_by_one_serves_the_others(world: World) -> None:
    """Whatever a client sends before there is TLS."""
    await world.inject()
    starts = world.stand.names.programs["proxy"].starts
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="api.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    first = hello.read()
    for garbage in (first + first, first + b"\0" * 5000, first + b"\x15\x03\x03\0\x02\x02\x28"):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", world.stand.births["proxy"].ports[1], local_addr=(SANDBOX, 0)
        )
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
    assert b" 200 " in await world.say(last())
    assert world.stand.names.programs["proxy"].starts == starts


def test_credentials_say_nothing_of_themselves() -> None:
    made = credentials(authority("x"), token=SECRET)
    assert SECRET not in repr(made)
    assert "PRIVATE" not in f"{made} {made!r}"
