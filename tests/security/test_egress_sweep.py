"""From inside a slot: nothing of the node, the neighbours or private networks answers, whatever the policy."""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Literal

import pytest

from egress_targets import METADATA, Target, answered, forbidden_targets, probe_argv
from network_world import HOST_PRIVATE, HOST_PUBLIC, PUBLIC, World
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import Slot
from sandboxd.network.kernel import KernelNetwork
from sandboxd.network.links import Links

INSTANCE = "hd"
OPEN = EgressSpec(mode="open")
BLOCKED = EgressSpec(mode="blocked")
_PATIENCE_SECONDS = 10
_PORTS = (22, 25, 53, 80, 443, 8080)
_FORWARD_ANYTHING = """
flush chain inet sandlot forward
add rule inet sandlot forward accept
"""
_HOST_LETS_IN = f"""
flush chain inet sandlot_{INSTANCE} first
flush chain inet sandlot_{INSTANCE} input
"""


class Scene:
    """Two sandboxes' slots on one node, and a world that would answer anything."""

    def __init__(self, world: World, network: KernelNetwork, netns_dir: Path) -> None:
        self.world = world
        self.network = network
        self.router = netns_dir / "router"
        self.slot: Slot
        self.other: Slot

    async def sweep(self, targets: list[Target]) -> list[Target]:
        argv = probe_argv(targets, python=sys.executable, patience_seconds=1)
        return answered(await asyncio.to_thread(World.run_inside, self.slot.netns_path, argv))

    async def socket(self, kind: Callable[[], socket.socket]) -> socket.socket:
        made = await asyncio.to_thread(World.do, self.slot.netns_path, kind)
        made.settimeout(_PATIENCE_SECONDS)
        return made

    async def heard_in_the_open(self, mark: bytes) -> list[tuple[str, str, bytes]]:
        """Return what the internet has heard before a datagram that is certain to arrive."""
        with await self.socket(_datagram) as sender:
            sender.sendto(mark, (PUBLIC, 80))
            assert await asyncio.to_thread(sender.recv, 100) == mark
        return [entry for entry in self.world.heard if entry[2] != mark]

    def own_addresses(self) -> list[str]:
        """Every address of the node, its router and the other slot."""

        def all_addresses() -> list[str]:
            with Links() as links:
                return [str(address.ip) for address in links.addresses()]

        found = World.do(self.world.host_netns, all_addresses) + World.do(self.router, all_addresses)
        return sorted({*found, self.other.address, self.other.peer} - {"127.0.0.1"})


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
async def scene(world: World, tmp_path: Path) -> AsyncGenerator[Scene]:
    netns_dir = tmp_path / "netns"
    network = KernelNetwork(instance=INSTANCE, netns_dir=netns_dir, pool_size=2, host_netns=world.host_netns)
    try:
        await network.start({})
        made = Scene(world, network, netns_dir)
        made.slot, made.other = await network.acquire("a"), await network.acquire("b")
        await network.apply_egress(made.other, OPEN)
        # The other sandbox and the router listen everywhere: silence is the firewall's doing, not theirs.
        with world.serving(made.other.netns_path, _PORTS), world.serving(made.router, _PORTS):
            yield made
    finally:
        await network.stop(keep=False)


@pytest.mark.parametrize("mode", ["open", "blocked"])
async def test_nothing_forbidden_answers(scene: Scene, mode: Literal["open", "blocked"]) -> None:
    await scene.network.apply_egress(scene.slot, EgressSpec(mode=mode))
    own = scene.own_addresses()
    assert {HOST_PUBLIC, HOST_PRIVATE, scene.other.address, scene.other.peer, scene.slot.peer} <= set(own)

    targets = forbidden_targets(own, public=PUBLIC)
    assert await scene.sweep(targets) == []

    await scene.network.apply_egress(scene.slot, OPEN)
    assert await scene.heard_in_the_open(b"after the sweep") == []


async def test_open_reaches_the_public_through_nat(scene: Scene) -> None:
    await scene.network.apply_egress(scene.slot, OPEN)
    public = [Target(PUBLIC, 80), Target(PUBLIC, 443), Target(PUBLIC, 53, "udp"), Target("1.1.1.1", 443)]
    assert await scene.sweep(public) == public
    assert {source for _, source, _ in scene.world.heard} == {HOST_PUBLIC}


async def test_blocked_reaches_nothing_and_is_told_at_once(scene: Scene) -> None:
    assert await scene.sweep([Target(PUBLIC, 80), Target(PUBLIC, 53, "udp")]) == []
    with await scene.socket(_stream) as refused, pytest.raises(OSError, match="No route to host"):
        await asyncio.to_thread(refused.connect, (PUBLIC, 80))


async def test_a_new_slot_is_blocked(scene: Scene) -> None:
    await scene.network.apply_egress(scene.slot, OPEN)
    await scene.network.release("a", scene.slot.index)
    for name in ("c", "d", "e"):
        scene.slot = await scene.network.acquire(name)
        assert await scene.sweep([Target(PUBLIC, 80)]) == []


@pytest.mark.parametrize("source", ["other", "peer", "router", HOST_PUBLIC, PUBLIC, "8.8.4.4", "127.0.0.1"])
async def test_a_forged_source_is_dropped(scene: Scene, source: str) -> None:
    await scene.network.apply_egress(scene.slot, OPEN)
    forged = {
        "other": scene.other.address,
        "peer": scene.slot.peer,
        "router": scene.other.peer,
    }.get(source, source)
    with await scene.socket(_raw) as sender:
        sender.sendto(_datagram_packet(forged, PUBLIC, 80, b"forged"), (PUBLIC, 0))
        # The same by hand with its own address arrives, so it is the address that matters.
        sender.sendto(_datagram_packet(scene.slot.address, PUBLIC, 80, b"honest"), (PUBLIC, 0))
    assert [data for _, _, data in await scene.heard_in_the_open(b"after")] == [b"honest"]


async def test_ipv6_frames_are_dropped(scene: Scene) -> None:
    await scene.network.apply_egress(scene.slot, OPEN)
    with await scene.socket(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind(("eth0", 0))
        header = struct.pack(">IHBB16s16s", 6 << 28, 8, 17, 64, bytes.fromhex("fe80" + "0" * 28), bytes(15) + b"\1")
        broadcast = b"\xff" * 6 + sender.getsockname()[4]
        sender.send(broadcast + struct.pack(">H", 0x86DD) + header + struct.pack(">4H", 9, 80, 8, 0))
        question = struct.pack(">HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, sender.getsockname()[4], *_arp_addresses(scene))
        sender.settimeout(_PATIENCE_SECONDS)
        listener = await scene.socket(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))
        with listener:
            sender.send(broadcast + struct.pack(">H", 0x0806) + question)
            assert await scene.heard_in_the_open(b"after") == []
            assert _arp_answers(listener) == []


async def test_closing_kills_an_established_flow_for_good(scene: Scene) -> None:
    await scene.network.apply_egress(scene.slot, OPEN)
    with await scene.socket(_stream) as flow, await scene.socket(_datagram) as datagrams:
        await asyncio.to_thread(flow.connect, (PUBLIC, 80))
        flow.sendall(b"before")
        assert await asyncio.to_thread(flow.recv, 100) == b"before"
        datagrams.sendto(b"before too", (PUBLIC, 80))
        assert await asyncio.to_thread(datagrams.recv, 100) == b"before too"

        await scene.network.apply_egress(scene.slot, BLOCKED)
        flow.sendall(b"late")
        with contextlib.suppress(OSError):
            datagrams.sendto(b"late too", (PUBLIC, 80))
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(flow.recv, 100)

        await scene.network.apply_egress(scene.slot, OPEN)
        with pytest.raises(OSError, match="Broken pipe"):
            flow.sendall(b"later")
    heard = [data for _, _, data in await scene.heard_in_the_open(b"after")]
    assert heard == [b"before", b"before too"]


async def test_closing_is_felt_from_the_far_side_too(scene: Scene) -> None:
    """What the internet sends on an old flow does not come in any more, even after opening again."""
    await scene.network.apply_egress(scene.slot, OPEN)
    with await scene.socket(_datagram) as receiver:
        receiver.sendto(b"hello", (PUBLIC, 80))
        assert await asyncio.to_thread(receiver.recv, 100) == b"hello"
        port = receiver.getsockname()[1]

        def send_from_afar(data: bytes) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                far.bind((PUBLIC, 80))
                far.sendto(data, (HOST_PUBLIC, port))

        await asyncio.to_thread(World.do, scene.world.internet_netns, lambda: send_from_afar(b"in time"))
        assert await asyncio.to_thread(receiver.recv, 100) == b"in time"

        await scene.network.apply_egress(scene.slot, BLOCKED)
        await asyncio.to_thread(World.do, scene.world.internet_netns, lambda: send_from_afar(b"late"))
        await scene.network.apply_egress(scene.slot, OPEN)
        await asyncio.to_thread(World.do, scene.world.internet_netns, lambda: send_from_afar(b"later"))
        await scene.heard_in_the_open(b"after")
        receiver.setblocking(False)  # noqa: FBT003 - the standard library's own
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


async def test_the_host_side_holds_alone(scene: Scene) -> None:
    """With the router's rules gone, the host's still lets nothing reach the host or private networks."""
    await asyncio.to_thread(World.nft, scene.router, _FORWARD_ANYTHING)
    targets = [target for target in forbidden_targets([HOST_PUBLIC, HOST_PRIVATE], public=PUBLIC) if target.port != 25]
    assert await scene.sweep(targets) == []
    assert await scene.heard_in_the_open(b"after") == []


async def test_the_sweep_would_notice(scene: Scene) -> None:
    """With both sides' rules gone, everything that exists answers: the silence above is not the sweep's own."""
    await asyncio.to_thread(World.nft, scene.router, _FORWARD_ANYTHING)
    await asyncio.to_thread(World.nft, scene.world.host_netns, _HOST_LETS_IN)
    own = [HOST_PUBLIC, HOST_PRIVATE, scene.other.address]
    found = await scene.sweep(forbidden_targets(own, public=PUBLIC))
    for address in (*own, METADATA, "10.0.0.1", "172.17.0.1", "192.168.0.1", "100.64.0.1", "168.63.129.16"):
        assert {Target(address, 80), Target(address, 80, "udp")} <= set(found)
    assert Target(PUBLIC, 25) in found


@pytest.mark.parametrize("mode", ["open", "blocked"])
async def test_nobody_outside_reaches_a_sandbox(scene: Scene, mode: Literal["open", "blocked"]) -> None:
    """Not even from the host with a route there; the node itself does, in both modes."""
    await scene.network.apply_egress(scene.slot, EgressSpec(mode=mode))
    World.route(scene.world.host_netns, "10.231.0.0/16", f"sl{INSTANCE}")
    with scene.world.serving(scene.slot.netns_path, (80, 49979)):
        knocks = [Target(scene.slot.address, port, kind) for port in (80, 49979) for kind in ("tcp", "udp")]
        argv = probe_argv(knocks, python=sys.executable)
        assert answered(await asyncio.to_thread(World.run_inside, scene.world.host_netns, argv)) == []
        assert scene.world.heard == []
        with scene.network.open_socket() as node:
            await asyncio.get_running_loop().sock_connect(node, (scene.slot.address, 49979))
            await asyncio.get_running_loop().sock_sendall(node, b"node")
            assert await asyncio.get_running_loop().sock_recv(node, 100) == b"node"


def _datagram() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _stream() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _datagram_packet(source: str, destination: str, port: int, data: bytes) -> bytes:
    length = 28 + len(data)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination)
    )
    return header + struct.pack(">4H", 5555, port, 8 + len(data), 0) + data


def _arp_addresses(scene: Scene) -> tuple[bytes, bytes, bytes]:
    return socket.inet_aton(scene.slot.address), bytes(6), socket.inet_aton(scene.slot.peer)


def _arp_answers(listener: socket.socket) -> list[bytes]:
    listener.setblocking(False)  # noqa: FBT003 - the standard library's own
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, address = listener.recvfrom(100)
            if address[2] != socket.PACKET_OUTGOING:
                found.append(frame)
    return found
