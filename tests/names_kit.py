"""The programs that decide names, in this process on loopback: sandboxes are 127.0.0.x, upstream answers are ours."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from netpolicy import dns
from netpolicy.credentials import Credentials
from netpolicy.platform import Platform
from netpolicy.policy import Policy, parse_policy
from netpolicy.program import Given
from sandboxd.network.names import Learned, NamePrograms
from sandboxd.network.relay import Relay

LOOPBACK = Platform(exceptions=(IPv4Network("127.0.0.0/8"),))
"""So that a test's own servers may be dialled."""


@dataclass
class Zone:
    """What the upstream resolver knows, and what it was asked."""

    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    ttl: int = 30
    asked: list[str] = field(default_factory=list[str])
    silent: bool = False

    def answer(self, query: bytes) -> bytes | None:
        question = dns.read_question(query)
        self.asked.append(question.name)
        if self.silent:
            return None
        records, owner = b"", question.name
        count = 0
        while owner in self.aliases:
            records += record(owner, dns.CNAME, self.ttl, wire_name(self.aliases[owner]))
            owner, count = self.aliases[owner], count + 1
        for address in self.names.get(owner, []):
            records += record(owner, dns.A, self.ttl, IPv4Address(address).packed)
            count += 1
        code = dns.NO_ERROR if count else dns.NO_SUCH_NAME
        head = struct.pack(">6H", question.number, 0x8180 | code, 1, count, 0, 0)
        return head + question.wire + records


@contextlib.contextmanager
def answering(zone: Zone, address: str) -> Generator[None]:
    """Be the resolver of this host for a node that is told so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind((address, 53))
        end.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    query, peer = end.recvfrom(4096)
                    answer = zone.answer(query)
                    if answer is not None:
                        end.sendto(answer, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def wire_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def record(name: str, kind: int, ttl: int, data: bytes) -> bytes:
    return wire_name(name) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


class _InProcess:
    """A `Running` that is a task here."""

    def __init__(self, run: Callable[[Given], Any], listeners: list[socket.socket], group: asyncio.TaskGroup) -> None:
        self.channel, channel = socket.socketpair()
        self.upstream, upstream = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._task = group.create_task(run(Given(channel, upstream, listeners)))

    async def ended(self) -> str:
        await asyncio.wait([self._task])
        return "over"

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def close(self) -> None:
        self.channel.close()
        self.upstream.close()


class InProcessBirth:
    """`Birth` of a task on sockets of loopback; `ports` are where it listens."""

    def __init__(self, run: Callable[[Given], Any], kinds: Sequence[int], group: asyncio.TaskGroup) -> None:
        self._run = run
        self._group = group
        self._kinds = kinds
        self.ports: list[int] = []
        self.running: _InProcess | None = None

    async def start(self) -> _InProcess:
        listeners: list[socket.socket] = []
        self.ports = []
        for kind in self._kinds:
            listener = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            listener.bind(("0.0.0.0", 0))  # noqa: S104 - sandboxes are other addresses of loopback
            self.ports.append(listener.getsockname()[1])
            listeners.append(listener)
        self.running = _InProcess(self._run, listeners, self._group)
        return self.running

    async def clear(self) -> None:
        pass


class ZoneRelay(Relay):
    """Asks the zone instead of a server."""

    def __init__(self, zone: Zone) -> None:
        super().__init__(lambda: ["127.0.0.1"], lambda kind: socket.socket(socket.AF_INET, kind))
        self._zone = zone

    async def _answer(self, server: str, question: bytes) -> bytes:  # noqa: ARG002
        answer = self._zone.answer(question)
        return b"" if answer is None else answer


@dataclass
class Stand:
    names: NamePrograms
    births: dict[str, InProcessBirth]
    zone: Zone
    learned: list[Learned]
    decisions: list[dict[str, Any]]

    async def allow(self, sandbox: str, *rules: str, deny: tuple[str, ...] = (), mode: str = "allowlist") -> int:
        document: dict[str, Any] = {"mode": mode, "deny": list(deny)}
        return await self.apply(sandbox, parse_policy(document | ({"allow": list(rules)} if rules else {})))

    async def apply(self, sandbox: str, policy: Policy | None, credentials: Credentials | None = None) -> int:
        return await self.names.apply(sandbox, policy, credentials)

    async def back_again(self, name: str) -> None:
        """Kill a program and wait until it is back."""
        program, running = self.names.programs[name], self.births[name].running
        assert running is not None
        starts = program.starts
        await running.kill()
        while program.starts == starts or not program.up.is_set():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)

    async def decided(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a decision with these members."""
        while True:
            for row in self.decisions:
                if all(row[key] == value for key, value in wanted.items()):
                    return row
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def stand(
    programs: Mapping[str, tuple[Callable[[Given], Any], Sequence[int]]],
    platform: Platform = LOOPBACK,
    authorities: str = "",
) -> AsyncGenerator[Stand]:
    zone, learned, decisions = Zone(), list[Learned](), list[dict[str, Any]]()

    async def learn(sandbox: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        learned.append(Learned(sandbox=sandbox, name=name, addresses=tuple(addresses), seconds=seconds))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        births = {name: InProcessBirth(run, kinds, group) for name, (run, kinds) in programs.items()}
        names = NamePrograms(dict(births), ZoneRelay(zone), authorities)
        names.learn = learn
        names.decided = lambda program, rows: decisions.extend(row | {"via": program} for row in rows)
        await names.set_platform(platform)
        async with names.opened():
            for program in names.programs.values():
                await program.up.wait()
            yield Stand(names, births, zone, learned, decisions)
