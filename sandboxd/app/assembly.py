"""The node put together from its settings: the one place that knows which part is real."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog

from sandboxd.app.failures import FailureStore
from sandboxd.app.identity import Identity, read_identity
from sandboxd.app.image_jobs import ImageWork, image_work
from sandboxd.app.metrics import Meters
from sandboxd.app.naming import Naming, decision_book, name_programs, named, owners
from sandboxd.app.ways import NodeWays
from sandboxd.cgroups import Cgroups
from sandboxd.clock import Clock, HostClock
from sandboxd.config import NodeConfig
from sandboxd.contract.messages import Resources, RuntimeInfo
from sandboxd.contract.ready import ReadyKey, ready_key
from sandboxd.guest_client.http import HttpGuest
from sandboxd.history.keeper import Keeper
from sandboxd.history.meters import HostMeters
from sandboxd.history.sampler import Sampler
from sandboxd.history.samples import SampleStore
from sandboxd.history.shelf import Bounds, Shelf
from sandboxd.hooks.base import FailPoints, Hook, NoFailPoints
from sandboxd.hooks.egress import EgressHook
from sandboxd.hooks.entrypoint import EntrypointHook
from sandboxd.hooks.guest import GuestHook
from sandboxd.hooks.launch import LaunchHook
from sandboxd.hooks.rootfs import RootfsHook
from sandboxd.hooks.slot import SlotHook
from sandboxd.hooks.trust import TrustHook
from sandboxd.hooks.tunnels import TunnelsHook
from sandboxd.images.base import Images
from sandboxd.images.fake import FakeImages
from sandboxd.images.opening import image_store
from sandboxd.images.store import ImageStore, config_from_json
from sandboxd.ledger.base import Ledger
from sandboxd.ledger.sqlite import SqliteLedger
from sandboxd.manager.admission import Admission, AdmissionRules
from sandboxd.manager.host import FakeHost, Host, LinuxHost, is_full
from sandboxd.manager.manager import Manager
from sandboxd.manager.pool import PoolPlan
from sandboxd.manager.reports import NodeFacts, Reporter
from sandboxd.manager.scrub import Scrub
from sandboxd.manager.startup import StartUp
from sandboxd.manager.targets import PoolRules
from sandboxd.manager.tunnels import Tunnels
from sandboxd.manager.upkeep import Upkeep
from sandboxd.network.authorities import authorities
from sandboxd.network.base import Network
from sandboxd.network.fake import FakeNetwork
from sandboxd.network.kernel import KernelNetwork
from sandboxd.packs.keys import PUBLIC
from sandboxd.runner.tools import Tools
from sandboxd.runtime.base import Runtime
from sandboxd.runtime.bundle import limits
from sandboxd.runtime.fake import FakeRuntime
from sandboxd.runtime.runsc import RunscRuntime
from sandboxd.trust import TrustStore

_log = structlog.get_logger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What differs between the real thing and the fakes."""

    runtime: Runtime
    network: Network
    images: Images
    ledger: Ledger
    host: Host
    clock: Clock
    points: FailPoints
    naming: Naming | None = None
    """None: nobody decides names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is open."""

    config: NodeConfig
    parts: Parts
    manager: Manager
    reporter: Reporter
    upkeep: Upkeep
    tunnels: Tunnels
    scrub: Scrub | None
    meters: Meters
    trust: TrustStore
    ways: NodeWays
    images: ImageWork


def real_parts(config: NodeConfig) -> Parts:
    """Make the parts that the settings ask for."""
    for directory, mode in (
        (config.data_dir, 0o755),
        (config.run_dir, 0o755),
        (config.upper_dir, 0o700),
        (config.history_dir, 0o700),
    ):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(mode)  # whatever the umask: others' directories are below
    ledger = SqliteLedger(config.data_dir / "ledger.db")
    if config.runtime == "fake":
        return Parts(
            runtime=FakeRuntime(),
            network=FakeNetwork(slots=100_000),
            images=FakeImages(),
            ledger=ledger,
            host=FakeHost(),
            clock=HostClock(),
            points=NoFailPoints(),
        )
    cgroups = Cgroups(config.instance)
    programs = name_programs(config, cgroups)
    network = KernelNetwork(
        instance=config.instance,
        netns_dir=config.run_dir / "runsc" / "netns",
        sandbox_range=config.sandbox_range,
        uplink_range=config.uplink_range,
        pool_size=config.slot_pool_size,
        tunnel_ports=config.public_ports,
        platform=config.platform,
        names=programs,
    )
    runtime = RunscRuntime(
        runsc=config.runsc_path,
        run_dir=config.run_dir,
        cgroups=cgroups,
        connect=lambda address, token: HttpGuest(address, token, open_socket=network.open_socket),
        reserve_bytes=config.memory_reserve_mib * _MIB,
    )
    return Parts(
        runtime=runtime,
        network=network,
        images=image_store(config),
        ledger=ledger,
        host=LinuxHost(config.upper_dir),
        clock=HostClock(),
        points=NoFailPoints(),
        naming=Naming(programs, network),
    )


def make_manager(config: NodeConfig, parts: Parts, identity: Identity, boot_id: str) -> Manager:
    """Make the manager over any parts."""
    shelf = Shelf(
        config.sandbox_logs_dir,
        Bounds(log_bytes=config.sandbox_log_mib * _MIB, all_bytes=config.log_disk_mib * _MIB, days=config.log_days),
    )

    def tools(changed: Callable[[str], None]) -> Tools:
        return Tools(
            runtime=parts.runtime,
            hooks=_hooks(config, parts),
            ledger=parts.ledger,
            network=parts.network,
            clock=parts.clock,
            points=parts.points,
            changed=changed,
            keeper=Keeper(
                shelf,
                parts.clock,
                bytes_per_second=config.log_kib_per_second * 1024,
                disk_full=lambda: _is_low(parts.host, config.disk_watermark_mib),
            ),
            sampler=Sampler(
                SampleStore(config.metrics_path, config.metrics_disk_mib * _MIB),
                HostMeters(parts.runtime, parts.network, config.upper_dir if config.runtime == "runsc" else None),
                parts.clock,
            ),
            decisions=decision_book(config, parts.clock),
            disk_full=lambda: is_full(parts.host),
            drain_seconds=config.stop_drain_seconds,
            backstop_margin_seconds=config.backstop_margin_seconds,
            keep_failure=FailureStore(config.data_dir / "failures"),
            authorities=_authorities(config),
        )

    rules = AdmissionRules(
        max_sandboxes=config.max_sandboxes,
        cpu_overcommit=config.cpu_overcommit,
        memory_overcommit=config.memory_overcommit,
        disk_overcommit=config.disk_overcommit,
        memory_reserve_mib=config.memory_reserve_mib,
        memory_floor_mib=config.memory_floor_mib,
        disk_reserve_mib=config.disk_reserve_mib,
    )
    manager = Manager(
        tools,
        Admission(rules, parts.host, _memory_need_mib),
        pool=_pool_plan(config, parts.images),
        node_key=identity.key,
        boot_id=boot_id,
        max_starts=config.max_starts,
        exit_seconds=config.exit_seconds,
    )
    manager.tools.decisions.owners = lambda: owners(manager)
    return manager


@asynccontextmanager
async def opened(config: NodeConfig, parts: Parts) -> AsyncGenerator[Node]:
    """Have a node open while inside: everything of an earlier agent is adopted or buried by then.

    Leaving lets sandboxes run on.
    """
    identity = read_identity(config.data_dir, os.urandom)
    boot_id = _BOOT_ID.read_text().strip()
    manager = make_manager(config, parts, identity, boot_id)
    await parts.runtime.open()
    try:
        found = await parts.runtime.version()
        await _open_images(config, parts.images)
        start_up = StartUp(parts.network, config.upper_dir)
        work = image_work(config, parts.images, manager)
        async with manager.opened(start_up), named(parts.naming, manager.tools.decisions), work.jobs.opened():
            facts = NodeFacts(
                node_id=identity.node_id,
                name=config.node_name,
                version=version("sandlot-server"),
                runtime=RuntimeInfo(name=found.name, version=found.version, platform=found.platform),
                boot_id=boot_id,
                incarnation=os.urandom(8).hex(),
                address=f"unix:{config.node_socket_path}",
                tunnel_host=lambda: config.tunnel_host or parts.network.public_address,
            )
            tunnels = Tunnels(manager, parts.network)
            ways = NodeWays(tunnels.of, manager.runners.keys)
            tunnels.watch(ways.look_again)
            trust = TrustStore(parts.clock, silence_seconds=config.token_silence_seconds)
            yield Node(
                config=config,
                parts=parts,
                manager=manager,
                reporter=Reporter(manager, parts.images, facts, trust),
                upkeep=Upkeep(parts.network, parts.host, disk_watermark_mib=config.disk_watermark_mib),
                tunnels=tunnels,
                scrub=_scrub(config, parts.images),
                meters=Meters(manager, parts.host, version=facts.version, runtime=found.version),
                trust=trust,
                ways=ways,
                images=work,
            )
    finally:
        await asyncio.to_thread(manager.tools.sampler.close)
        await parts.network.stop(keep=True)
        await parts.runtime.close()


def _scrub(config: NodeConfig, images: Images) -> Scrub | None:
    return Scrub(images, every_seconds=config.image_scrub_hours * 3600) if isinstance(images, ImageStore) else None


def _memory_need_mib(resources: Resources) -> int:
    """Return what a sandbox is allowed in all, the stated overhead of running it included."""
    return -(-limits(resources).memory_bytes // _MIB)


def _pool_plan(config: NodeConfig, images: Images) -> PoolPlan:
    names = {config.pool_image, f"{config.pool_image}:latest"}

    def standing() -> dict[ReadyKey, int]:
        held = next((image for image in images.held() if names.intersection(image.names)), None)
        return {} if held is None else {ready_key(held.id, Resources()): config.pool_size}

    return PoolPlan(
        rules=PoolRules(most=config.pool_max, bridge_seconds=config.pool_bridge_seconds),
        standing=standing,
        images=lambda: {image.id for image in images.held()},
        boots=config.pool_boots,
        pause_seconds=config.pool_pause_seconds,
    )


def _is_low(host: Host, watermark_mib: int) -> bool:
    """Tell whether the disk is so full that a sandbox would have to end for it: logs of ended ones go first."""
    try:
        return host.disk_free_mib() < watermark_mib
    except OSError:
        return False


def _hooks(config: NodeConfig, parts: Parts) -> tuple[Hook, ...]:
    margin = config.backstop_margin_seconds
    return (
        SlotHook(parts.network, parts.points),
        RootfsHook(parts.images, config.upper_dir, parts.points),
        EgressHook(parts.network, parts.points),
        TunnelsHook(parts.network, parts.points),
        LaunchHook(
            parts.runtime,
            parts.clock,
            parts.points,
            upper_dir=config.upper_dir,
            guest_dir=config.guest_path,
            backstop_margin_seconds=margin,
        ),
        GuestHook(
            parts.runtime,
            parts.clock,
            os.urandom,
            parts.points,
            resolvers=config.resolvers,
            backstop_margin_seconds=margin,
        ),
        TrustHook(parts.runtime, parts.points, authorities=_authorities(config)),
        EntrypointHook(parts.runtime, parts.points),
    )


def _authorities(config: NodeConfig) -> str:
    return authorities(config.inject_authorities_file) if config.runtime != "fake" else ""


async def _open_images(config: NodeConfig, images: Images) -> None:
    """Open the store and register the image that set-up made, if it did."""
    if not isinstance(images, ImageStore):
        return
    await images.open()
    described = config.cache_dir / "images" / "base.json"
    if not described.is_file():
        _log.warning("no default image", path=str(described))
        return
    document = json.loads(described.read_bytes())
    file = (config.cache_dir / "images" / "base.erofs").resolve()
    defaults = config_from_json(document["config"])
    await images.register_file(file, [document["name"]], defaults, document["digest"], owes=PUBLIC)
