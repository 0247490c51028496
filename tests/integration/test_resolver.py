"""The resolver: what it answers, what it never asks anybody, what is open before it speaks."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from ipaddress import IPv4Address

import pytest

from names_kit import Stand, stand, wire_name
from netpolicy import dns, resolver
from netpolicy.policy import BLOCKED

SANDBOX = "127.0.0.2"
OTHER = "127.0.0.3"
PUBLIC = "93.184.216.34"


@pytest.fixture
async def world() -> AsyncGenerator[Stand]:
    async with stand({"resolver": (resolver.run, [socket.SOCK_DGRAM, socket.SOCK_STREAM])}) as made:
        yield made


async def ask(
    world: Stand, name: bytes, kind: int = dns.A, sandbox: str = SANDBOX, *, raw: bytes | None = None
) -> bytes:
    loop = asyncio.get_running_loop()
    query = struct.pack(">6H", 77, 0x100, 1, 0, 0, 0) + name + struct.pack(">HH", kind, 1) if raw is None else raw
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind((sandbox, 0))
        end.connect(("127.0.0.1", world.births["resolver"].ports[0]))
        await loop.sock_sendall(end, query)
        return await loop.sock_recv(end, 4096)


def code(answer: bytes) -> int:
    return answer[3] & 0xF


def addresses(answer: bytes) -> list[str]:
    count = struct.unpack_from(">H", answer, 6)[0]
    return [str(IPv4Address(answer[len(answer) - 16 * (count - place) + 12 :][:4])) for place in range(count)]


async def test_an_allowed_name_is_answered(world: Stand) -> None:
    world.zone.names["pkg.test"] = [PUBLIC, "93.184.216.35"]
    await world.allow(SANDBOX, "pkg.test")
    answer = await ask(world, wire_name("pkg.test"))
    assert (code(answer), addresses(answer)) == (dns.NO_ERROR, [PUBLIC, "93.184.216.35"])
    assert world.learned == []  # 80 and 443 are the proxy's
    row = await world.decided(name="pkg.test", verdict="allow")
    assert (row["rule"], row["address"]) == ("pkg.test", PUBLIC)


async def test_a_refused_name_is_asked_of_nobody(world: Stand) -> None:
    world.zone.names["evil.test"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test", "*.cdn.test")
    for name in ("evil.test", "secret-data.evil.test", "evilpkg.test", "pkg.test.evil.test", "cdn.test", "test"):
        assert code(await ask(world, wire_name(name))) == dns.NO_SUCH_NAME
    assert world.zone.asked == []
    assert (await world.decided(name="evil.test", verdict="deny"))["reason"] == "not_allowed"


@pytest.mark.parametrize("name", [wire_name("PKG.test"), wire_name("pkg.TEST")])
async def test_case_is_nothing(world: Stand, name: bytes) -> None:
    world.zone.names["pkg.test"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test")
    answer = await ask(world, name)
    assert code(answer) == dns.NO_ERROR
    assert name in answer  # an asker may compare its own spelling
    assert world.zone.asked == ["pkg.test"]


@pytest.mark.parametrize(
    "name",
    [
        b"\x09pkg\0.test\0\0",
        b"\x08pkg.test\0",
        b"\x08pkg\\test\0",
        b"\x03pkg\x05test\0\0",
        b"\xc0\x0c",
        b"\x41" + b"a" * 65,
    ],
)
async def test_tricks_with_bytes_are_refused(world: Stand, name: bytes) -> None:
    await world.allow(SANDBOX, "pkg.test", "*.test")
    assert code(await ask(world, name)) in {dns.FORMAT_ERROR, dns.NO_SUCH_NAME}
    assert world.zone.asked == []


@pytest.mark.parametrize("kind", [28, 15, 16, 64, 65, 255, 12])
async def test_only_addresses_are_ever_asked_for(world: Stand, kind: int) -> None:
    await world.allow(SANDBOX, "pkg.test")
    answer = await ask(world, wire_name("pkg.test"), kind)
    assert (code(answer), addresses(answer)) == (dns.NO_ERROR, [])
    assert world.zone.asked == []


async def test_a_chain_belongs_to_the_name_that_was_asked(world: Stand) -> None:
    world.zone.aliases |= {"pkg.test": "edge.cdn.example", "edge.cdn.example": "node7.example"}
    world.zone.names["node7.example"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test:5432")
    answer = await ask(world, wire_name("pkg.test"))
    assert addresses(answer) == [PUBLIC]
    assert world.learned[0].name == "pkg.test"
    # what the chain passed by is no more allowed than before
    assert code(await ask(world, wire_name("node7.example"))) == dns.NO_SUCH_NAME


async def test_the_address_is_open_before_the_answer(world: Stand) -> None:
    world.zone.names["db.test"] = [PUBLIC]
    await world.allow(SANDBOX, "db.test:5432", "db.test:6000-6010/udp")
    await ask(world, wire_name("db.test"))
    (learned,) = world.learned
    assert learned.sandbox == SANDBOX
    assert learned.addresses == (IPv4Address(PUBLIC),)
    assert learned.seconds >= 60


@pytest.mark.parametrize("private", ["10.1.2.3", "169.254.169.254", "192.168.1.1", "0.0.0.1", "224.0.0.1"])
async def test_a_private_result_is_no_result(world: Stand, private: str) -> None:
    world.zone.names["pkg.test"] = [private]
    await world.allow(SANDBOX, "pkg.test", "pkg.test:22")
    assert code(await ask(world, wire_name("pkg.test"))) == dns.NO_SUCH_NAME
    assert world.learned == []
    row = await world.decided(verdict="deny", name="pkg.test")
    assert (row["source"], row["reason"], row["address"]) == ("platform", "private_address", private)


async def test_a_name_that_is_not_there_is_said_not_to_be(world: Stand) -> None:
    await world.allow(SANDBOX, "pkg.test")
    assert code(await ask(world, wire_name("pkg.test"))) == dns.NO_SUCH_NAME


async def test_each_sandbox_has_its_own(world: Stand) -> None:
    world.zone.names |= {"one.test": [PUBLIC], "two.test": [PUBLIC]}
    await world.allow(SANDBOX, "one.test")
    await world.allow(OTHER, "two.test")
    assert code(await ask(world, wire_name("one.test"))) == dns.NO_ERROR
    assert code(await ask(world, wire_name("one.test"), sandbox=OTHER)) == dns.NO_SUCH_NAME
    assert code(await ask(world, wire_name("two.test"), sandbox=OTHER)) == dns.NO_ERROR


async def test_an_update_counts_at_once(world: Stand) -> None:
    world.zone.names["pkg.test"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test")
    assert code(await ask(world, wire_name("pkg.test"))) == dns.NO_ERROR
    await world.apply(SANDBOX, BLOCKED)
    assert code(await ask(world, wire_name("pkg.test"))) == dns.NO_SUCH_NAME


async def test_one_that_comes_back_knows_its_policies(world: Stand) -> None:
    world.zone.names["pkg.test"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test")
    await world.back_again("resolver")
    assert code(await ask(world, wire_name("pkg.test"))) == dns.NO_ERROR
    assert code(await ask(world, wire_name("evil.test"))) == dns.NO_SUCH_NAME


async def test_the_same_over_tcp(world: Stand) -> None:
    world.zone.names["pkg.test"] = [PUBLIC]
    await world.allow(SANDBOX, "pkg.test")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.births["resolver"].ports[1], local_addr=(SANDBOX, 0)
    )
    query = dns.ask("pkg.test", 9)
    for _ in range(2):
        writer.write(struct.pack(">H", len(query)) + query)
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        assert dns.read_answer(await reader.readexactly(length), "pkg.test", 9).addresses == (IPv4Address(PUBLIC),)
    writer.close()


async def test_many_names_of_one_are_one_row_at_last(world: Stand) -> None:
    await world.allow(SANDBOX, "pkg.test")
    for number in range(150):
        await ask(world, wire_name(f"x{number}.evil.test"))
    await world.decided(reason="not_allowed", name="x0.evil.test")
    assert world.zone.asked == []
