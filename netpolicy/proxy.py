"""The proxy of the router namespace: takes a sandbox's connections to ports 80 and 443, and dials the names in them.

It reads the first bytes only, changes none, and never uses the address that the client chose where a name allows the
connection. A connection is the first name's for as long as it lives: everything after its first head goes to that
name's server, whatever it says. Only where a policy puts something into a host's requests does TLS end here
(`injection`).
"""

import asyncio
import contextlib
import resource
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Final, TypeVar, cast

from netpolicy import leaves
from netpolicy.injection import converse
from netpolicy.judge import Course, Judge, Ruling
from netpolicy.member import Member, serve
from netpolicy.names import name_from_wire
from netpolicy.program import Given, ProgramCode
from netpolicy.rewrite import Fields, RefusedError, placed
from netpolicy.router_side import HTTP_PORT, TLS_PORT
from netpolicy.sniff import NoNameError, read_head, read_hello
from netpolicy.tally import Decided
from netpolicy.tls_end import TlsEnd
from netpolicy.upstream import UnresolvedError
from netpolicy.verdict import Reason
from netpolicy.verified import Server as VerifiedServer
from netpolicy.verified import open_verified

_SNIFF_SECONDS: Final = 10.0
"""How long a client may take for its first head or hello, however slowly it sends."""
_DIAL_SECONDS: Final = 5.0
_DIALS: Final = 3
_OTHER_FILES: Final = 64
_BUFFER_BYTES: Final = 64 * 1024
_SNIFFED_BYTES: Final = 17_000
_ORIGINAL_DESTINATION: Final = 80
_IDLE_PROBE_SECONDS: Final = 60
_BACKLOG: Final = 1024
_INJECTED_PORT: Final = 443
_RESET: Final = struct.pack("ii", 1, 0)


T = TypeVar("T")
Read = Callable[[bytes, int], tuple[str, bool] | None]
"""How a port's connections say their name: of the first bytes and the port that was dialled."""


def read_http(data: bytes, port: int) -> tuple[str, bool] | None:
    """Return the Host of a request; its port is the one that was dialled, or there is something else meant."""
    head = read_head(data)
    if head is None:
        return None
    if head.port is not None and head.port != port:
        raise NoNameError("name_mismatch")
    return head.name, False


def read_tls(data: bytes, _: int) -> tuple[str, bool] | None:
    """Return the server name of a hello, and whether it hides another."""
    hello = read_hello(data)
    return None if hello is None else (hello.name, hello.encrypted)


_FLAWS: Final = frozenset({"no_name", "name_mismatch", "ech_refused"})


class Proxy:
    """All connections, by sandbox."""

    def __init__(self, member: Member, group: asyncio.TaskGroup) -> None:
        self.member = member
        self.group = group
        self.leaves = leaves.Leaves()
        self.open: dict[str, set[Client]] = {}
        self.count = 0
        # Two descriptors each, and some for the rest.
        self._most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES) // 2
        member.changed = self.judge_again

    def admit(self, client: "Client") -> bool:
        """Take a new connection in, if its sandbox may have another."""
        judge = self.member.judges.get(client.sandbox)
        if judge is None:
            return False
        own = self.open.setdefault(client.sandbox, set())
        # New ones a second are counted by the kernel, which has the policy's limit.
        if len(own) >= judge.policy.limits.connections or self.count >= self._most:
            self.note(client, Ruling(allowed=False, source="limit", reason="connection_limit"))
            return False
        own.add(client)
        self.count += 1
        return True

    def forget(self, client: "Client") -> None:
        own = self.open.get(client.sandbox)
        if own is not None and client in own:
            own.discard(client)
            self.count -= 1
            if not own:
                del self.open[client.sandbox]

    def judge_again(self, sandbox: str) -> int:
        """Close what a changed policy forbids; return how many that were."""
        judge = self.member.judges.get(sandbox)
        closed = 0
        for client in list(self.open.get(sandbox, ())):
            if judge is None or not client.may_stay(judge):
                client.reset()
                closed += 1
        return closed

    async def until_cancelled(self) -> None:
        """End every connection at the end, whatever it is doing."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for own in list(self.open.values()):
                for client in list(own):
                    client.reset()

    def note(self, client: "Client", ruling: Ruling, name: str | None = None, address: str | None = None) -> None:
        self.member.tally.add(
            Decided(
                sandbox=client.sandbox,
                ruling=ruling,
                name=name,
                address=address or str(client.address),
                port=client.port,
                protocol="tcp",
            )
        )


class Client(asyncio.Protocol):
    """The sandbox's side of a connection: first its name is read, then it is spliced to a server."""

    __slots__ = ("_buffer", "_deadline", "_dial", "_proxy", "_read", "address", "course", "dialled", "end", "ended",
                 "port", "sandbox", "server", "transport", "verified")  # fmt: skip

    def __init__(self, proxy: Proxy, read: Read) -> None:
        self._proxy = proxy
        self._read = read
        self._buffer = bytearray()
        self._deadline: asyncio.TimerHandle | None = None
        self._dial: asyncio.Task[None] | None = None
        self.ended = False
        self.transport: asyncio.Transport = asyncio.Transport()
        self.server: Server | None = None
        self.sandbox = ""
        self.address = IPv4Address(0)
        self.port = 0
        self.course: Course | None = None
        self.dialled: IPv4Address | None = None
        self.end: TlsEnd | None = None
        """Where TLS ends here."""
        self.verified: VerifiedServer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.sandbox = transport.get_extra_info("peername")[0]
        try:
            self.address, self.port = original_destination(transport.get_extra_info("socket"))
        except OSError:
            self.reset()
            return
        if not self._proxy.admit(self):
            self.reset()
            return
        _tune(self.transport)
        self._deadline = asyncio.get_running_loop().call_later(_SNIFF_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self.server is not None:
            self.server.transport.write(data)
            return
        if self.end is not None:
            self.end.feed(data)
            return
        self._buffer += data
        if self._dial is not None:
            self.transport.pause_reading()
            return
        if self.course is None:
            self._sniff()

    def eof_received(self) -> bool:
        self.ended = True
        if self.server is not None:
            _pass_end(self.server.transport)
            return not self.server.ended
        if self.end is not None:
            self.end.feed_end()
            return False  # nobody halves a connection with TLS: its client has gone, and the server is to know
        if self.course is None:
            self._settle(None, "no_name")
        return self._dial is not None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._dial is not None:
            self._dial.cancel()
        if self.server is not None:
            _finish(self.server.transport, abruptly=exc is not None)
        self._proxy.forget(self)

    def pause_writing(self) -> None:
        if self.server is not None:
            self.server.transport.pause_reading()
        if self.end is not None:
            self.end.pause()

    def resume_writing(self) -> None:
        if self.server is not None:
            self.server.transport.resume_reading()
        if self.end is not None:
            self.end.resume()

    def reset(self) -> None:
        """End both sides at once."""
        if self.server is not None:
            _reset(self.server.transport)
        if self.verified is not None:
            self.verified.abort()
        _reset(self.transport)

    def may_stay(self, judge: Judge) -> bool:
        """Whether a policy still lets this connection be what it has become."""
        course = self.course
        if course is None:
            return True  # it is decided on when its name is known
        if course.name is None:
            return judge.of_connection(None, course.address, course.port).ruling.allowed
        now = judge.of_connection(course.name, course.address, course.port)
        if now.name != course.name or _is_injected(judge, course) is not (self.end is not None):
            return False
        return self.dialled is None or judge.of_result(course.name, self.dialled, course.port).allowed

    def _sniff(self) -> None:
        try:
            found = self._read(bytes(self._buffer), self.port)
        except NoNameError as error:
            self._settle(None, error.reason)
            return
        if found is not None:
            name, hides = found
            self._settle(name, "ech_refused" if hides else None)
        elif len(self._buffer) > _SNIFFED_BYTES:
            self._settle(None, "no_name")

    def _too_slow(self) -> None:
        if self.course is None:
            self._settle(None, "no_name")

    def _settle(self, said: str | None, flaw: str | None) -> None:
        """Decide, once."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        judge = self._proxy.member.judges.get(self.sandbox)
        if judge is None:
            self.reset()
            return
        name = None if said is None else name_from_wire(said)
        if flaw is not None and flaw not in _FLAWS:
            flaw = "no_name"
        self.course = judge.of_connection(name, self.address, self.port, flaw)
        if not self.course.ruling.allowed:
            self._proxy.note(self, self.course.ruling, name)
            self.reset()
            return
        if not _is_injected(judge, self.course):
            self._dial = self._proxy.group.create_task(self._connect(judge, self.course))
            return
        self.end = self._tls_end(self.course)
        if self.end is not None:
            self._dial = self._proxy.group.create_task(self._inject(self.end, Injected(self._proxy, self, self.course)))

    def _tls_end(self, course: Course) -> TlsEnd | None:
        """End TLS here; without what it takes, nothing is reached: least of all the host, without its header."""
        credentials = self._proxy.member.credentials.get(self.sandbox)
        context = None
        if credentials is not None and course.name is not None:
            with contextlib.suppress(leaves.UnusableError):
                context = self._proxy.leaves.context(credentials, course.name)
        if context is None:
            ruling = replace(course.ruling, allowed=False, reason=Reason.CREDENTIALS_MISSING.value)
            self._proxy.note(self, ruling, course.name)
            self.reset()
            return None
        end = TlsEnd(self.transport, context)
        end.feed(bytes(self._buffer))
        self._buffer.clear()
        return end

    async def _inject(self, end: TlsEnd, door: "Injected") -> None:
        try:
            await converse(end, door)
        except Exception:  # noqa: BLE001 - what one sandbox sends must not be the end of everybody's connections
            self.reset()
        finally:
            self._dial = None

    async def _connect(self, judge: Judge, course: Course) -> None:
        async def connect(address: IPv4Address) -> Server:
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(lambda: Server(self), str(address), course.port))[1]

        server = await self.reach(judge, course, connect)
        self._dial = None
        if server is None or self.transport.is_closing():
            self.reset()
            if server is not None:
                _reset(server.transport)
            return
        self._proxy.note(self, course.ruling, course.name, str(self.dialled))
        self.server = server
        server.transport.write(bytes(self._buffer))
        self._buffer.clear()
        if self.ended:
            server.transport.write_eof()
        self.transport.resume_reading()
        server.transport.resume_reading()

    async def reach(self, judge: Judge, course: Course, connect: Callable[[IPv4Address], Awaitable[T]]) -> T | None:
        """Connect to the first address that answers; None, after taking note of why, if there is none."""
        addresses = (course.address,)
        if course.name is not None:
            try:
                addresses, _ = await self._proxy.member.upstream.resolve(course.name)
            except UnresolvedError:
                self._proxy.note(self, Ruling(allowed=False, source="policy", reason="unresolvable"), course.name)
                return None
            if not self._all_may_be_dialled(judge, course.name, addresses):
                return None
            addresses = tuple(each for each in addresses if judge.of_result(course.name, each, course.port).allowed)
        for address in addresses[:_DIALS]:
            # Before the first packet leaves, so that a policy that changes meanwhile finds it here.
            self.dialled = address
            if not self._is_still(judge):
                return None
            try:
                async with asyncio.timeout(_DIAL_SECONDS):
                    return await connect(address)
            except (OSError, TimeoutError):
                continue
        return None

    def _all_may_be_dialled(self, judge: Judge, name: str, addresses: tuple[IPv4Address, ...]) -> bool:
        """Whether a name may be dialled: one private address among public ones is somebody's attempt."""
        rulings = [judge.of_result(name, address, self.port) for address in addresses]
        for address, ruling in zip(addresses, rulings, strict=True):
            if not ruling.allowed and (ruling.source == "platform" or not any(each.allowed for each in rulings)):
                self._proxy.note(self, ruling, name, str(address))
                return False
        return True

    def _is_still(self, judge: Judge) -> bool:
        now = self._proxy.member.judges.get(self.sandbox)
        return now is judge or (now is not None and self.may_stay(now))


class Injected:
    """The `Door` of one connection into whose requests something is put."""

    def __init__(self, proxy: Proxy, client: Client, course: Course) -> None:
        self._proxy = proxy
        self._client = client
        self._course = course
        self.host = course.name or ""

    def placed(self) -> Fields:
        judge, member = self._judge(), self._proxy.member
        return placed(judge.policy.injects(self.host), member.credentials.get(self._client.sandbox))

    async def reach(self) -> VerifiedServer:
        async def connect(address: IPv4Address) -> VerifiedServer:
            return await open_verified(str(address), self._course.port, self.host, self._proxy.member.verifying)

        server = await self._client.reach(self._judge(), self._course, connect)
        if server is None:
            raise RefusedError(502, f"{self.host} cannot be reached from here")
        self._client.verified = server
        self._proxy.note(self._client, self._course.ruling, self.host, str(self._client.dialled))
        return server

    def told(self, refused: RefusedError) -> None:
        if refused.reason is not None:
            ruling = replace(self._course.ruling, allowed=False, reason=refused.reason)
            self._proxy.note(self._client, ruling, self.host)

    def _judge(self) -> Judge:
        judge = self._proxy.member.judges.get(self._client.sandbox)
        if judge is None:
            raise ConnectionError("nobody's")
        return judge


class Server(asyncio.Protocol):
    """The other side of a connection."""

    __slots__ = ("_client", "ended", "transport")

    def __init__(self, client: Client) -> None:
        self._client = client
        self.ended = False
        self.transport: asyncio.Transport = asyncio.Transport()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()  # until the client's side knows it
        _tune(self.transport)

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        _pass_end(self._client.transport)
        return not self._client.ended

    def connection_lost(self, exc: Exception | None) -> None:
        _finish(self._client.transport, abruptly=exc is not None)

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        self._client.transport.resume_reading()


def original_destination(end: socket.socket) -> tuple[IPv4Address, int]:
    """Return where a redirected connection was going. OSError if it was not redirected."""
    data = end.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
    port, address = struct.unpack_from(">2xH4s", data)
    return IPv4Address(address), port


def _is_injected(judge: Judge, course: Course) -> bool:
    """Whether something is put into the requests of such a connection."""
    return course.name is not None and course.port == _INJECTED_PORT and bool(judge.policy.injects(course.name))


def _tune(transport: asyncio.Transport) -> None:
    transport.set_write_buffer_limits(high=_BUFFER_BYTES)
    end: Any = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_PROBE_SECONDS)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _pass_end(transport: asyncio.Transport) -> None:
    if transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()


def _finish(transport: asyncio.Transport, *, abruptly: bool) -> None:
    if abruptly:
        _reset(transport)
    else:
        transport.close()


def _reset(transport: asyncio.Transport) -> None:
    """Close so that the other side learns of it at once, and that nothing was finished."""
    if not transport.is_closing():
        end: Any = transport.get_extra_info("socket")
        if end is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def bind() -> list[socket.socket]:
    """Bind both ports."""
    leaves.warm()  # there is no file to load anything from later
    found: list[socket.socket] = []
    for port in (HTTP_PORT, TLS_PORT):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))  # noqa: S104 - the table says who reaches it
        found.append(listener)
    return found


async def run(given: Given) -> None:
    """Carry connections until sandboxd is gone."""
    http, tls = given.listeners

    async def work(member: Member) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            proxy = Proxy(member, group)
            group.create_task(proxy.until_cancelled())
            for listener, read in ((http, read_http), (tls, read_tls)):
                server = await loop.create_server(partial(Client, proxy, read), sock=listener, backlog=_BACKLOG)
                group.create_task(server.serve_forever())

    await serve(given, work)


PROGRAM = ProgramCode(bind, run)
