"""The resolver of the router namespace: answers the names that a sandbox may reach, and forwards nothing else.

What a sandbox asks is parsed, judged, and then asked anew in our own words: no byte of a refused question leaves the
node, and of an allowed one only the name. A refused name does not exist (NXDOMAIN), because REFUSED makes musl wait
for a time-out and glibc ask the next server.
"""

import asyncio
import contextlib
import socket
import struct
from collections import OrderedDict
from ipaddress import IPv4Address
from typing import Final, cast

from netpolicy import dns
from netpolicy.channel import ChannelError
from netpolicy.judge import Judge, Ruling
from netpolicy.member import Member, serve
from netpolicy.names import name_from_wire
from netpolicy.pace import Pace
from netpolicy.program import Given, ProgramCode
from netpolicy.router_side import RESOLVER_PORT
from netpolicy.tally import Decided
from netpolicy.upstream import UnresolvedError

_PER_SECOND: Final = 100
_BURST: Final = 300
_AT_ONCE_OF_ONE: Final = 64
_AT_ONCE: Final = 1024
_TTL_SECONDS: Final = 60
"""The longest an answer is to be kept: afterwards a policy may say something else."""
_LEARN_SECONDS: Final = 5.0
_SOCKETS: Final = 8
"""TCP connections of one sandbox at a time."""
_TCP_SECONDS: Final = 5.0
_TCP_QUESTIONS: Final = 64
_OPENED: Final = 16_384
_RECEIVE_BYTES: Final = 4 << 20


class Resolver:
    """Answers questions; `member` has the policies."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._pace = Pace(_PER_SECOND, _BURST)
        self._pending: dict[str, int] = {}
        self._all_pending = 0
        self._opened: OrderedDict[tuple[str, str, tuple[IPv4Address, ...]], float] = OrderedDict()
        member.changed = self._forget

    async def answer(self, sandbox: str, data: bytes) -> bytes | None:
        """Return the answer to one packet, or None for none."""
        judge = self._member.judges.get(sandbox)
        if judge is None or not self._pace.admits(sandbox, asyncio.get_running_loop().time()):
            return None
        try:
            question = dns.read_question(data)
        except dns.DnsError:
            return dns.malformed(data)
        name = name_from_wire(question.name)
        ruling = Ruling(allowed=False, source="policy", reason="malformed") if name is None else judge.of_name(name)
        if name is None or not ruling.allowed:
            self._note(sandbox, ruling, name or question.name)
            return dns.refusal(question, dns.NO_SUCH_NAME, extended_error=dns.PROHIBITED)
        if question.kind != dns.A:
            return dns.answer(question, (), 0)
        if self._all_pending >= _AT_ONCE or self._pending.get(sandbox, 0) >= _AT_ONCE_OF_ONE:
            return dns.refusal(question, dns.SERVER_FAILURE)
        self._count(sandbox, 1)
        try:
            return await self._resolved(sandbox, judge, name, question)
        finally:
            self._count(sandbox, -1)

    async def _resolved(self, sandbox: str, judge: Judge, name: str, question: dns.Question) -> bytes:
        try:
            found, ttl = await self._member.upstream.resolve(name)
        except UnresolvedError as error:
            code = dns.NO_SUCH_NAME if error.reason == "no_such_name" else dns.SERVER_FAILURE
            return dns.refusal(question, code)
        # The policy may have changed while others were asked.
        if self._member.judges.get(sandbox) is not judge:
            return dns.refusal(question, dns.SERVER_FAILURE)
        refused = [ruling for address in found if (ruling := judge.against(address)) is not None]
        addresses = tuple(address for address in found if judge.against(address) is None)
        if not addresses:
            self._note(sandbox, refused[0], name, str(found[0]))
            return dns.refusal(question, dns.NO_SUCH_NAME, extended_error=dns.PROHIBITED)
        ttl = min(ttl, _TTL_SECONDS)
        if not await self._open(sandbox, judge, name, addresses, ttl):
            return dns.refusal(question, dns.SERVER_FAILURE)
        self._note(sandbox, judge.of_name(name), name, str(addresses[0]))
        return dns.answer(question, addresses, ttl)

    async def _open(self, sandbox: str, judge: Judge, name: str, addresses: tuple[IPv4Address, ...], ttl: int) -> bool:
        """Have the kernel let these addresses through, at the name's ports, before anybody hears of them."""
        if not judge.opens(name):
            return True
        key, now = (sandbox, name, addresses), asyncio.get_running_loop().time()
        if self._opened.get(key, 0.0) >= now + ttl:
            return True
        learn = {
            "learn": sandbox,
            "name": name,
            "addresses": [str(address) for address in addresses],
            "seconds": 2 * ttl,
        }
        try:
            async with asyncio.timeout(_LEARN_SECONDS):
                done = await self._member.call(learn)
        except (TimeoutError, ChannelError):
            return False
        if not done.get("learned") or self._member.judges.get(sandbox) is not judge:
            return False
        self._opened[key] = now + 2 * ttl
        self._opened.move_to_end(key)
        while len(self._opened) > _OPENED:
            self._opened.popitem(last=False)
        return True

    def _forget(self, sandbox: str) -> int:
        for key in [key for key in self._opened if key[0] == sandbox]:
            del self._opened[key]
        return 0

    def _count(self, sandbox: str, by: int) -> None:
        self._all_pending += by
        left = self._pending.get(sandbox, 0) + by
        if left:
            self._pending[sandbox] = left
        else:
            del self._pending[sandbox]

    def _note(self, sandbox: str, ruling: Ruling, name: str, address: str | None = None) -> None:
        self._member.tally.add(Decided(sandbox=sandbox, ruling=ruling, name=name, address=address))


class _Udp(asyncio.DatagramProtocol):
    """Packets of sandboxes, each answered by a task of its own."""

    def __init__(self, resolver: Resolver, group: asyncio.TaskGroup) -> None:
        self._resolver = resolver
        self._group = group
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._tasks < 2 * _AT_ONCE:
            self._tasks += 1
            self._group.create_task(self._answer(data, addr))

    async def _answer(self, data: bytes, peer: tuple[str, int]) -> None:
        try:
            answer = await self._resolver.answer(peer[0], data)
        finally:
            self._tasks -= 1
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, peer)

    def error_received(self, exc: Exception) -> None:
        """A sandbox that has gone meanwhile; nobody else cares."""


class _Tcp:
    """The same over TCP, for askers that insist."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._open: dict[str, int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sandbox = writer.get_extra_info("peername")[0]
        if self._open.get(sandbox, 0) >= _SOCKETS:
            writer.transport.abort()
            return
        self._open[sandbox] = self._open.get(sandbox, 0) + 1
        try:
            for _ in range(_TCP_QUESTIONS):
                async with asyncio.timeout(_TCP_SECONDS):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    answer = await self._resolver.answer(sandbox, await reader.readexactly(length))
                if answer is None:
                    break
                writer.write(struct.pack(">H", len(answer)) + answer)
                async with asyncio.timeout(_TCP_SECONDS):
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._open[sandbox] -= 1
            if not self._open[sandbox]:
                del self._open[sandbox]
            writer.transport.abort() if writer.is_closing() else writer.close()


def bind() -> list[socket.socket]:
    """Bind both sockets."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    datagrams.bind(("0.0.0.0", RESOLVER_PORT))  # noqa: S104 - the table says who reaches it
    streams = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    streams.bind(("0.0.0.0", RESOLVER_PORT))  # noqa: S104 - the table says who reaches it
    return [datagrams, streams]


async def run(given: Given) -> None:
    """Answer until sandboxd is gone."""
    datagrams, streams = given.listeners

    async def work(member: Member) -> None:
        resolver = Resolver(member)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(resolver, group), sock=datagrams)
            server = await asyncio.start_server(_Tcp(resolver).serve, sock=streams, limit=2048, backlog=128)
            with contextlib.closing(transport):
                await server.serve_forever()

    await serve(given, work)


PROGRAM = ProgramCode(bind, run)
