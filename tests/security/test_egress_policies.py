"""From inside a slot: exactly what the policy says is reached, and a change of it acts on what is connected."""

import asyncio
import contextlib
import socket
import struct
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from egress_targets import Target, answered, probe_argv
from netpolicy.firewall import Firewall, FirewallError
from netpolicy.flows import Flow, Flows, FlowsError
from netpolicy.platform import Platform
from netpolicy.router_side import HTTP_PORT, RESOLVER_PORT, TLS_PORT
from network_world import HOST_PRIVATE, HOST_PUBLIC, PUBLIC, World
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import NetworkError, Slot
from sandboxd.network.kernel import KernelNetwork

PATIENCE_SECONDS = 10
EXCEPTED = "10.9.0.7"
OTHER = "93.184.217.1"


class Scene:
    def __init__(self, world: World, network: KernelNetwork, router: Path) -> None:
        self.world, self.network, self.router = world, network, router
        self.slot: Slot

    async def apply(self, **policy: Any) -> int:
        return await self.network.apply_egress(self.slot, EgressSpec.model_validate(policy))

    async def reached(self, *targets: Target) -> list[Target]:
        argv = probe_argv(targets, python=sys.executable, patience_seconds=1)
        return answered(await asyncio.to_thread(World.run_inside, self.slot.netns_path, argv))

    async def a_socket(self, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        made = await asyncio.to_thread(
            World.do, self.slot.netns_path, lambda: socket.socket(socket.AF_INET, kind, protocol)
        )
        made.settimeout(PATIENCE_SECONDS)
        return made

    async def connected(self, address: str, port: int) -> socket.socket:
        made = await self.a_socket()
        await asyncio.to_thread(made.connect, (address, port))
        assert await echoed(made, b"hello")
        return made


async def echoed(connection: socket.socket, data: bytes) -> bool:
    connection.sendall(data)
    return await asyncio.to_thread(connection.recv, 100) == data


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
async def scene(world: World, tmp_path: Path) -> AsyncGenerator[Scene]:
    network = KernelNetwork(
        instance="hg",
        netns_dir=tmp_path / "netns",
        pool_size=1,
        host_netns=world.host_netns,
        platform=Platform(exceptions=(IPv4Network("10.9.0.0/16"),)),
    )
    try:
        await network.start({})
        made = Scene(world, network, tmp_path / "netns" / "router")
        made.slot = await network.acquire("a")
        yield made
    finally:
        await network.stop(keep=False)


async def test_addresses_ports_and_protocols_are_what_the_rules_say(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:80", f"{PUBLIC}:8080/udp", "1.1.1.0/24"], deny=["1.1.1.7"])
    inside = [Target(PUBLIC, 80), Target(PUBLIC, 8080, "udp"), Target("1.1.1.1", 443), Target("1.1.1.255", 53, "udp")]
    outside = [
        Target(PUBLIC, 443),
        Target(PUBLIC, 80, "udp"),
        Target(PUBLIC, 8080),
        Target("1.1.1.7", 443),
        Target("1.1.0.255", 443),
        Target("1.1.2.0", 443),
        Target(OTHER, 80),
    ]
    assert await scene.reached(*inside, *outside) == inside


@pytest.mark.parametrize(
    ("allow", "reached"),
    [
        ([], []),
        (["0.0.0.0/0"], [PUBLIC, OTHER, "223.255.255.255"]),
        ([f"{PUBLIC}/32"], [PUBLIC]),
        (["223.255.255.255"], ["223.255.255.255"]),
        (["128.0.0.0/1"], ["223.255.255.255"]),
        (["255.255.255.255"], []),
    ],
)
async def test_edges(scene: Scene, allow: list[str], reached: list[str]) -> None:
    await scene.apply(mode="allowlist", allow=allow)
    targets = [Target(address, 80) for address in (PUBLIC, OTHER, "223.255.255.255")]
    assert [target.address for target in await scene.reached(*targets)] == reached


async def test_no_rule_opens_what_the_platform_denies_but_an_operator_can(scene: Scene) -> None:
    allow = ["0.0.0.0/0", "169.254.169.254", "10.0.0.0/8", f"{HOST_PUBLIC}", f"{HOST_PRIVATE}", "10.231.0.0/16"]
    await scene.apply(mode="allowlist", allow=allow)
    neighbour = await scene.network.acquire("b")
    denied = [
        Target("169.254.169.254", 80),
        Target("10.0.0.1", 80),
        Target("10.8.255.255", 80),
        Target("127.0.0.1", 80),
        Target(HOST_PUBLIC, 80),
        Target(HOST_PRIVATE, 80),
        Target(scene.slot.peer, 80),
        Target(PUBLIC, 25),
        Target("2606:4700::1111", 80),
    ]
    with scene.world.serving(neighbour.netns_path, (80,)):
        denied += [Target(neighbour.address, 80), Target(neighbour.peer, 80)]
        assert await scene.reached(Target(EXCEPTED, 80), *denied) == [Target(EXCEPTED, 80)]


async def test_ping_is_for_open_only_and_not_for_what_is_denied(scene: Scene) -> None:
    async def pings(address: str) -> bool:
        echo = struct.pack(">BBHHH", 8, 0, 0xF7FF - 7, 0, 7)
        with await scene.a_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinging:
            pinging.settimeout(1)
            with contextlib.suppress(OSError):
                pinging.sendto(echo, (address, 0))
                while True:
                    answer, source = await asyncio.to_thread(pinging.recvfrom, 200)
                    if source[0] == address and answer[20] == 0:
                        return True
        return False

    await scene.apply(mode="open", deny=[OTHER])
    assert [await pings(PUBLIC), await pings(OTHER)] == [True, False]
    await scene.apply(mode="allowlist", allow=["0.0.0.0/0"])
    assert not await pings(PUBLIC)


async def test_a_refusal_is_told_at_once(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:80"])
    with await scene.a_socket() as refused, pytest.raises(OSError, match="No route to host"):
        await asyncio.to_thread(refused.connect, (PUBLIC, 443))


async def test_an_update_ends_what_it_forbids_and_nothing_else(scene: Scene) -> None:
    await scene.apply(mode="open")
    with (
        await scene.connected(PUBLIC, 80) as kept,
        await scene.connected(OTHER, 80) as cut,
        await scene.connected(PUBLIC, 443) as other_port,
        await scene.a_socket(socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.sendto(b"x", (OTHER, 80))
        assert await asyncio.to_thread(datagrams.recv, 100) == b"x"
        assert await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:80"]) == 3
        assert await echoed(kept, b"still here")
        for dead in (cut, other_port):
            dead.sendall(b"late")
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(dead.recv, 100)
        # Once more, with the flow judged by its mark alone and the answer of the server coming first.
        assert await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:80", "1.1.1.1"]) == 0
        assert await echoed(kept, b"and here")
        assert await scene.apply(mode="open", deny=[PUBLIC]) == 1
        kept.sendall(b"late too")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(kept.recv, 100)
    assert not [entry for entry in scene.world.heard if entry[2].startswith(b"late")]


async def test_a_connection_that_only_listens_is_cut_as_well(scene: Scene) -> None:
    """What the other side goes on sending does not come in, with no packet of the sandbox's in between."""
    await scene.apply(mode="open")
    with await scene.connected(PUBLIC, 80) as listening:
        assert await scene.apply(mode="blocked") == 1
        assert await scene.network._thread("births").run(lambda: scene.network._flows.of_slot(scene.slot.index)) == []
        listening.settimeout(0.2)
        with pytest.raises((TimeoutError, ConnectionResetError)):
            await asyncio.to_thread(listening.recv, 100)


def _nothing(_flows: Flows, _index: int) -> list[Flow]:
    return []


async def test_the_table_alone_stops_what_is_forbidden_both_ways(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that no listing has found, as one that begins in that very moment: no end of it was noticed."""
    with World.do(scene.world.internet_netns, socket.socket) as server, await scene.a_socket() as inside:
        server.bind(("", 9000))
        server.listen()
        server.settimeout(PATIENCE_SECONDS)
        await scene.apply(mode="open")
        await asyncio.to_thread(inside.connect, (PUBLIC, 9000))
        outside, _ = await asyncio.to_thread(server.accept)
        with outside:
            monkeypatch.setattr(Flows, "of_slot", _nothing)
            assert await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:9000"]) == 0
            outside.sendall(b"the answer is judged, and allowed")
            assert await asyncio.to_thread(inside.recv, 100)
            assert await scene.apply(mode="allowlist", allow=[f"{PUBLIC}:9001"]) == 0
            outside.sendall(b"late")
            inside.settimeout(0.3)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(inside.recv, 100)
            inside.sendall(b"late")
            inside.settimeout(PATIENCE_SECONDS)
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(inside.recv, 100)


async def test_what_could_not_be_ended_at_the_close_is_ended_by_the_next_policy(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FlowsError("injected")

    await scene.apply(mode="open")
    with await scene.connected(PUBLIC, 80):
        with monkeypatch.context() as broken:
            broken.setattr(Flows, "of_slot", fails)
            broken.setattr(Flows, "forget", fails)
            with pytest.raises(NetworkError):
                await scene.apply(mode="allowlist", allow=[PUBLIC])
        await scene.apply(mode="allowlist", allow=[OTHER])
        alive = await asyncio.to_thread(World.do, scene.router, lambda: _alive(scene.slot))
        assert alive == []


def _alive(slot: Slot) -> list[Flow]:
    flows = Flows()
    try:
        return [flow for flow in flows.of_slot(slot.index) if flow.alive]
    finally:
        flows.close()


async def test_the_same_policy_again_touches_nothing(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=["93.184.0.0/16"])
    with await scene.connected(PUBLIC, 80) as kept:
        assert await scene.apply(mode="allowlist", allow=["93.184.0.0/16"]) == 0
        assert await echoed(kept, b"still")


async def test_a_reused_slot_carries_nothing_over(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=[PUBLIC, "db.test:8080"], limits={"connections": 1})
    await scene.network.learn(scene.slot.address, "db.test", [IPv4Address(OTHER)], 300)
    assert await scene.reached(Target(OTHER, 8080)) == [Target(OTHER, 8080)]
    index = scene.slot.index
    await scene.network.release("a", index)
    for attempt in range(1100):
        scene.slot = await scene.network.acquire(f"n{attempt}")
        if scene.slot.index == index:
            break
    # What is out of use is removed when nobody waits; no packet meets it meanwhile.
    assert await scene.reached(Target(PUBLIC, 80), Target(OTHER, 8080)) == []
    while await scene.network._thread("births").run(scene.network._policies.sweep):
        pass
    elements = await scene.network._thread("births").run(scene.network._firewall.slot_elements)
    assert {element.set_name for element in elements[scene.slot.interface]} == {"sources", "marks", "live"}
    assert await scene.reached(Target(PUBLIC, 80), Target(OTHER, 8080)) == []


async def test_a_name_opens_its_ports_at_its_addresses_and_no_others(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=["db.test:8080", "db.test:80", "db.test:22-23", "db.test:53/udp"])
    where = [Target(OTHER, port) for port in (8080, 22, 25, 80, 443)] + [Target(OTHER, 53, "udp"), Target(PUBLIC, 8080)]
    assert await scene.reached(*where) == []
    await scene.network.learn(scene.slot.address, "db.test", [IPv4Address(OTHER), IPv4Address("10.0.0.1")], 300)
    assert await scene.reached(*where, Target("10.0.0.1", 8080)) == where[:2]
    await scene.network.learn(scene.slot.address, "else.test", [IPv4Address(PUBLIC)], 300)
    assert await scene.reached(Target(PUBLIC, 8080)) == []
    with pytest.raises(NetworkError, match="no sandbox"):
        await scene.network.learn("10.231.200.1", "db.test", [IPv4Address(OTHER)], 300)


async def test_a_name_that_goes_takes_its_connections_along(scene: Scene) -> None:
    await scene.apply(mode="allowlist", allow=["db.test:8080", "*.web.test:22"])
    await scene.network.learn(scene.slot.address, "db.test", [IPv4Address(OTHER)], 300)
    await scene.network.learn(scene.slot.address, "a.web.test", [IPv4Address(PUBLIC)], 1)
    with await scene.connected(OTHER, 8080) as cut, await scene.connected(PUBLIC, 22) as kept:

        def learned() -> int:
            return len(scene.network._firewall.elements("learned"))

        async with asyncio.timeout(PATIENCE_SECONDS):
            while await scene.network._thread("births").run(learned) > 1:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.05)
        # Its name's address is over, and so is every new connection; this one lives on, also across an update.
        assert await scene.reached(Target(PUBLIC, 22)) == []
        assert await scene.apply(mode="allowlist", allow=["*.web.test:22", "1.1.1.1"]) == 1
        assert await echoed(kept, b"still here")
        cut.sendall(b"late")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(cut.recv, 100)


async def test_names_lead_to_the_programs_in_the_router_and_nowhere_else(scene: Scene) -> None:
    """The ports are served by whoever listens there; here by an echo that says which one it is."""
    await scene.apply(mode="allowlist", allow=["web.test", f"{OTHER}:443"])
    web = [Target(PUBLIC, 80), Target(PUBLIC, 443), Target(PUBLIC, 53, "udp"), Target(PUBLIC, 53)]
    assert await scene.reached(*web, Target(OTHER, 443)) == [Target(OTHER, 443)]
    with scene.world.serving(scene.router, (RESOLVER_PORT, HTTP_PORT, TLS_PORT, 8080)):
        scene.world.heard.clear()
        assert await scene.reached(*web) == web
        peer = scene.slot.peer
        denied = [
            *(Target(peer, port) for port in (RESOLVER_PORT, HTTP_PORT, TLS_PORT, 8080)),
            Target(peer, RESOLVER_PORT, "udp"),
            Target("169.254.169.254", 80),
            Target(HOST_PUBLIC, 443),
            Target("10.0.0.1", 80),
            Target(PUBLIC, 443, "udp"),
            Target(PUBLIC, 853),
            Target(PUBLIC, 8080),
        ]
        assert await scene.reached(*denied) == []
        assert await scene.reached(Target(peer, 53, "udp")) == [Target(peer, 53, "udp")]
        async with asyncio.timeout(PATIENCE_SECONDS):
            with await scene.connected(PUBLIC, 443) as proxied:
                # Names stop deciding but everything is open: the proxy may go on with what it has.
                assert await scene.apply(mode="open") == 0
                assert await echoed(proxied, b"still here")
                assert await scene.apply(mode="blocked") == 1
                proxied.sendall(b"late")
                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(proxied.recv, 100)


async def test_a_denied_name_makes_every_web_connection_show_its_own(scene: Scene) -> None:
    await scene.apply(mode="open", deny=["evil.test"])
    assert await scene.reached(Target(PUBLIC, 443), Target(PUBLIC, 443, "udp"), Target(PUBLIC, 8080)) == [
        Target(PUBLIC, 8080)
    ]
    with scene.world.serving(scene.router, (TLS_PORT,)):
        assert await scene.reached(Target(PUBLIC, 443)) == [Target(PUBLIC, 443)]


async def test_connections_and_their_rate_are_limited(scene: Scene) -> None:
    await scene.apply(mode="open", limits={"connections": 5, "new_connections_per_second": 1000})
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(await scene.connected(PUBLIC, 80))
        with await scene.a_socket() as sixth, pytest.raises(OSError, match="No route to host"):
            await asyncio.to_thread(sixth.connect, (PUBLIC, 80))
    await scene.apply(mode="open", limits={"connections": 1000, "new_connections_per_second": 1})
    refused = 0
    for _ in range(10):
        with await scene.a_socket() as one:
            try:
                await asyncio.to_thread(one.connect, (PUBLIC, 80))
            except OSError:
                refused += 1
    assert refused >= 5


async def test_bandwidth_is_limited_both_ways_and_not_for_the_node(scene: Scene) -> None:
    size = 4_000_000
    for limits in ({"up_bytes_per_second": 1_000_000}, {"down_bytes_per_second": 1_000_000}):
        await scene.apply(mode="open", limits=limits)
        with await scene.connected(PUBLIC, 80) as sending:
            began = asyncio.get_running_loop().time()
            await asyncio.to_thread(_echo_much, sending, size)
            # A second's worth may come at once; without a limit all of it takes some milliseconds.
            assert asyncio.get_running_loop().time() - began > 1.5
    with scene.world.serving(scene.slot.netns_path, (49979,)), scene.network.open_socket() as node:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(node, (scene.slot.address, 49979))
        node.setblocking(True)  # noqa: FBT003 - the standard library's own
        node.settimeout(PATIENCE_SECONDS)
        await asyncio.to_thread(_echo_much, node, size)


def _echo_much(connection: socket.socket, size: int) -> None:
    def send() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(bytes(size))

    thread = threading.Thread(target=send)
    thread.start()
    left = size
    connection.settimeout(60)
    while left > 0:
        got = len(connection.recv(1 << 16))
        assert got
        left -= got
    thread.join()


async def test_a_change_that_fails_closes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.apply(mode="open")
    with await scene.connected(PUBLIC, 80) as cut:
        original: Callable[..., None] = Firewall.apply
        calls: list[int] = []

        def failing(self: Firewall, change: Any) -> None:
            if any(element.interface == scene.slot.interface for element in change.add) and not calls:
                calls.append(1)
                raise FirewallError("told to")
            original(self, change)

        monkeypatch.setattr(Firewall, "apply", failing)
        with pytest.raises(NetworkError, match="told to"):
            await scene.apply(mode="allowlist", allow=[PUBLIC])
        monkeypatch.undo()
        cut.sendall(b"late")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(cut.recv, 100)
    assert await scene.reached(Target(PUBLIC, 80)) == []
    await scene.apply(mode="allowlist", allow=[PUBLIC])
    assert await scene.reached(Target(PUBLIC, 80)) == [Target(PUBLIC, 80)]


async def test_a_restart_of_the_agent_is_not_felt(scene: Scene, world: World) -> None:
    policy = {"mode": "allowlist", "allow": [f"{PUBLIC}:80", "db.test:8080"], "limits": {"connections": 9}}
    await scene.apply(**policy)
    await scene.network.learn(scene.slot.address, "db.test", [IPv4Address(OTHER)], 300)
    with await scene.connected(PUBLIC, 80) as kept, await scene.connected(OTHER, 8080) as named:
        await scene.network.stop(keep=True)
        assert await echoed(kept, b"while it is away")
        after = KernelNetwork(instance="hg", netns_dir=scene.router.parent, pool_size=1, host_netns=world.host_netns)
        await after.start({"a": scene.slot.index})
        scene.network = after
        try:
            assert await echoed(kept, b"before it is taken over")
            scene.slot = await after.adopt("a", scene.slot.index)
            assert await scene.apply(**policy) == 0
            assert await echoed(kept, b"after")
            assert await echoed(named, b"after")
            assert await scene.apply(mode="allowlist", allow=[f"{OTHER}:8080"]) == 1
            assert await echoed(named, b"by address now")
        finally:
            await after.stop(keep=False)
