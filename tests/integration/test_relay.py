"""The relay to the node's resolvers: what they cut short is asked once more over TCP, in bounds."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Final, cast

import pytest

from names_kit import record
from netpolicy import dns
from netpolicy.upstream import Upstream
from sandboxd.network.relay import Relay

NAME = "many.test"
ADDRESSES = [IPv4Address("93.184.216.0") + number for number in range(30)]
Said = Callable[[bytes], bytes]


def whole(query: bytes) -> bytes:
    question = dns.read_question(query)
    records = b"".join(record(NAME, dns.A, 60, address.packed) for address in ADDRESSES)
    return struct.pack(">6H", question.number, 0x8180, 1, len(ADDRESSES), 0, 0) + question.wire + records


def cut(query: bytes) -> bytes:
    question = dns.read_question(query)
    first = record(NAME, dns.A, 60, ADDRESSES[0].packed)
    return struct.pack(">6H", question.number, 0x8380, 1, 1, 0, 0) + question.wire + first


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(cut(data), addr)


@asynccontextmanager
async def upstream(said: Said | None) -> AsyncGenerator[Upstream]:
    """A resolver that cuts every answer short over UDP and answers so over TCP, and the program's way to it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        if said is not None:
            writer.write(said(whole(await reader.readexactly(length))))
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(_Datagrams, local_addr=("127.0.0.1", port))
    relay = Relay(lambda: ["127.0.0.1"], lambda kind: socket.socket(socket.AF_INET, kind), port=port)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        program = Upstream(theirs)
        async with server, relay.between(ours), asyncio.TaskGroup() as group:
            hearing = group.create_task(program.run())
            try:
                yield program
            finally:
                hearing.cancel()
                transport.close()


def framed(answer: bytes) -> bytes:
    return struct.pack(">H", len(answer)) + answer


async def test_what_was_cut_short_comes_whole_over_tcp() -> None:
    async with upstream(framed) as program:
        addresses, _ = await program.resolve(NAME)
    assert list(addresses) == ADDRESSES


SPOILED: Final[dict[str, Said | None]] = {
    "silent": None,
    "nothing": lambda _: b"",
    "half a length": lambda _: b"\0",
    "empty": lambda _: framed(b""),
    "one byte": lambda _: framed(b"x"),
    "ends early": lambda answer: framed(answer)[:-1],
    "too long": lambda _: framed(bytes(0xFFFF)),
    "another's": lambda answer: framed(b"??" + answer[2:]),
}


@pytest.mark.parametrize("bad", list(SPOILED))
async def test_without_it_what_came_first_counts(bad: str) -> None:
    async with upstream(SPOILED[bad]) as program:
        addresses, _ = await program.resolve(NAME)
    assert list(addresses) == ADDRESSES[:1]
