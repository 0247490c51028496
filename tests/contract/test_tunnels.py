"""Raw tunnels: what every `Network` keeps, and what the kernel's does with traffic from outside and from the box."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from network_world import HOST_PRIVATE, HOST_PUBLIC, PUBLIC, World
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import Network, NoPublicPortError, Slot
from sandboxd.network.fake import FakeNetwork
from sandboxd.network.kernel import KernelNetwork
from tunnel_kit import PATIENCE_SECONDS, asked, connect, datagrams, serving, silent, tunnel

PORTS = range(20_000, 20_010)
VISITOR = "192.168.7.7"
"""Outside, every address is somebody's: a private one of a client must not be what the platform denies."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(params=["fake", "kernel"])
async def make(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncGenerator[Callable[[], Network]]:
    """Makes networks of one node: each is what a start of the node agent would have."""
    with contextlib.ExitStack() as stack:
        if request.param == "fake":
            kernel: dict[int, Slot] = {}
            yield lambda: FakeNetwork(kernel=kernel, tunnel_ports=PORTS)
            return
        stack.enter_context(world)
        made: list[KernelNetwork] = []

        def network() -> Network:
            made.append(a_network(world, tmp_path))
            return made[-1]

        yield network
        for one in made:
            await one.stop(keep=True)
        await made[-1].stop(keep=False)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("netns-")] == []


def a_network(world: World, tmp_path: Path) -> KernelNetwork:
    return KernelNetwork(
        instance="tun", netns_dir=tmp_path / "netns", pool_size=1, host_netns=world.host_netns, tunnel_ports=PORTS
    )


@pytest.fixture
async def network(make: Callable[[], Network]) -> Network:
    made = make()
    await made.start({})
    return made


@pytest.fixture
async def kernel(world: World, tmp_path: Path) -> AsyncGenerator[KernelNetwork]:
    with world:
        made = a_network(world, tmp_path)
        try:
            await made.start({})
            yield made
        finally:
            await made.stop(keep=False)


async def test_a_tunnel_has_a_port_of_its_own_and_opening_is_idempotent(network: Network) -> None:
    slot = await network.acquire("a")
    one, other = await network.open_tunnel(slot, tunnel()), await network.open_tunnel(slot, tunnel("udp", letter="b"))
    assert one.public_port in PORTS
    assert other.public_port in PORTS
    assert one.public_port != other.public_port
    assert await network.open_tunnel(slot, tunnel()) == one
    assert await network.open_tunnel(slot, one) == one
    assert await network.tunnel_bytes() == {one.id: (0, 0), other.id: (0, 0)}


async def test_closed_twice_it_is_closed_and_its_port_rests(network: Network) -> None:
    slot = await network.acquire("a")
    used = [
        await network.open_tunnel(slot, tunnel(letter=letter, port=1 + at)) for at, letter in enumerate("abcdefghij")
    ]
    with pytest.raises(NoPublicPortError):
        await network.open_tunnel(slot, tunnel(letter="k", port=99))
    for _ in range(2):
        await network.close_tunnel(used[0].id)
    with pytest.raises(NoPublicPortError):
        await network.open_tunnel(slot, tunnel(letter="k", port=99))
    assert used[0].id not in await network.tunnel_bytes()


async def test_released_a_slot_takes_its_tunnels_along(network: Network) -> None:
    slot, other = await network.acquire("a"), await network.acquire("b")
    await network.open_tunnel(slot, tunnel())
    kept = await network.open_tunnel(other, tunnel(letter="b"))
    await network.release("a", slot.index)
    assert set(await network.tunnel_bytes()) == {kept.id}


async def test_a_restart_keeps_what_is_named_and_nothing_else(make: Callable[[], Network]) -> None:
    before, after = make(), make()
    await before.start({})
    slot = await before.acquire("a")
    kept = await before.open_tunnel(slot, tunnel())
    await before.open_tunnel(slot, tunnel(letter="b", port=7001))
    await before.stop(keep=True)
    await after.start({"a": slot.index}, {"a": [kept, tunnel("http", None, letter="c")], "gone": [tunnel(letter="d")]})
    assert set(await after.tunnel_bytes()) == {kept.id}
    adopted = await after.adopt("a", slot.index)
    assert await after.open_tunnel(adopted, kept) == kept


async def test_tcp_and_udp_come_through_with_the_clients_own_address(kernel: KernelNetwork, world: World) -> None:
    """Whatever the egress policy says: only replies go out this way."""
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    udp = await kernel.open_tunnel(slot, tunnel("udp", letter="b"))
    for mode in ("blocked", "open"):
        await kernel.apply_egress(slot, EgressSpec(mode=mode))
        with serving(slot.netns_path, 7000):
            for source in (PUBLIC, VISITOR):
                with await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port, source=source) as stream:
                    assert await _asked(stream, b"hello") == f"{source} hello".encode()
                with datagrams(world.internet_netns, HOST_PUBLIC, udp.public_port or 0, source=source) as packets:
                    assert await _asked(packets, b"hello") == f"{source} hello".encode()
    counted = await kernel.tunnel_bytes()
    assert all(came > 100 and went > 100 for came, went in counted.values())


async def test_from_the_box_itself_every_address_of_it_works(kernel: KernelNetwork, world: World) -> None:
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    udp = await kernel.open_tunnel(slot, tunnel("udp", letter="b"))
    assert kernel.public_address == HOST_PUBLIC
    with serving(slot.netns_path, 7000):
        for address in (HOST_PUBLIC, HOST_PRIVATE, "127.0.0.1", "127.0.0.53"):
            with await _connect(world.host_netns, address, tcp.public_port) as stream:
                assert (await _asked(stream, b"hello")).endswith(b" hello")
            with datagrams(world.host_netns, address, udp.public_port or 0) as packets:
                assert (await _asked(packets, b"hello")).endswith(b" hello")


async def test_only_the_networks_named_come_through_and_narrowing_cuts_the_others_off(
    kernel: KernelNetwork, world: World
) -> None:
    slot = await kernel.acquire("a")
    narrow = tunnel(allow_cidrs=["192.168.0.0/16", "192.168.7.0/24", "93.184.216.34/32"])
    tcp = await kernel.open_tunnel(slot, narrow)
    port = tcp.public_port or 0
    with serving(slot.netns_path, 7000):
        stays = await _connect(world.internet_netns, HOST_PUBLIC, port, source=VISITOR)
        goes = await _connect(world.internet_netns, HOST_PUBLIC, port, source=PUBLIC)
        with stays, goes:
            assert await _asked(goes, b"hello") == f"{PUBLIC} hello".encode()
            await _refused(world, port, "192.169.0.1")
            await kernel.open_tunnel(slot, tunnel(allow_cidrs=["192.168.0.0/16"]))
            assert await _silent(goes)
            assert await _asked(stays, b"still") == f"{VISITOR} still".encode()
            await _refused(world, port, PUBLIC)
            await kernel.open_tunnel(slot, tunnel())
            with await _connect(world.internet_netns, HOST_PUBLIC, port, source=PUBLIC) as again:
                assert await _asked(again, b"hello") == f"{PUBLIC} hello".encode()
            await kernel.open_tunnel(slot, tunnel(allow_cidrs=["0.0.0.0/0"]))
            assert await _asked(stays, b"still") == f"{VISITOR} still".encode()


async def test_closing_kills_what_runs_on_both_sides(kernel: KernelNetwork, world: World) -> None:
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    udp = await kernel.open_tunnel(slot, tunnel("udp", letter="b"))
    other = await kernel.open_tunnel(slot, tunnel(letter="c", port=7001))
    with serving(slot.netns_path, 7000) as server, serving(slot.netns_path, 7001):
        stream = await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port)
        packets = datagrams(world.internet_netns, HOST_PUBLIC, udp.public_port or 0)
        untouched = await _connect(world.internet_netns, HOST_PUBLIC, other.public_port)
        with stream, packets, untouched:
            for client in (stream, packets, untouched):
                await _asked(client, b"hello")
            await kernel.close_tunnel(tcp.id)
            await kernel.close_tunnel(udp.id)
            # Before anybody sends: what is tracked is gone already, on the host's side too.
            tracked = World.run_inside(world.host_netns, ["cat", "/proc/net/nf_conntrack"])
            assert f"dport={other.public_port}" in tracked
            assert f"dport={tcp.public_port}" not in tracked
            assert f"dport={udp.public_port}" not in tracked
            with pytest.raises(OSError):  # noqa: PT011 - reset, or out of reach
                await asyncio.to_thread(_pushed, server.accepted[0])
            assert await _silent(stream)
            assert await _silent(packets)
            assert await _asked(untouched, b"hello") == b"45.33.8.1 hello"


async def test_nothing_else_comes_in_and_nothing_begins_outwards(kernel: KernelNetwork, world: World) -> None:
    """Neither other ports of the sandbox, nor the guest's, nor a sandbox that sends from its tunnel's own port."""
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    udp = await kernel.open_tunnel(slot, tunnel("udp", letter="b"))
    with serving(slot.netns_path, 7000), serving(slot.netns_path, 7001):
        for port in set(PORTS) - {tcp.public_port, udp.public_port} | {7000, 7001}:
            await _refused(world, port, "")
            with datagrams(world.internet_netns, HOST_PUBLIC, port) as packets:
                assert await _silent(packets)
        await _refused(world, udp.public_port or 0, "")
        visitor = datagrams(world.internet_netns, HOST_PUBLIC, udp.public_port or 0, source=PUBLIC)
        with visitor:
            await _asked(visitor, b"hello")
            before = len(world.heard)

            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    for port in (7002, 53):
                        with contextlib.suppress(OSError):
                            own.sendto(b"out", (PUBLIC, port))
                with socket.socket() as stream, contextlib.suppress(OSError):
                    stream.settimeout(1)
                    stream.connect((PUBLIC, 80))

            await asyncio.to_thread(World.do, slot.netns_path, send)
            assert world.heard[before:] == []


async def test_a_restart_of_the_agent_breaks_no_tunnel(world: World, tmp_path: Path) -> None:
    with world:
        before, after = a_network(world, tmp_path), a_network(world, tmp_path)
        try:
            await before.start({})
            slot = await before.acquire("a")
            kept = await before.open_tunnel(slot, tunnel())
            dropped = await before.open_tunnel(slot, tunnel(letter="b", port=7001))
            with serving(slot.netns_path, 7000), serving(slot.netns_path, 7001):
                stays = await _connect(world.internet_netns, HOST_PUBLIC, kept.public_port)
                goes = await _connect(world.internet_netns, HOST_PUBLIC, dropped.public_port)
                with stays, goes:
                    await _asked(goes, b"hello")
                    await before.stop(keep=True)
                    assert await _asked(stays, b"while it is away") == b"45.33.8.1 while it is away"
                    await after.start({"a": slot.index}, {"a": [kept]})
                    assert await _asked(stays, b"after") == b"45.33.8.1 after"
                    assert await _silent(goes)
                    await after.close_tunnel(kept.id)
                    assert await _silent(stays)
        finally:
            await before.stop(keep=True)
            await after.stop(keep=False)


async def test_resting_ports_outlive_a_restart(world: World, tmp_path: Path) -> None:
    with world:
        before, after = a_network(world, tmp_path), a_network(world, tmp_path)
        try:
            await before.start({})
            slot = await before.acquire("a")
            for at, letter in enumerate("abcdefghij"):
                await before.open_tunnel(slot, tunnel(letter=letter, port=1 + at))
                await before.close_tunnel(f"tun{letter * 20}")
            await before.stop(keep=True)
            await after.start({"a": slot.index})
            slot = await after.adopt("a", slot.index)
            with pytest.raises(NoPublicPortError):
                await after.open_tunnel(slot, tunnel())
        finally:
            await before.stop(keep=True)
            await after.stop(keep=False)


async def test_a_port_that_a_program_of_the_host_has_is_not_taken(kernel: KernelNetwork, world: World) -> None:
    slot = await kernel.acquire("a")
    with contextlib.ExitStack() as stack:
        for port in PORTS[:-1]:
            kind = socket.SOCK_STREAM if port % 2 else socket.SOCK_DGRAM
            taken = stack.enter_context(World.do(world.host_netns, lambda kind=kind: socket.socket(type=kind)))
            taken.bind(("", port))
        assert (await kernel.open_tunnel(slot, tunnel())).public_port == PORTS[-1]
        with pytest.raises(NoPublicPortError):
            await kernel.open_tunnel(slot, tunnel(letter="b", port=7001))
    with pytest.raises(OSError, match="in use"), World.do(world.host_netns, socket.socket) as thief:
        thief.bind(("", PORTS[-1]))


async def test_flushed_rules_come_back_with_the_tunnels(kernel: KernelNetwork, world: World) -> None:
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    with serving(slot.netns_path, 7000):
        World.nft(world.host_netns, "flush ruleset\n")
        await _refused(world, tcp.public_port or 0, "")
        await kernel.repair()
        with await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port) as stream:
            await _asked(stream, b"hello")
        World.nft(world.host_netns, "flush set inet sandlot_tun tunnels\n")
        await kernel.repair()
        with await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port) as stream:
            await _asked(stream, b"hello")
        World.nft(world.host_netns, "flush ruleset\n")
        # An opening puts them back as well.
        other = await kernel.open_tunnel(slot, tunnel(letter="b", port=7000 + 0, kind="udp"))
        with datagrams(world.internet_netns, HOST_PUBLIC, other.public_port or 0) as packets:
            await _asked(packets, b"hello")


async def test_a_firewall_that_drops_what_it_forwards_lets_tunnels_through(kernel: KernelNetwork, world: World) -> None:
    slot = await kernel.acquire("a")
    World.run_inside(world.host_netns, ["iptables", "-P", "FORWARD", "DROP"])
    tcp = await kernel.open_tunnel(slot, tunnel())
    await kernel.repair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(slot.netns_path, 7000))
        stream = stack.enter_context(await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port))
        await _asked(stream, b"hello")


async def test_segments_fit_the_way_they_take(kernel: KernelNetwork, world: World) -> None:
    """The uplink's MTU is 1400: more than one segment in each direction comes whole."""
    slot = await kernel.acquire("a")
    tcp = await kernel.open_tunnel(slot, tunnel())
    udp = await kernel.open_tunnel(slot, tunnel("udp", letter="b"))
    with serving(slot.netns_path, 7000):
        with await _connect(world.internet_netns, HOST_PUBLIC, tcp.public_port) as stream:
            stream.settimeout(PATIENCE_SECONDS)
            await asyncio.to_thread(stream.sendall, b"x" * 60_000)
            got = b""
            while got.count(b"x") < 60_000:
                got += await asyncio.to_thread(stream.recv, 65536)
        with datagrams(world.internet_netns, HOST_PUBLIC, udp.public_port or 0) as packets:
            assert len(await _asked(packets, b"y" * 4000)) > 4000


async def _connect(pin: Path, address: str, port: int | None, *, source: str = "") -> socket.socket:
    return await asyncio.to_thread(connect, pin, address, port or 0, source=source)


async def _asked(client: socket.socket, data: bytes) -> bytes:
    return await asyncio.to_thread(asked, client, data)


async def _silent(client: socket.socket) -> bool:
    return await asyncio.to_thread(silent, client, b"anybody?")


async def _refused(world: World, port: int, source: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - refused, reset or silent: in no case connected
        await asyncio.to_thread(connect, world.internet_netns, HOST_PUBLIC, port, source=source, timeout=0.3)


def _pushed(connection: socket.socket) -> None:
    """Send into a connection until it is found dead."""
    connection.settimeout(PATIENCE_SECONDS)
    while True:
        connection.sendall(b"x")
        if not connection.recv(100):
            raise ConnectionResetError
