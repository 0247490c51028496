"""The proxy: it dials the name and nothing else, and lets go of what a new policy forbids."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator
from ipaddress import IPv4Address

import pytest

from names_kit import Stand, stand
from netpolicy import proxy
from netpolicy.platform import PLATFORM
from netpolicy.policy import BLOCKED, parse_policy

SANDBOX = "127.0.0.2"
SERVER, OTHER_SERVER = "127.77.0.1", "127.77.0.2"
CHOSEN = IPv4Address("93.184.216.99")
"""The address that the client asked for, and that must never be dialled."""


class Web:
    """A server on one address, port 80 and 443: keeps what it gets, says who it is, then echoes."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.got = bytearray()
        self.ended = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            writer.write(self.name)
            while data := await reader.read(65536):
                self.got += data
                writer.write(data)
                await writer.drain()
            writer.write(b"END")
        self.ended.set()
        writer.close()


class World:
    def __init__(self, made: Stand, ours: Web, other: Web) -> None:
        self.stand = made
        self.ours = ours
        self.other = other
        self.address, self.port = CHOSEN, 80

    async def connect(self, port: int = 80) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.port = port
        listening = self.stand.births["proxy"].ports[0 if port == 80 else 1]
        return await asyncio.open_connection("127.0.0.1", listening, local_addr=(SANDBOX, 0))

    async def say(self, data: bytes, port: int = 80) -> bytes:
        """Send, end, and return everything that comes back; b"RESET" when it is refused."""
        reader, writer = await self.connect(port)
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b"RESET"
        finally:
            writer.close()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    async with contextlib.AsyncExitStack() as stack:
        webs: dict[bytes, Web] = {}
        for address, name in ((SERVER, b"ours:"), (OTHER_SERVER, b"other:")):
            webs[name] = Web(name)
            for port in (80, 443):
                await stack.enter_async_context(await asyncio.start_server(webs[name].serve, address, port))
        kinds = [socket.SOCK_STREAM, socket.SOCK_STREAM]
        made = await stack.enter_async_context(stand({"proxy": (proxy.run, kinds)}))
        world = World(made, webs[b"ours:"], webs[b"other:"])
        monkeypatch.setattr(proxy, "original_destination", lambda _: (world.address, world.port))  # type: ignore[reportUnknownLambdaType]
        made.zone.names |= {"pkg.test": [SERVER], "other.test": [OTHER_SERVER], "evil.test": [OTHER_SERVER]}
        yield world


def get(host: str, more: str = "") -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def hello(name: str | None) -> bytes:
    """Return a real client's first bytes."""
    context = ssl.create_default_context()
    if name is None:
        context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def is_reset(reader: asyncio.StreamReader) -> None:
    """Read what was on its way, then find out."""

    async def to_the_end() -> None:
        while await reader.read(65536):
            pass

    with pytest.raises(ConnectionResetError):
        await to_the_end()


async def test_the_name_is_dialled_not_the_address(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    asked = get("pkg.test", "X-Odd:  kept as it is \r\n")
    assert await world.say(asked) == b"ours:" + asked + b"END"
    assert await world.say(hello("pkg.test"), 443) != b"RESET"
    assert bytes(world.ours.got).startswith(asked)
    row = await world.stand.decided(verdict="allow", name="pkg.test", port=80)
    assert (row["address"], row["rule"], row["protocol"]) == (SERVER, "pkg.test", "tcp")


@pytest.mark.parametrize(
    "head",
    [
        get("evil.test"),
        get("pkg.test.evil.test"),
        get("evilpkg.test"),
        get("pkg.test\0.evil.test"),
        get("pkg.test, evil.test"),
        get("pkg.test@evil.test"),
        get("evil.test#pkg.test"),
        get("pkg.test:81"),
        get("[::1]"),
        get("127.77.0.1"),
        get("2130706433"),
        b"GET / HTTP/1.1\r\nHost: pkg.test\r\nHost: evil.test\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: pkg.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : pkg.test\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: pkg.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: pkg.test\n\n",
        b"GET / HTTP/2.0\r\nHost: pkg.test\r\n\r\n",
        b"CONNECT evil.test:80 HTTP/1.1\r\nHost: pkg.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"",
        b"G" * 40_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000,
    ],
)
async def test_lies_about_the_host_reach_nobody(world: World, head: bytes) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    assert await world.say(head) in {b"RESET", b""}
    assert (world.ours.connections, world.other.connections) == (0, 0)
    await world.stand.decided(verdict="deny")


@pytest.mark.parametrize("name", ["evil.test", "pkg.test.evil.test", "xpkg.test", None])
async def test_lies_about_the_server_name_reach_nobody(world: World, name: str | None) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    assert await world.say(hello(name), 443) == b"RESET"
    assert (world.ours.connections, world.other.connections) == (0, 0)
    row = await world.stand.decided(verdict="deny", port=443)
    assert row["reason"] == ("no_name" if name is None else "not_allowed")


async def test_case_and_a_trailing_dot_are_nothing(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    assert (await world.say(get("PKG.Test."))).startswith(b"ours:")
    assert world.stand.zone.asked == ["pkg.test"]


@pytest.mark.parametrize("private", ["10.0.0.1", "169.254.169.254", "192.168.0.1", "127.0.0.1"])
async def test_a_name_that_leads_inside_is_not_dialled(world: World, private: str) -> None:
    await world.stand.names.set_platform(PLATFORM)
    world.stand.zone.names["pkg.test"] = ["93.184.216.34", private]
    await world.stand.allow(SANDBOX, "pkg.test")
    assert await world.say(get("pkg.test")) == b"RESET"
    row = await world.stand.decided(verdict="deny", name="pkg.test")
    assert (row["source"], row["reason"], row["address"]) == ("platform", "private_address", private)


async def test_an_allowed_address_needs_no_name(world: World) -> None:
    world.address = IPv4Address(SERVER)
    await world.stand.allow(SANDBOX, f"{SERVER}/32", "pkg.test")
    assert (await world.say(b"SSH-2.0-x\r\n")).startswith(b"ours:")
    # and one that is named but not by a rule is still allowed there, by its address
    assert (await world.say(get("evil.test"))).startswith(b"ours:")
    assert world.other.connections == 0


async def test_a_connection_that_an_update_forbids_is_dead_when_it_returns(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test", "other.test")
    kept = await world.connect()
    kept[1].write(get("pkg.test"))
    assert await kept[0].readexactly(5) == b"ours:"
    dropped = await world.connect()
    dropped[1].write(get("other.test"))
    assert await dropped[0].readexactly(6) == b"other:"

    assert await world.stand.allow(SANDBOX, "pkg.test") == 1

    await is_reset(dropped[0])
    kept[1].write(b"still")
    assert b"still" in await kept[0].readuntil(b"still")
    assert await world.stand.apply(SANDBOX, BLOCKED) == 1
    for _, writer in (kept, dropped):
        writer.close()


async def test_a_second_name_on_a_connection_goes_to_the_first_names_server(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    reader, writer = await world.connect()
    writer.write(get("pkg.test"))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(get("other.test"))
    await reader.readuntil(b"other.test\r\n\r\n")
    assert world.other.connections == 0
    writer.close()


async def test_halves_end_one_by_one_and_nothing_is_lost(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    reader, writer = await world.connect()
    body = bytes(range(256)) * 40_000
    writer.write(get("pkg.test") + body)
    writer.write_eof()
    received = await reader.read()
    assert received == b"ours:" + get("pkg.test") + body + b"END"
    writer.close()


async def test_a_name_in_pieces_is_read_whole(world: World) -> None:
    await world.stand.allow(SANDBOX, "pkg.test")
    for port, data in ((80, get("pkg.test")), (443, hello("pkg.test"))):
        reader, writer = await world.connect(port)
        for byte in data:
            writer.write(bytes((byte,)))
            await writer.drain()
        assert await reader.readexactly(5) == b"ours:"
        writer.close()


async def test_who_says_nothing_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_SNIFF_SECONDS", 0.05)
    await world.stand.allow(SANDBOX, "pkg.test")
    reader, writer = await world.connect()
    writer.write(b"GET / HT")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert (await world.stand.decided(verdict="deny"))["reason"] == "no_name"
    writer.close()


async def test_a_sandbox_has_so_many_connections(world: World) -> None:
    limits = {"connections": 2}
    await world.stand.apply(SANDBOX, parse_policy({"mode": "allowlist", "allow": ["pkg.test"], "limits": limits}))
    held = [await world.connect() for _ in range(2)]
    for reader, writer in held:
        writer.write(get("pkg.test"))
        assert await reader.readexactly(5) == b"ours:"
    assert await world.say(get("pkg.test")) == b"RESET"
    row = await world.stand.decided(verdict="deny", source="limit")
    assert row["reason"] == "connection_limit"
    for _, writer in held:
        writer.close()
    while await world.say(get("pkg.test")) == b"RESET":  # noqa: ASYNC110 - the proxy learns of the ends by itself
        await asyncio.sleep(0.005)


async def test_a_stranger_is_nobody(world: World) -> None:
    assert await world.say(get("pkg.test")) == b"RESET"
    assert world.ours.connections == 0


async def test_without_names_in_its_policy_no_program_hears_of_a_sandbox(world: World) -> None:
    await world.stand.allow(SANDBOX, mode="open")
    assert await world.say(get("pkg.test")) == b"RESET"
    # but what was carried before an opening goes on
    await world.stand.allow(SANDBOX, "pkg.test")
    reader, writer = await world.connect()
    writer.write(get("pkg.test"))
    assert await reader.readexactly(5) == b"ours:"
    assert await world.stand.allow(SANDBOX, mode="open") == 0
    writer.write(b"still")
    assert b"still" in await reader.readuntil(b"still")
    writer.close()


async def test_a_denied_name_is_denied_where_all_others_are_open(world: World) -> None:
    await world.stand.allow(SANDBOX, mode="open", deny=("evil.test",))
    world.address = IPv4Address(OTHER_SERVER)
    assert await world.say(get("evil.test")) == b"RESET"
    assert (await world.stand.decided(verdict="deny"))["rule"] == "evil.test"
    # neither by saying another name: then that one's server is reached
    assert (await world.say(get("pkg.test"))).startswith(b"ours:")
    assert await world.say(b"SSH-2.0-x\r\n") == b"RESET"
