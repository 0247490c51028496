"""What every `Network` keeps, whether it is made of namespaces or of memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from network_world import World
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import Network, NetworkError, Slot
from sandboxd.network.fake import FakeNetwork
from sandboxd.network.kernel import KernelNetwork

OPEN = EgressSpec(mode="open")
BLOCKED = EgressSpec(mode="blocked")


@pytest.fixture(params=["fake", "kernel"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Callable[[], Network]]:
    """Makes networks of one node: each is what a start of the node agent would have."""
    with contextlib.ExitStack() as stack:
        if request.param == "fake":
            kernel: dict[int, Slot] = {}
            yield lambda: FakeNetwork(kernel=kernel)
            return
        world = stack.enter_context(World(tmp_path))
        made: list[KernelNetwork] = []

        def network() -> Network:
            made.append(
                KernelNetwork(instance="hd", netns_dir=tmp_path / "netns", pool_size=2, host_netns=world.host_netns)
            )
            return made[-1]

        yield network
        for one in made:
            await one.stop(keep=True)
        if made:
            await made[-1].stop(keep=False)
        assert list((tmp_path / "netns").glob("*")) == []


@pytest.fixture
async def network(make: Callable[[], Network]) -> Network:
    made = make()
    await made.start({})
    return made


async def test_slots_of_two_sandboxes_differ_in_everything(network: Network) -> None:
    one, other = await asyncio.gather(network.acquire("a"), network.acquire("b"))
    for name in ("index", "netns_path", "interface", "address", "peer"):
        assert getattr(one, name) != getattr(other, name)
    assert len({one.address, one.peer, other.address, other.peer}) == 4


async def test_acquiring_twice_is_acquiring_once(network: Network) -> None:
    assert await network.acquire("a") == await network.acquire("a")


async def test_releasing_twice_is_releasing_once(network: Network) -> None:
    slot = await network.acquire("a")
    await asyncio.gather(network.release("a", slot.index), network.release("a", slot.index))
    await network.release("a", slot.index)
    slots = [await network.acquire(name) for name in ("b", "c", "d", "e")]
    assert len({slot.index for slot in slots}) == 4


async def test_an_old_release_does_not_touch_the_new_owner(network: Network) -> None:
    slot = await network.acquire("a")
    await network.release("a", slot.index)
    taken = [await network.acquire(f"b{number}") for number in range(6)]
    await network.release("a", slot.index)
    for number, one in enumerate(taken):
        assert await network.adopt(f"b{number}", one.index) == one


async def test_many_at_once_get_one_each(network: Network) -> None:
    slots = await asyncio.gather(*(network.acquire(f"s{number}") for number in range(20)))
    assert len({slot.index for slot in slots}) == 20
    await asyncio.gather(*(network.release(f"s{number}", slot.index) for number, slot in enumerate(slots)))


async def test_a_caller_that_is_cancelled_leaks_no_slot(network: Network) -> None:
    tasks = [asyncio.ensure_future(network.acquire(f"s{number}")) for number in range(8)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    slots = [await network.acquire(f"t{number}") for number in range(8)]
    assert len({slot.index for slot in slots}) == 8


async def test_egress_changes_back_and_forth(network: Network) -> None:
    slot = await network.acquire("a")
    for egress in (BLOCKED, OPEN, OPEN, BLOCKED, BLOCKED, OPEN):
        await network.apply_egress(slot, egress)


async def test_sockets_are_fresh_and_do_not_block(network: Network) -> None:
    sockets = [network.open_socket() for _ in range(200)]
    assert len({one.fileno() for one in sockets}) == 200
    for one in sockets:
        assert not one.getblocking()
        assert not one.get_inheritable()
        one.close()


async def test_repair_and_problems_are_quiet_where_nothing_is_wrong(network: Network) -> None:
    await network.repair()
    assert await network.problems() == []


async def test_a_restart_adopts_what_is_in_use_and_removes_the_rest(make: Callable[[], Network]) -> None:
    before = make()
    await before.start({})
    kept, dropped = await before.acquire("a"), await before.acquire("b")
    await before.stop(keep=True)

    after = make()
    await after.start({"a": kept.index, "gone": 999})
    assert await after.adopt("a", kept.index) == kept
    with pytest.raises(NetworkError):
        await after.adopt("b", dropped.index)
    with pytest.raises(NetworkError):
        await after.adopt("gone", 999)
    await after.release("gone", 999)
    await after.release("b", dropped.index)
    await after.apply_egress(kept, OPEN)
    await after.release("a", kept.index)


async def test_what_is_not_started_says_so(make: Callable[[], Network]) -> None:
    network = make()
    with pytest.raises(NetworkError, match="not started"):
        await network.acquire("a")
    with pytest.raises(NetworkError, match="not started"):
        network.open_socket()
    await network.start({})
    await network.stop(keep=False)
    await network.stop(keep=False)
    with pytest.raises(NetworkError, match="not started"):
        await network.acquire("a")


@pytest.mark.parametrize("operation", ["acquire", "adopt", "apply_egress", "release", "open_socket", "repair"])
async def test_the_fake_fails_when_told(operation: str) -> None:
    network = FakeNetwork()
    await network.start({})
    slot = await network.acquire("a")
    calls: dict[str, Callable[[], object]] = {
        "acquire": lambda: network.acquire("b"),
        "adopt": lambda: network.adopt("a", slot.index),
        "apply_egress": lambda: network.apply_egress(slot, OPEN),
        "release": lambda: network.release("a", slot.index),
        "open_socket": network.open_socket,
        "repair": network.repair,
    }

    async def call() -> None:
        result = calls[operation]()
        if asyncio.iscoroutine(result):
            await result
        elif isinstance(result, socket.socket):
            result.close()

    network.fail(operation, times=2)
    for _ in range(2):
        with pytest.raises(NetworkError, match=operation):
            await call()
    assert network.held == {"a": slot.index}
    await call()
