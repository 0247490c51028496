"""One suite over every hook: twice, half-way, without prepare, failing at each step, cut at each step."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node_kit import World, a_sandbox_id, a_spec
from sandboxd.contract.problems import ProblemError
from sandboxd.hooks.base import Hook, Parts, guest_token, token_digest
from sandboxd.hooks.egress import EgressHook
from sandboxd.hooks.entrypoint import EntrypointHook
from sandboxd.hooks.guest import GuestHook
from sandboxd.hooks.launch import LaunchHook
from sandboxd.hooks.rootfs import RootfsHook
from sandboxd.hooks.slot import SlotHook
from sandboxd.hooks.trust import TrustHook
from sandboxd.hooks.tunnels import TunnelsHook
from sandboxd.network.base import NoPublicPortError
from sandboxd.network.fake import FakeNetwork
from sandboxd.runtime.fake import FakeRuntime
from tunnel_kit import tunnel

NAMES = ("slot", "rootfs", "egress", "tunnels", "launch", "guest", "trust", "entrypoint")


class Bench:
    """All hooks over one world, and one sandbox's parts."""

    def __init__(self, world: World) -> None:
        self.world = world
        upper = world.config.upper_dir
        upper.mkdir(parents=True)
        network = FakeNetwork(kernel=world.kernel)
        runtime = FakeRuntime(world.host_world)
        points, clock = world.points, world.clock
        self.network = network
        self.hooks: dict[str, Hook] = {
            "slot": SlotHook(network, points),
            "rootfs": RootfsHook(world.images, upper, points),
            "egress": EgressHook(network, points),
            "tunnels": TunnelsHook(network, points),
            "launch": LaunchHook(
                runtime, clock, points, upper_dir=upper, guest_dir=Path("/guest"), backstop_margin_seconds=60
            ),
            "guest": GuestHook(runtime, clock, os.urandom, points, resolvers=("1.1.1.1",), backstop_margin_seconds=60),
            "trust": TrustHook(runtime, points),
            "entrypoint": EntrypointHook(runtime, points),
        }
        ways = [tunnel("tcp"), tunnel("udp", letter="b"), tunnel("http", None, letter="c")]
        spec = a_spec(world, env={}, entrypoint=["sleep", "10000"], tunnels=ways)
        sandbox_id = a_sandbox_id()
        self.parts = Parts(
            sandbox_id=sandbox_id,
            handle=sandbox_id,
            spec=spec,
            env={"SECRET": "hunter2"},
            token="00" * 32,
            wall_deadline=None,
        )

    async def start(self) -> "Bench":
        await self.network.start({})
        return self

    async def up_to(self, name: str) -> None:
        """Prepare everything that a hook stands on."""
        for each in NAMES[: NAMES.index(name)]:
            await self.hooks[each].prepare(self.parts)

    async def undo_all(self) -> None:
        self.world.points.at("")
        for hook in reversed(self.hooks.values()):
            await hook.cleanup(self.parts)
        assert self.network.tunnels == {}


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return await Bench(World(tmp_path)).start()


def steps_of(wanted: Callable[[str], bool]) -> list[tuple[str, str]]:
    hooks = (SlotHook, RootfsHook, EgressHook, TunnelsHook, LaunchHook, GuestHook, TrustHook)
    return [(hook.name, step) for hook in hooks for step in hook.steps if wanted(step)]


CLEANING = {"slot.release", "slot.released", "rootfs.remove", "rootfs.unlease", "rootfs.removed"} | {
    "launch.kill",
    "launch.remove",
    "launch.removed",
    "guest.close",
    "tunnels.close",
    "tunnels.closed",
}


@pytest.mark.parametrize("name", NAMES)
async def test_cleanup_without_prepare_does_nothing(bench: Bench, name: str) -> None:
    await bench.hooks[name].cleanup(bench.parts)
    await bench.hooks[name].cleanup(bench.parts)
    assert bench.world.residue() == []


@pytest.mark.parametrize("name", NAMES)
async def test_prepare_and_cleanup_reach_every_step(bench: Bench, name: str) -> None:
    await bench.up_to(name)
    bench.world.points.reached.clear()
    await bench.hooks[name].prepare(bench.parts)
    await bench.hooks[name].cleanup(bench.parts)
    assert tuple(bench.world.points.reached) == bench.hooks[name].steps


@pytest.mark.parametrize("name", NAMES)
async def test_cleaned_twice_nothing_is_left(bench: Bench, name: str) -> None:
    await bench.up_to(name)
    await bench.hooks[name].prepare(bench.parts)
    await bench.undo_all()
    await bench.undo_all()
    assert bench.world.residue() == []


@pytest.mark.parametrize(("name", "step"), steps_of(lambda step: step not in CLEANING))
@pytest.mark.parametrize("cut", [False, True])
async def test_broken_off_while_preparing(bench: Bench, name: str, step: str, cut: bool) -> None:
    await bench.up_to(name)
    bench.world.points.at(step, "hang" if cut else "fail")
    if cut:
        task = asyncio.ensure_future(bench.hooks[name].prepare(bench.parts))
        await bench.world.points.hanging.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(RuntimeError, match=step):
            await bench.hooks[name].prepare(bench.parts)
    await bench.undo_all()
    assert bench.world.residue() == []


@pytest.mark.parametrize(("name", "step"), steps_of(lambda step: step in CLEANING))
@pytest.mark.parametrize("cut", [False, True])
async def test_broken_off_while_cleaning(bench: Bench, name: str, step: str, cut: bool) -> None:
    await bench.up_to(name)
    await bench.hooks[name].prepare(bench.parts)
    bench.world.points.at(step, "hang" if cut else "fail")
    task = asyncio.ensure_future(bench.hooks[name].cleanup(bench.parts))
    if cut:
        await bench.world.points.hanging.wait()
        task.cancel()
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        await task
    await bench.undo_all()
    assert bench.world.residue() == []


async def make_ready(bench: Bench) -> None:
    for hook in bench.hooks.values():
        await hook.make_ready(bench.parts)


async def test_nothing_is_reached_from_a_ready_one_and_its_guest_is_nobody(bench: Bench) -> None:
    await make_ready(bench)
    slot, sandbox = bench.parts.slot, bench.world.host_world.sandboxes[bench.parts.handle]
    assert slot is not None
    assert bench.network.egress[slot.index].mode == "blocked"
    assert sandbox.guest.initialized_by is not None
    assert sandbox.guest.initialized_by.token is None
    assert sandbox.launch.background


async def test_what_was_tried_before_the_claim_is_forgotten_by_it(bench: Bench) -> None:
    await make_ready(bench)
    guest = bench.world.host_world.sandboxes[bench.parts.handle].guest
    assert len(await guest.processes(None, None)) == 1
    for name in NAMES[:-1]:
        await bench.hooks[name].claim(bench.parts)
    assert await guest.processes(None, None) == []


@pytest.mark.parametrize("name", NAMES)
async def test_making_ready_and_claiming_reach_every_step(bench: Bench, name: str) -> None:
    for each in NAMES[: NAMES.index(name)]:
        await bench.hooks[each].make_ready(bench.parts)
    bench.world.points.reached.clear()
    await bench.hooks[name].make_ready(bench.parts)
    await bench.hooks[name].claim(bench.parts)
    assert tuple(bench.world.points.reached) == bench.hooks[name].ready_steps


def test_claims_wait_only_for_hooks_before_them(bench: Bench) -> None:
    names = list(bench.hooks)
    assert all(bench.hooks[name].claims_after <= set(names[:at]) for at, name in enumerate(names))


async def test_a_claimed_one_is_like_a_prepared_one(bench: Bench) -> None:
    await make_ready(bench)
    for hook in bench.hooks.values():
        await hook.claim(bench.parts)
    slot, sandbox = bench.parts.slot, bench.world.host_world.sandboxes[bench.parts.handle]
    assert slot is not None
    assert bench.network.egress[slot.index] == bench.parts.spec.egress
    told = sandbox.guest.initialized_by
    assert told is not None
    assert (told.token, bench.parts.env) == (bench.parts.token, {})
    await bench.undo_all()
    assert bench.world.residue() == []


def ready_steps() -> list[tuple[str, str]]:
    hooks = (SlotHook, RootfsHook, EgressHook, TunnelsHook, LaunchHook, GuestHook, EntrypointHook)
    return [(hook.name, step) for hook in hooks for step in hook.ready_steps]


@pytest.mark.parametrize(("name", "step"), ready_steps())
@pytest.mark.parametrize("cut", [False, True])
async def test_broken_off_while_made_ready_or_claimed(bench: Bench, name: str, step: str, cut: bool) -> None:
    async def become() -> None:
        await make_ready(bench)
        for hook in bench.hooks.values():
            await hook.claim(bench.parts)

    bench.world.points.at(step, "hang" if cut else "fail")
    task = asyncio.ensure_future(become())
    if cut:
        await bench.world.points.hanging.wait()
        task.cancel()
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        await task
    await bench.undo_all()
    assert bench.world.residue() == []
    assert bench.hooks[name].ready_steps


async def test_hooks_in_use_are_not_pulled_from_under_a_launch(bench: Bench) -> None:
    assert bench.hooks["slot"].safe_after == {"launch"}
    assert bench.hooks["rootfs"].safe_after == {"launch"}


async def test_raw_tunnels_are_open_before_it_runs_and_the_gateways_are_only_kept(
    bench: Bench,
) -> None:
    await bench.up_to("launch")
    ports = [each.public_port for each in bench.parts.spec.tunnels]
    assert ports[2] is None
    assert ports[:2] == [tunnel.public_port for _, tunnel in bench.network.tunnels.values()]
    assert len({*ports}) == 3
    await bench.hooks["tunnels"].recover(bench.parts)
    assert [each.public_port for each in bench.parts.spec.tunnels] == ports
    await bench.undo_all()


async def test_a_node_without_a_public_port_left_says_so(bench: Bench) -> None:
    await bench.up_to("tunnels")
    bench.network.fail("open_tunnel", NoPublicPortError("all are in use"))
    with pytest.raises(ProblemError, match="no_capacity") as refusal:
        await bench.hooks["tunnels"].prepare(bench.parts)
    assert refusal.value.reason == "port_range_exhausted"
    await bench.undo_all()


async def test_nothing_runs_before_its_policy_is_true(bench: Bench) -> None:
    await bench.up_to("launch")
    slot = bench.parts.slot
    assert slot is not None
    assert bench.network.egress[slot.index].mode == "open"
    assert not bench.world.host_world.sandboxes


async def test_the_environment_goes_to_the_guest_and_is_dropped(bench: Bench) -> None:
    await bench.up_to("guest")
    assert "hunter2" not in repr(bench.world.host_world.sandboxes[bench.parts.sandbox_id].launch)
    await bench.hooks["guest"].prepare(bench.parts)
    told = bench.world.host_world.guests[bench.parts.sandbox_id].initialized_by
    assert told is not None
    assert told.env == {"SECRET": "hunter2", "SANDLOT_SANDBOX_ID": bench.parts.sandbox_id}
    assert bench.parts.env == {}
    assert "hunter2" not in repr(bench.parts)


def test_a_token_is_of_one_start_only() -> None:
    tokens = {
        guest_token(b"k" * 32, "sbxa", "n1"),
        guest_token(b"k" * 32, "sbxa", "n2"),
        guest_token(b"k" * 32, "sbxb", "n1"),
        guest_token(b"j" * 32, "sbxa", "n1"),
    }
    assert len(tokens) == 4
    assert all(len(token) == 64 and token_digest(token) != token for token in tokens)
