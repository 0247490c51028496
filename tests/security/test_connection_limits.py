"""One sandbox cannot have the node's connection tracking for itself. Counted in namespaces, with small numbers."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from network_world import PUBLIC, World
from sandboxd.contract.messages import EgressLimits, EgressSpec
from sandboxd.network.base import Slot
from sandboxd.network.kernel import KernelNetwork


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with World(tmp_path) as made:
        yield made


async def two_open_slots(
    world: World, netns_dir: Path, limits: EgressLimits | None = None
) -> AsyncGenerator[tuple[Slot, Slot]]:
    network = KernelNetwork(instance="hs", netns_dir=netns_dir, pool_size=2, host_netns=world.host_netns)
    try:
        await network.start({})
        slots = await network.acquire("a"), await network.acquire("b")
        for slot in slots:
            await network.apply_egress(slot, EgressSpec(mode="open", limits=limits or EgressLimits()))
        yield slots
    finally:
        await network.stop(keep=False)


@pytest.fixture
async def few(world: World, tmp_path: Path) -> AsyncGenerator[tuple[Slot, Slot]]:
    limits = EgressLimits(connections=50, new_connections_per_second=1000)
    async for slots in two_open_slots(world, tmp_path / "netns", limits):
        yield slots


@pytest.fixture
async def slow(world: World, tmp_path: Path) -> AsyncGenerator[tuple[Slot, Slot]]:
    limits = EgressLimits(connections=8192, new_connections_per_second=10)
    async for slots in two_open_slots(world, tmp_path / "netns", limits):
        yield slots


@pytest.fixture
async def real(world: World, tmp_path: Path) -> AsyncGenerator[tuple[Slot, Slot]]:
    async for slots in two_open_slots(world, tmp_path / "netns"):
        yield slots


def _flood(slot: Slot, count: int) -> list[socket.socket]:
    """Begin that many connections, each a datagram from a socket of its own."""

    def begin() -> list[socket.socket]:
        made: list[socket.socket] = []
        for _ in range(count):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.settimeout(0)
            try:
                one.connect((PUBLIC, 80))
                one.send(b"flood")
            except OSError:
                pass
            made.append(one)
        return made

    return World.do(slot.netns_path, begin)


def _answered(sockets: list[socket.socket], want: int) -> int:
    """Count those that were answered, once the first `want` were, or nothing more comes."""
    deadline = time.monotonic() + 10
    found: set[int] = set()
    while len(found) < want and time.monotonic() < deadline:
        for one in sockets:
            try:
                if one.recv(100):
                    found.add(one.fileno())
            except OSError:
                continue
    return len(found)


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


async def test_connections_beyond_the_limit_are_refused_to_one_alone(few: tuple[Slot, Slot]) -> None:
    greedy, other = few
    flood = await asyncio.to_thread(_flood, greedy, 200)
    assert await asyncio.to_thread(_answered, flood, 50) == 50
    modest = await asyncio.to_thread(_flood, other, 10)
    assert await asyncio.to_thread(_answered, modest, 10) == 10
    assert await asyncio.to_thread(_answered, flood, 1) == 0
    _close(flood + modest)


async def test_a_burst_of_new_connections_is_cut_for_one_alone(slow: tuple[Slot, Slot]) -> None:
    greedy, other = slow
    flood = await asyncio.to_thread(_flood, greedy, 200)
    # Twice the rate may come at once, and ten more in each second that the flood takes.
    assert 20 <= await asyncio.to_thread(_answered, flood, 20) < 150
    modest = await asyncio.to_thread(_flood, other, 10)
    assert await asyncio.to_thread(_answered, modest, 10) == 10
    _close(flood + modest)


async def test_the_neighbour_is_served_beside_a_flood_at_the_real_limits(real: tuple[Slot, Slot]) -> None:
    greedy, other = real
    flood = await asyncio.to_thread(_flood, greedy, 3000)
    modest = await asyncio.to_thread(_flood, other, 10)
    assert await asyncio.to_thread(_answered, modest, 10) == 10
    assert await asyncio.to_thread(_answered, flood, 3000) < 3000
    _close(flood + modest)
