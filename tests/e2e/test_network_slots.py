"""Slots on this machine's own kernel: two nodes side by side, from node to guest, crashes, reuse, repair."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Self

import pytest

from network_world import World
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import NetworkError, Slot
from sandboxd.network.kernel import KernelNetwork
from sandboxd.network.links import Links
from sandboxd.network.netns import is_pin

OPEN = EgressSpec(mode="open")
BLOCKED = EgressSpec(mode="blocked")
GUEST_PORT = 49979
_PATIENCE_SECONDS = 20
_POOL = 2


@pytest.fixture
async def one(tmp_path: Path) -> AsyncGenerator[KernelNetwork]:
    async with _node("hd", tmp_path / "one") as network:
        yield network


@pytest.fixture
async def two(tmp_path: Path) -> AsyncGenerator[KernelNetwork]:
    async with _node("hd2", tmp_path / "two") as network:
        yield network


@contextlib.asynccontextmanager
async def _node(instance: str, netns_dir: Path, host_netns: Path | None = None) -> AsyncGenerator[KernelNetwork]:
    network = KernelNetwork(instance=instance, netns_dir=netns_dir, pool_size=_POOL, host_netns=host_netns)
    try:
        await network.start({})
        yield network
    finally:
        await network.stop(keep=False)
        assert list(netns_dir.iterdir()) == []


class Guest:
    """Answers its name on the guest's port inside a slot."""

    def __init__(self, slot: Slot, name: bytes) -> None:
        self._name = name
        self._listening = World.do(slot.netns_path, lambda: socket.create_server(("", GUEST_PORT)))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, sock=self._listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._name)
        writer.close()
        await writer.wait_closed()


async def ask(network: KernelNetwork, slot: Slot) -> bytes:
    loop = asyncio.get_running_loop()
    with network.open_socket() as node:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await loop.sock_connect(node, (slot.address, GUEST_PORT))
            return await loop.sock_recv(node, 100)


async def test_two_nodes_reach_their_own_guests_at_the_same_address(one: KernelNetwork, two: KernelNetwork) -> None:
    slots = [await network.acquire("a") for network in (one, two)]
    assert slots[0].address == slots[1].address
    async with Guest(slots[0], b"one"), Guest(slots[1], b"two"):
        assert await ask(one, slots[0]) == b"one"
        assert await ask(two, slots[1]) == b"two"
        assert [await ask(one, slots[0]) for _ in range(100)] == [b"one"] * 100


async def test_a_policy_ends_no_call_of_the_node(one: KernelNetwork) -> None:
    """Streams of the api run on while egress is opened and closed."""
    slot = await one.acquire("a")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(World.do(slot.netns_path, lambda: socket.create_server(("", GUEST_PORT))))
        node = stack.enter_context(one.open_socket())
        await asyncio.get_running_loop().sock_connect(node, (slot.address, GUEST_PORT))
        guest = stack.enter_context((await asyncio.to_thread(listening.accept))[0])
        for egress in (OPEN, BLOCKED, OPEN, BLOCKED):
            await one.apply_egress(slot, egress)
            guest.sendall(b"output")
            assert await asyncio.get_running_loop().sock_recv(node, 100) == b"output"
            await asyncio.get_running_loop().sock_sendall(node, b"input")
            assert await asyncio.to_thread(guest.recv, 100) == b"input"


async def test_the_host_has_no_way_to_a_guest(one: KernelNetwork) -> None:
    slot = await one.acquire("a")
    async with Guest(slot, b"one"):
        with contextlib.closing(socket.socket()) as host:
            host.setblocking(False)  # noqa: FBT003 - the standard library's own
            with pytest.raises((OSError, TimeoutError)):
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(host, (slot.address, GUEST_PORT)), 1)


async def test_the_programs_own_namespace_is_never_left(one: KernelNetwork) -> None:
    before = Path("/proc/self/ns/net").stat().st_ino
    slot = await one.acquire("a")
    await one.release("a", slot.index)
    assert Path("/proc/self/ns/net").stat().st_ino == before
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before


async def test_a_slot_robbed_of_its_address_is_whole_when_it_comes_back(one: KernelNetwork) -> None:
    """The runtime takes the addresses away, and with them go routes and neighbours."""
    first = await one.acquire("a")
    World.do(first.netns_path, _rob)
    await one.release("a", first.index)
    seen: list[Slot] = []
    while first not in seen:
        seen.append(await one.acquire(f"b{len(seen)}"))
        assert len(seen) < 50
    async with Guest(first, b"again"):
        assert await ask(one, first) == b"again"


async def test_a_slot_that_somebody_lives_in_is_not_used_again(one: KernelNetwork) -> None:
    slot = await one.acquire("a")
    lodger = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={slot.netns_path}", sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert lodger.stdout is not None
        await lodger.stdout.readline()
        await one.release("a", slot.index)
        assert not is_pin(slot.netns_path)
    finally:
        lodger.kill()
        await lodger.wait()


async def test_a_slot_that_somebody_listens_in_is_not_used_again(one: KernelNetwork) -> None:
    slot = await one.acquire("a")
    ear = World.do(slot.netns_path, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    with ear:
        await one.release("a", slot.index)
        assert not is_pin(slot.netns_path)


async def test_a_broken_slot_is_not_adopted(one: KernelNetwork) -> None:
    slot = await one.acquire("a")
    World.do(slot.netns_path, _delete_device)
    with pytest.raises(NetworkError, match="missing or down"):
        await one.adopt("a", slot.index)
    await one.release("a", slot.index)


async def test_policy_and_flows_outlive_a_restart(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        made = [
            KernelNetwork(instance="hd", netns_dir=tmp_path / "netns", pool_size=_POOL, host_netns=world.host_netns)
            for _ in range(2)
        ]
        await made[0].start({})
        kept, closed = await made[0].acquire("a"), await made[0].acquire("b")
        await made[0].apply_egress(kept, OPEN)
        with World.do(kept.netns_path, socket.socket) as flow, World.do(closed.netns_path, socket.socket) as none:
            flow.settimeout(_PATIENCE_SECONDS)
            await asyncio.to_thread(flow.connect, ("93.184.216.34", 80))
            await made[0].stop(keep=True)
            await _echo(flow, b"while it is away")
            await made[1].start({"a": kept.index, "b": closed.index})
            assert await made[1].adopt("a", kept.index) == kept
            await _echo(flow, b"after it is back")
            none.settimeout(_PATIENCE_SECONDS)
            with pytest.raises(OSError, match="No route to host"):
                await asyncio.to_thread(none.connect, ("93.184.216.34", 80))
        await made[1].stop(keep=False)


async def test_a_killed_node_leaves_what_the_next_start_can_tidy(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from sandboxd.network.kernel import KernelNetwork\n"
        "async def main():\n"
        "    network = KernelNetwork(instance='hd', netns_dir=pathlib.Path(sys.argv[1]), pool_size=50)\n"
        "    await network.start({})\n"
        "    print((await network.acquire('a')).index, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    netns_dir = tmp_path / "netns"
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(netns_dir), stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    assert node.stdout is not None
    index = int(await node.stdout.readline())
    # It is busy filling its pool now.
    node.send_signal(signal.SIGKILL)
    await node.wait()

    network = KernelNetwork(instance="hd", netns_dir=netns_dir, pool_size=0)
    try:
        await network.start({"a": index})
        slot = await network.adopt("a", index)
        assert {path.name for path in netns_dir.iterdir()} == {"router", slot.netns_path.name}
        assert World.do(netns_dir / "router", _link_names) == {"lo", "uplink", slot.interface}
        async with Guest(slot, b"a"):
            assert await ask(network, slot) == b"a"
    finally:
        await network.stop(keep=False)
    assert list(netns_dir.iterdir()) == []


async def test_everything_goes_even_when_the_node_is_not_running(tmp_path: Path) -> None:
    async with _node("hd", tmp_path / "one") as network:
        await network.acquire("a")
        await network.stop(keep=True)
    assert "slhd" not in await asyncio.to_thread(_link_names)


async def test_flushed_rules_and_a_lost_uplink_come_back(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        async with _node("hd", tmp_path / "netns", world.host_netns) as network:
            slot = await network.acquire("a")
            await network.apply_egress(slot, OPEN)
            await _reaches(slot)

            World.nft(world.host_netns, "flush ruleset\n")
            assert any("sandlot_hd" in problem for problem in await network.problems())
            await network.repair()
            assert await network.problems() == []
            await _reaches(slot)

            World.do(world.host_netns, lambda: _delete_link("slhd"))
            assert any("slhd" in problem for problem in await network.problems())
            await network.repair()
            assert await network.problems() == []
            await _reaches(slot)

            World.nft(
                world.host_netns,
                "table inet strict { chain forward { type filter hook forward priority 0; policy drop; }; }\n",
            )
            assert any("inet strict forward" in problem for problem in await network.problems())


async def test_an_address_that_the_host_uses_is_not_taken(tmp_path: Path) -> None:
    """Two nodes whose names lead to the same first choice do not share it, nor take a network of the host's."""
    async with _node("hd", tmp_path / "one") as first, _node("hd2", tmp_path / "two") as second:
        networks = [await asyncio.to_thread(_networks_of, name) for name in ("slhd", "slhd2")]
        assert networks[0] != networks[1]
        await first.repair()
        await second.repair()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def _rob() -> None:
    with Links() as links:
        links.remove_addresses(2)


def _delete_device() -> None:
    _delete_link("eth0")


def _delete_link(name: str) -> None:
    with Links() as links:
        found = links.find(name)
        assert found is not None
        links.delete(found.index)


def _link_names() -> set[str]:
    with Links() as links:
        return {link.name for link in links.all()}


def _networks_of(name: str) -> list[str]:
    with Links() as links:
        found = links.find(name)
        assert found is not None
        return [str(address.network) for address in links.addresses(found.index)]


async def _reaches(slot: Slot) -> None:
    with World.do(slot.netns_path, socket.socket) as flow:
        flow.settimeout(_PATIENCE_SECONDS)
        await asyncio.to_thread(flow.connect, ("93.184.216.34", 80))
        await _echo(flow, b"here")


async def _echo(flow: socket.socket, data: bytes) -> None:
    flow.sendall(data)
    assert await asyncio.to_thread(flow.recv, 100) == data
