"""A node over fakes: a world that survives agents, a clock that is told, and points at which agents break."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sandboxd.app.assembly import Parts, make_manager
from sandboxd.app.identity import Identity
from sandboxd.config import NodeConfig
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import EgressSpec, EnsureSandbox, ImageRef, PatchSandbox, SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.images.fake import FakeImages
from sandboxd.ledger.memory import LedgerContents, MemoryLedger
from sandboxd.manager.host import FakeHost
from sandboxd.manager.manager import Manager, StopRequest
from sandboxd.manager.startup import StartUp
from sandboxd.manager.upkeep import Upkeep
from sandboxd.network.base import Slot
from sandboxd.network.fake import FakeNetwork
from sandboxd.runner.life import Life
from sandboxd.runtime.fake import FakeRuntime, FakeWorld


async def turns(count: int = 50) -> None:
    """Let everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


STARTING = (
    "slot.acquire",
    "slot.acquired",
    "rootfs.lease",
    "rootfs.upper",
    "rootfs.prepared",
    "egress.apply",
    "egress.applied",
    "tunnels.open",
    "tunnels.opened",
    "launch.create",
    "launch.start",
    "launch.started",
    "guest.connect",
    "guest.init",
    "guest.initialized",
    "trust.install",
    "trust.installed",
    "entrypoint.start",
    "entrypoint.started",
    "start.acknowledge",
)
"""The steps of a start that a test can fail or be killed at, in their order."""


class ToldClock:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self._boottime = 1000.0
        self._began = datetime(2026, 11, 22, 11, tzinfo=UTC)
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def boottime(self) -> float:
        return self._boottime

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self._boottime - 1000.0)

    async def sleep_until(self, boottime: float) -> None:
        if boottime > self._boottime:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.append((boottime, waiter))
            await waiter

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, second by second, and everything happen that is due meanwhile."""
        end = self._boottime + seconds
        while self._boottime < end:
            self._boottime = min(self._boottime + 1, end)
            for at, waiter in self._sleepers:
                if at <= self._boottime and not waiter.done():
                    waiter.set_result(None)
            self._sleepers = [(at, waiter) for at, waiter in self._sleepers if not waiter.done()]
            await turns()


Mode = Literal["fail", "hang"]


class Trip:
    """Fail points: fails or hangs when a step is reached; counts them all."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()
        self.hanging = asyncio.Event()
        self._step = ""
        self._mode: Mode = "fail"
        self._times = 0

    def at(self, step: str, mode: Mode = "fail", times: int = 1) -> None:
        self._step, self._mode, self._times = step, mode, times
        self.hanging = asyncio.Event()

    async def reach(self, step: str) -> None:
        self.reached[step] += 1
        if step != self._step or self._times <= 0:
            return
        self._times -= 1
        if self._mode == "fail":
            raise RuntimeError(f"tripped at {step}")
        self.hanging.set()
        await asyncio.get_running_loop().create_future()


@dataclass
class World:
    """What outlives an agent."""

    directory: Path
    host_world: FakeWorld = field(default_factory=FakeWorld)
    kernel: dict[int, Slot] = field(default_factory=dict[int, Slot])
    ledger: LedgerContents = field(default_factory=LedgerContents)
    images: FakeImages = field(default_factory=FakeImages)
    host: FakeHost = field(default_factory=FakeHost)
    clock: ToldClock = field(default_factory=ToldClock)
    points: Trip = field(default_factory=Trip)
    boot_id: str = "boot-1"
    settings: dict[str, object] = field(default_factory=dict[str, object])
    identity: Identity = field(default_factory=lambda: Identity(node_id=new_id("nod", os.urandom), key=b"k" * 32))

    @property
    def config(self) -> NodeConfig:
        return NodeConfig(
            data_dir=self.directory,
            run_dir=self.directory / "run",
            runtime="fake",
            **{"stop_drain_seconds": 0.2, "exit_seconds": 1, "pool_max": 0, **self.settings},  # pyright: ignore[reportArgumentType] - by name
        )

    def residue(self) -> list[str]:
        """Everything there is of any sandbox."""
        upper = self.config.upper_dir
        found = [f"runtime {each}" for each in self.host_world.sandboxes]
        found += [f"slot {each}" for each in self.kernel]
        found += [f"upper {each.name}" for each in (upper.iterdir() if upper.exists() else ())]
        found += [f"lease {each}" for each, count in self.images.leases.items() if count]
        return found


@dataclass
class FakeNode:
    """An agent over the world."""

    world: World
    manager: Manager
    network: FakeNetwork
    upkeep: Upkeep

    def life(self, sandbox_id: str) -> Life:
        return self.manager.runners[sandbox_id].life

    async def create(self, sandbox_id: str | None = None, **spec: Any) -> str:
        sandbox_id = sandbox_id or a_sandbox_id()
        await self.manager.ensure(sandbox_id, an_ensure(self.world, **spec))
        return sandbox_id

    async def over(self, sandbox_id: str) -> Life:
        life = self.life(sandbox_id)
        await life.over.wait()
        return life


@asynccontextmanager
async def node(world: World, network: FakeNetwork | None = None) -> AsyncGenerator[FakeNode]:
    """Have an agent open while inside; leaving is its graceful exit."""
    network = network or FakeNetwork(kernel=world.kernel)
    world.images = FakeImages()  # an agent's leases die with it
    parts = Parts(
        runtime=FakeRuntime(world.host_world),
        network=network,
        images=world.images,
        ledger=MemoryLedger(world.ledger),
        host=world.host,
        clock=world.clock,
        points=world.points,
    )
    config = world.config
    manager = make_manager(config, parts, world.identity, world.boot_id)
    upkeep = Upkeep(network, world.host, disk_watermark_mib=config.disk_watermark_mib)
    try:
        async with manager.opened(StartUp(network, config.upper_dir)):
            yield FakeNode(world, manager, network, upkeep)
    finally:
        manager.tools.sampler.close()


class CrashError(Exception):
    """The agent was killed."""


@asynccontextmanager
async def crashing_node(world: World) -> AsyncGenerator[FakeNode]:
    """Have an agent open while inside; leaving is its sudden death: nothing is finished, nothing cleaned up."""
    with contextlib.suppress(CrashError):
        try:
            async with node(world) as opened:
                yield opened
                raise CrashError
        except BaseExceptionGroup as errors:
            if (rest := errors.split(CrashError)[1]) is not None:
                raise rest from None


def a_sandbox_id() -> str:
    return new_id("sbx", os.urandom)


def a_spec(world: World, **changes: object) -> SandboxSpec:
    image = world.images.held()[0]
    fields: dict[str, object] = {
        "image": ImageRef(id=image.id, reference="base", digest=image.digest),
        "egress": EgressSpec(mode="open"),
        "env": {"SECRET": "hunter2"},
        **changes,
    }
    return SandboxSpec(**fields)  # pyright: ignore[reportArgumentType] - by name


def an_ensure(
    world: World, *, generation: int = 1, epoch: int = 0, deadline_seconds: float = 60, **spec: object
) -> EnsureSandbox:
    return EnsureSandbox(
        generation=generation, epoch=epoch, deadline_seconds=deadline_seconds, spec=a_spec(world, **spec)
    )


def a_stop(*, generation: int = 2, epoch: int = 0, grace_seconds: float = 0, wait_seconds: float = 30) -> StopRequest:
    return StopRequest(generation=generation, epoch=epoch, grace_seconds=grace_seconds, wait_seconds=wait_seconds)


def a_patch(*, generation: int = 2, **changes: object) -> PatchSandbox:
    return PatchSandbox(generation=generation, epoch=0, **changes)  # pyright: ignore[reportArgumentType] - by name


async def problem_of(work: Coroutine[Any, Any, object]) -> ProblemError:
    """Return the problem that some work ends with."""
    try:
        await work
    except ProblemError as problem:
        return problem
    raise AssertionError("no problem")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so, as long as the test may take."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - any condition of the fakes
            await asyncio.sleep(0.001)
