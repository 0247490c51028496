"""From inside a slot, with the real programs and the real table: no trick with names reaches what no rule allows."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Callable, Generator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from names_kit import Zone, ZoneRelay, wire_name
from netpolicy import dns
from netpolicy.nflog import RefusalLog
from network_world import PUBLIC, World
from sandboxd.cgroups import Cgroups
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import Slot
from sandboxd.network.births import USERS, RouterBirth
from sandboxd.network.kernel import KernelNetwork
from sandboxd.network.names import NamePrograms
from sandboxd.network.refusals import told

PKG, OTHER, EVIL = PUBLIC, "93.184.216.35", "203.1.113.66"
INSTANCE = "hnames"
_PATIENCE_SECONDS = 10


class Scene:
    """One sandbox's slot; the programs; an internet that answers on every address."""

    def __init__(self, world: World, network: KernelNetwork, names: NamePrograms, cgroups: Cgroups) -> None:
        self.world = world
        self.network = network
        self.names = names
        self.cgroups = cgroups
        self.slot: Slot
        self.zone = Zone(ttl=30)
        self.decisions: list[dict[str, Any]] = []

    async def allow(self, *rules: str, **more: Any) -> int:
        return await self.network.apply_egress(self.slot, EgressSpec(mode="allowlist", allow=list(rules), **more))

    async def inside(self, job: Callable[[], Any]) -> Any:
        """Do something where the sandbox's programs are."""
        return await asyncio.to_thread(World.do, self.slot.netns_path, job)

    async def lookup(self, name: bytes | str, server: str = "1.1.1.1", kind: int = dns.A) -> tuple[int, list[str]]:
        wire = wire_name(name) if isinstance(name, str) else name
        query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + wire + struct.pack(">HH", kind, 1)

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.settimeout(_PATIENCE_SECONDS)
                end.connect((server, 53))
                end.send(query)
                return end.recv(4096)

        answer = await self.inside(ask)
        count = struct.unpack_from(">H", answer, 6)[0]
        records = [answer[len(answer) - 16 * (count - place) :][:16] for place in range(count)]
        return answer[3] & 0xF, [str(IPv4Address(record[12:16])) for record in records]

    async def say(self, address: str, port: int, data: bytes) -> bytes | str:
        """Connect to an address, send, and return what comes back, or how it was refused."""

        def talk() -> bytes | str:
            try:
                with socket.create_connection((address, port), timeout=_PATIENCE_SECONDS) as end:
                    end.sendall(data)
                    return end.recv(65536) or "closed"
            except OSError as error:
                return type(error).__name__

        return await self.inside(talk)

    def dialled(self) -> set[str]:
        """Return the addresses whose servers have heard anything."""
        return {address for address, _, _ in self.world.heard}

    async def decided(self, **wanted: Any) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                for row in self.decisions:
                    if all(row[key] == value for key, value in wanted.items()):
                        return row
                await asyncio.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
async def scene(world: World, tmp_path: Path) -> AsyncGenerator[Scene]:
    netns_dir = tmp_path / "netns"
    cgroups = Cgroups(INSTANCE)
    cgroups.set_up(0)
    zone = Zone(ttl=30)
    births = {
        name: RouterBirth(name, cgroups=cgroups, router_pin=netns_dir / "router", empty=tmp_path / "empty")
        for name in USERS
    }
    names = NamePrograms(dict(births), ZoneRelay(zone))
    network = KernelNetwork(instance="hn", netns_dir=netns_dir, pool_size=2, host_netns=world.host_netns, names=names)
    made = Scene(world, network, names, cgroups)
    made.zone = zone
    zone.names |= {"pkg.test": [PKG], "other.test": [OTHER], "evil.test": [EVIL], "db.test": [OTHER]}
    names.learn = network.learn
    names.decided = lambda via, rows: made.decisions.extend(row | {"via": via} for row in rows)
    try:
        await network.start({})
        made.slot = await network.acquire("a")
        refusals = told(
            lambda: network.in_router(RefusalLog),
            lambda address: (names.policy_of(address), names.platform),
            names.decided,
        )
        async with refusals, names.opened():
            for program in names.programs.values():
                await program.up.wait()
            yield made
    finally:
        await network.stop(keep=False)
        await cgroups.remove_all()


def get(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_a_name_is_reached_by_name_and_by_nothing_else(scene: Scene) -> None:
    await scene.allow("pkg.test")
    assert await scene.lookup("pkg.test") == (dns.NO_ERROR, [PKG])
    assert await scene.say(PKG, 80, get("pkg.test")) == get("pkg.test")
    assert await scene.say(PKG, 443, hello("pkg.test")) != "ConnectionResetError"
    # whatever address a client has it from: a hosts file, an own resolver, a guess
    assert await scene.say(EVIL, 80, get("pkg.test")) == get("pkg.test")
    assert scene.dialled() == {PKG}
    # by address it is closed on every port
    for port in (22, 8080):
        assert await scene.say(PKG, port, get("pkg.test")) in {"ConnectionRefusedError", "OSError"}
    row = await scene.decided(via="kernel", port=8080)
    assert (row["verdict"], row["rule"], row["reason"]) == ("deny", "mode_allowlist", "not_allowed")


@pytest.mark.parametrize(
    ("port", "data"),
    [
        (80, get("evil.test")),
        (80, get("pkg.test.evil.test")),
        (80, get("xpkg.test")),
        (80, get("pkg.test\0.evil.test")),
        (80, get("127.0.0.1")),
        (80, b"GET http://evil.test/ HTTP/1.1\r\nHost: pkg.test\r\n\r\n"),
        (80, b"GET / HTTP/1.1\r\nHost: pkg.test\r\nHost: evil.test\r\n\r\n"),
        (80, b"SSH-2.0-x\r\n"),
        (443, hello("evil.test")),
        (443, hello("pkg.test.evil.test")),
        (443, hello(None)),
        (443, b"GET / HTTP/1.1\r\nHost: pkg.test\r\n\r\n"),
    ],
)
async def test_a_lie_reaches_nobody(scene: Scene, port: int, data: bytes) -> None:
    await scene.allow("pkg.test")
    assert await scene.say(EVIL, port, data) == "ConnectionResetError"
    assert scene.dialled() == set()
    assert (await scene.decided(via="proxy", verdict="deny"))["port"] == port


@pytest.mark.parametrize("server", ["1.1.1.1", "8.8.8.8", EVIL, "peer"])
async def test_every_resolver_is_ours(scene: Scene, server: str) -> None:
    await scene.allow("pkg.test")
    server = scene.slot.peer if server == "peer" else server
    assert await scene.lookup("pkg.test", server) == (dns.NO_ERROR, [PKG])
    data = "c2VjcmV0.x.evil.test"
    assert await scene.lookup(data, server) == (dns.NO_SUCH_NAME, [])
    assert await scene.lookup(data, server, kind=16) == (dns.NO_SUCH_NAME, [])
    assert scene.zone.asked == ["pkg.test"]
    assert scene.dialled() == set()
    assert (await scene.decided(via="resolver", verdict="deny", name=data.lower()))["reason"] == "not_allowed"


@pytest.mark.parametrize("port", [53, 853])
async def test_no_other_dns_leaves(scene: Scene, port: int) -> None:
    await scene.allow("pkg.test", f"{EVIL}:53/udp", f"{EVIL}:853", EVIL)
    await scene.say(EVIL, port, b"\0\x05hello")
    assert scene.dialled() == set()


async def test_quic_is_refused_at_once(scene: Scene) -> None:
    await scene.allow("pkg.test")

    def knock() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.settimeout(_PATIENCE_SECONDS)
            end.connect((PKG, 443))
            end.send(b"\xc0hello")
            try:
                return end.recv(100).decode()
            except OSError as error:
                return type(error).__name__

    assert await scene.inside(knock) != "TimeoutError"
    assert scene.dialled() == set()


@pytest.mark.parametrize("inside", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "172.20.0.5", "45.33.8.2"])
async def test_a_name_that_leads_inside_leads_nowhere(scene: Scene, inside: str) -> None:
    """Rebinding, metadata, the node by its name, the router's own loopback."""
    scene.zone.names["pkg.test"] = [inside]
    await scene.allow("pkg.test", "pkg.test:8080")
    assert await scene.lookup("pkg.test") == (dns.NO_SUCH_NAME, [])
    assert await scene.say(EVIL, 80, get("pkg.test")) == "ConnectionResetError"
    assert scene.dialled() == set()
    assert (await scene.decided(via="proxy", verdict="deny"))["source"] == "platform"


async def test_the_programs_are_no_way_to_the_router(scene: Scene) -> None:
    await scene.allow("pkg.test")
    for port in (15053, 15080, 15443):
        for address in (scene.slot.peer, PKG):
            assert await scene.say(address, port, get("pkg.test")) in {"ConnectionRefusedError", "OSError"}
    assert scene.dialled() == set()


async def test_another_port_is_open_only_where_the_name_led(scene: Scene) -> None:
    await scene.allow("db.test:8080")
    assert await scene.say(OTHER, 8080, b"too early") in {"ConnectionRefusedError", "OSError"}
    assert await scene.lookup("db.test") == (dns.NO_ERROR, [OTHER])
    assert await scene.say(OTHER, 8080, b"now") == b"now"
    assert await scene.say(OTHER, 22, b"not there") in {"ConnectionRefusedError", "OSError"}
    assert await scene.say(OTHER, 80, get("db.test")) == "ConnectionResetError"  # by that name, only 8080
    assert scene.dialled() == {OTHER}


async def test_what_an_update_forbids_is_dead_when_it_returns(scene: Scene) -> None:
    await scene.allow("pkg.test", "other.test")

    def connect(host: str) -> socket.socket:
        end = socket.create_connection((EVIL, 80), timeout=_PATIENCE_SECONDS)
        end.sendall(get(host))
        assert end.recv(1000) == get(host)
        return end

    with (
        await scene.inside(lambda: connect("pkg.test")) as kept,
        await scene.inside(lambda: connect("other.test")) as dropped,
    ):
        assert await scene.allow("pkg.test") >= 1
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(_ping, dropped)
        assert await asyncio.to_thread(_ping, kept) == b"ping"


def _ping(end: socket.socket) -> bytes:
    end.sendall(b"ping")
    answer = end.recv(100)
    if not answer:
        raise ConnectionResetError
    return answer


@pytest.mark.parametrize("name", ["proxy", "resolver"])
async def test_a_killed_program_closes_names_and_comes_back_with_its_policies(scene: Scene, name: str) -> None:
    await scene.allow("pkg.test")
    assert await scene.say(EVIL, 80, get("pkg.test")) == get("pkg.test")
    program = scene.names.programs[name]
    starts = program.starts
    for pid in scene.cgroups._tree.members(f"sandlot-{INSTANCE}/programs/{name}"):
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while program.starts == starts or not program.up.is_set():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert await scene.lookup("evil.test") == (dns.NO_SUCH_NAME, [])
    assert await scene.lookup("pkg.test") == (dns.NO_ERROR, [PKG])
    assert await scene.say(EVIL, 80, get("evil.test")) == "ConnectionResetError"
    assert await scene.say(EVIL, 80, get("pkg.test")) == get("pkg.test")
    assert scene.dialled() == {PKG}


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def test_the_programs_have_nothing(scene: Scene) -> None:
    for name, user in USERS.items():
        (pid,) = scene.cgroups._tree.members(f"sandlot-{INSTANCE}/programs/{name}")
        status = _status(pid)
        assert status["Uid"].split() == [str(user)] * 4
        assert status["Gid"].split() == [str(user)] * 4
        assert status["Groups"] == ""
        assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert list(Path(f"/proc/{pid}/root").iterdir()) == []
        assert "SANDLOT" not in Path(f"/proc/{pid}/environ").read_text()
