"""The network on a Linux kernel: one router namespace, its slots, its uplink to the host.

Three threads act for it, each in a namespace: the router's makes and cleans slots, `births` there makes sockets and
changes the table in microseconds, the host's keeps the host's side. The event loop's thread only takes and gives.
"""

import asyncio
import contextlib
import queue
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

import structlog

from netpolicy.credentials import Credentials
from netpolicy.elements import Change
from netpolicy.firewall import Firewall
from netpolicy.flows import Flows
from netpolicy.platform import PLATFORM, Platform
from netpolicy.policy import Mode
from netpolicy.router_side import SLOT_PREFIX
from netpolicy.tunnels import RawTunnel
from sandboxd.contract.messages import EgressSpec
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.network import slots
from sandboxd.network.base import Names, NetworkError, NoNames, Slot
from sandboxd.network.failures import refusals
from sandboxd.network.host import HostSide
from sandboxd.network.links import Links, read_counters
from sandboxd.network.netns import NamespaceThread, Urgency, inside, is_pin, pin_here, unpin
from sandboxd.network.policies import SlotPolicies
from sandboxd.network.ports import PublicPorts
from sandboxd.network.router import Router, remove_all
from sandboxd.network.slots import SlotPlan
from sandboxd.network.tunnels import RawTunnels, Where

SANDBOX_RANGE = IPv4Network("10.231.0.0/16")
UPLINK_RANGE = IPv4Network("10.230.0.0/16")
TUNNEL_PORTS = range(20_000, 30_000)

_SOCKETS_READY = 64
_KEPT_PER_POOLED = 8
"""How many used slots are kept for each one that the pool aims at."""
_VACATE_SECONDS = 1.0
_VACATE_INTERVAL_SECONDS = 0.02

_LOOPBACK = IPv4Address("127.0.0.1")

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class KernelNetwork:
    """`Network` by namespaces, veths and nftables. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.

    Slots' addresses are seen by nobody outside the router namespace, so instances may share `sandbox_range`; each
    picks a free /31 of `uplink_range`. `host_netns` stands for the host where the program's own namespace does not.
    `platform` is what no sandbox reaches, beside the host's own addresses; `names` are the programs that decide names.
    """

    def __init__(  # noqa: PLR0913 - what the settings say of it
        self,
        *,
        instance: str,
        netns_dir: Path,
        sandbox_range: IPv4Network = SANDBOX_RANGE,
        uplink_range: IPv4Network = UPLINK_RANGE,
        pool_size: int = 8,
        tunnel_ports: range = TUNNEL_PORTS,
        host_netns: Path | None = None,
        platform: Platform = PLATFORM,
        names: Names | None = None,
    ) -> None:
        if sandbox_range.overlaps(uplink_range):
            raise NetworkError(f"the ranges {sandbox_range} and {uplink_range} overlap")
        self._netns_dir = netns_dir
        self._router_pin = netns_dir / "router"
        self._sandbox_range = sandbox_range
        self._pool_size = pool_size
        self._host_netns = host_netns
        self._host = HostSide(
            instance=instance, uplink_range=uplink_range, router_pin=self._router_pin, platform=platform
        )
        self._firewall = Firewall()
        self._ports = PublicPorts(tunnel_ports, netns_dir.parent / f"{netns_dir.name}-ports.json")
        self._tunnels = RawTunnels(self._host, self._ports, self._firewall, self._in_thread)
        self._flows = Flows()
        self._policies = SlotPolicies(self._firewall, self._flows, time.monotonic)
        self._platform = platform
        self._names: Names = names or NoNames()
        self._turns: dict[int, asyncio.Lock] = {}
        self._router: Router | None = None
        self._threads: dict[str, NamespaceThread] = {}
        self._held: dict[str, Slot] = {}
        self._sockets: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._refill: Future[None] | None = None
        self._sweeping = False
        self._node_addresses: frozenset[IPv4Address] = frozenset()
        self._public_address = _LOOPBACK

    @property
    def platform(self) -> Platform:
        return self._platform_with(self._node_addresses)

    @property
    def public_address(self) -> str:
        return str(self._public_address)

    async def start(self, in_use: dict[str, int], tunnels: Mapping[str, Sequence[NodeTunnel]] | None = None) -> None:
        try:
            await self._start(in_use, tunnels or {})
        except BaseException:
            await self._let_go()
            raise

    async def acquire(self, sandbox_id: str) -> Slot:
        router = self._running()
        while sandbox_id not in self._held:
            with contextlib.suppress(IndexError):
                self._held[sandbox_id] = router.ready.popleft()
                break
            # What is made goes to the ready ones first: a caller that is cancelled here loses nothing.
            await self._thread("router").run(router.make_ready)
        self._refill_pool()
        return self._held[sandbox_id]

    async def adopt(self, sandbox_id: str, index: int) -> Slot:
        router = self._running()
        held = self._held.get(sandbox_id)
        if held is None or held.index != index:
            raise NetworkError(f"slot {index} of {sandbox_id} does not exist")
        slot = await self._thread("router").run(partial(router.check, index))
        self._held[sandbox_id] = slot
        return slot

    async def apply_egress(self, slot: Slot, egress: EgressSpec, credentials: Credentials | None = None) -> int:
        policy = egress.policy()
        async with self._turn(slot):
            try:
                # The programs first: what they forbid is closed before the kernel opens anything to them.
                judged = None if policy.mode is Mode.BLOCKED else policy
                closed = await self._names.apply(slot.address, judged, credentials)
                closed += await self._thread("births").run(partial(self._policies.apply, slot, policy))
            except BaseException:
                # Cut off in between, it may be either policy: until the next one it is none.
                await self._close(slot)
                raise
            finally:
                self._sweep_later()
        return closed

    async def learn(self, address: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        slot = next((slot for slot in self._held.values() if slot.address == address), None)
        if slot is None:
            raise NetworkError(f"no sandbox is at {address}")
        await self._thread("births").run(partial(self._policies.learn, slot, name, tuple(addresses), seconds))

    async def open_tunnel(self, slot: Slot, tunnel: NodeTunnel) -> NodeTunnel:
        self._running()
        if not any(held.index == slot.index for held in self._held.values()):
            raise NetworkError(f"slot {slot.index} is nobody's")
        return await self._tunnels.open(slot, tunnel)

    async def close_tunnel(self, tunnel_id: str) -> None:
        self._running()
        await self._tunnels.shut(tunnel_id)

    async def tunnel_bytes(self) -> dict[str, tuple[int, int]]:
        return await self._tunnels.counted()

    async def release(self, sandbox_id: str, index: int) -> None:
        router = self._running()
        slot = self._held.get(sandbox_id)
        if slot is None or slot.index != index:
            return
        await self._tunnels.shut_all(index)
        async with self._turn(slot):
            blocked = await self._close(slot, of_the_node=True)
            self._sweep_later()
        if blocked:
            blocked = await self._vacated(slot)
        keep = blocked and len(router.ready) < self._pool_size * _KEPT_PER_POOLED
        # Removing a link takes the kernel some tens of milliseconds: nobody who waits for a slot waits for that.
        urgency = Urgency.CALLER_WAITS if keep else Urgency.BACKGROUND
        await self._thread("router").run(partial(self._give_back, router, sandbox_id, slot, keep=keep), urgency)

    def open_socket(self) -> socket.socket:
        births = self._thread("births")
        births.submit(self._bear_socket)
        try:
            return self._sockets.get_nowait()
        except queue.Empty:
            # More were asked for at once than are kept: making one takes some ten microseconds.
            return self._sockets.get(timeout=5)

    def in_router(self, job: Callable[[], _T]) -> _T:
        """Do something short in the router namespace and wait. Blocks; for threads."""
        return self._thread("births").call(job)

    def counters(self) -> dict[str, tuple[int, int]]:
        return read_counters(self._thread("router").directory / "net" / "dev", SLOT_PREFIX)

    async def repair(self) -> None:
        """Also fills the pool again where that has failed."""
        router = self._running()
        await self._thread("host").run(self._host.repair)
        self._public_address = await self._thread("host").run(self._host.public_address) or _LOOPBACK
        addresses = await self._thread("host").run(self._host.addresses)
        if addresses != self._node_addresses:
            await self._thread("router").run(partial(router.set_node_addresses, self._node_addresses, addresses))
            await self._set_platform(addresses)
        self._refill_pool()

    async def problems(self) -> list[str]:
        return await self._thread("host").run(self._host.problems)

    async def stop(self, *, keep: bool) -> None:
        await self._let_go()
        if not keep:
            remover = NamespaceThread("sandlot-net-remove", self._host_netns)
            await asyncio.to_thread(remover.start)
            try:
                await remover.run(self._remove_everything)
            finally:
                await asyncio.to_thread(remover.close)

    async def _start(self, in_use: dict[str, int], tunnels: Mapping[str, Sequence[NodeTunnel]]) -> None:
        if self._threads:
            raise NetworkError("the network is started already")
        self._netns_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        host = await self._start_thread("host", self._host_netns)
        await host.run(self._ensure_router)
        births = await self._start_thread("births", self._router_pin)
        thread = await self._start_thread("router", self._router_pin)
        addresses = await host.run(self._host.addresses)
        plan = SlotPlan(self._netns_dir, self._sandbox_range, await host.run(self._host.mtu))
        router = await thread.run(
            lambda: Router(
                plan,
                lambda change: births.call(partial(self._apply, change)),
                lambda slot: births.call(partial(self._policies.forget, slot)),
            )
        )
        self._router = router
        leading = {in_use[owner]: wanted for owner, wanted in tunnels.items() if owner in in_use}

        def adopted(kept: list[Slot]) -> list[RawTunnel]:
            return self._tunnels.adopt((slot, tunnel) for slot in kept for tunnel in leading.get(slot.index, ()))

        platform = self._platform_with(addresses)
        existing = await thread.run(partial(router.set_up, set(in_use.values()), platform, adopted))
        await births.run(partial(self._take_over, [plan.slot(index) for index in sorted(existing)]))
        await self._set_platform(addresses)
        # The table stands before the way out does.
        await host.run(self._host.set_up)
        self._public_address = await host.run(self._host.public_address) or _LOOPBACK
        after = await host.run(self._host.addresses)
        await thread.run(partial(router.set_node_addresses, addresses, after))
        await self._set_platform(after)
        self._held = {owner: plan.slot(index) for owner, index in in_use.items() if index in existing}
        for _ in range(_SOCKETS_READY):
            births.submit(self._bear_socket)
        self._refill_pool()

    async def _start_thread(self, name: str, pin: Path | None) -> NamespaceThread:
        thread = NamespaceThread(f"sandlot-net-{name}", pin)
        await asyncio.to_thread(thread.start)
        self._threads[name] = thread
        return thread

    async def _close(self, slot: Slot, *, of_the_node: bool = False) -> bool:
        """Let a slot reach nothing. False: it could not be done but by taking its link down."""
        with contextlib.suppress(NetworkError):
            await self._names.apply(slot.address, None)
        try:
            await self._thread("births").run(partial(self._policies.close, slot, of_the_node=of_the_node))
        except NetworkError as error:
            _log.error("slot_not_closed", slot=slot.index, error=str(error))
            with contextlib.suppress(NetworkError):
                await self._thread("router").run(partial(self._running().cut, slot))
            return False
        return True

    def _turn(self, slot: Slot) -> asyncio.Lock:
        """One at a time changes what a slot may reach."""
        return self._turns.setdefault(slot.index, asyncio.Lock())

    async def _set_platform(self, node_addresses: frozenset[IPv4Address]) -> None:
        self._node_addresses = node_addresses
        platform = self._platform_with(node_addresses)
        self._policies.platform = platform
        await self._names.set_platform(platform)

    def _platform_with(self, node_addresses: frozenset[IPv4Address]) -> Platform:
        return replace(self._platform, node_addresses=node_addresses)

    async def _vacated(self, slot: Slot) -> bool:
        """Wait for the sandbox's last sockets: the kernel closes them a moment after its processes are gone."""
        with contextlib.suppress(TimeoutError, NetworkError):
            async with asyncio.timeout(_VACATE_SECONDS):
                while not await self._thread("router").run(partial(slots.is_empty, slot)):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(_VACATE_INTERVAL_SECONDS)
                return True
        return False

    def _thread(self, name: str) -> NamespaceThread:
        thread = self._threads.get(name)
        if thread is None:
            raise NetworkError("the network is not started")
        return thread

    async def _in_thread(self, where: Where, job: Callable[[], _T], /) -> _T:
        return await self._thread(where).run(job)

    def _running(self) -> Router:
        if self._router is None:
            raise NetworkError("the network is not started")
        return self._router

    async def _let_go(self) -> None:
        """End the threads and close what they had; the kernel keeps the rest."""
        threads, self._threads = self._threads, {}
        for name in ("router", "births", "host"):
            if name in threads:
                await asyncio.to_thread(threads[name].close)
        if self._router is not None:
            self._router.close()
            self._router = None
        self._firewall.close()
        self._flows.close()
        self._host.close()
        self._tunnels.close()
        self._ports.close()
        self._held = {}
        while True:
            try:
                self._sockets.get_nowait().close()
            except queue.Empty:
                break

    def _sweep_later(self) -> None:
        """Have what older policies have left removed when nobody waits, with pauses for those who come next."""
        if self._sweeping:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NetworkError):
            done = self._thread("births").submit(self._policies.sweep, Urgency.BACKGROUND)
            self._sweeping = True
            done.add_done_callback(partial(_tell, loop, self._swept))

    def _swept(self, done: Future[float | None]) -> None:
        pause = None if done.cancelled() or done.exception() is not None else done.result()
        if pause is None:
            self._sweeping = False
        else:
            asyncio.get_running_loop().call_later(pause, self._sweep_on)

    def _sweep_on(self) -> None:
        self._sweeping = False
        self._sweep_later()

    def _refill_pool(self) -> None:
        """Make slots in the background until there are enough, one after the other, once half of them are gone.

        A sandbox that ends gives a clean one back, which costs a fraction of making one; and none is made beside each
        start, when the processors are wanted most.
        """
        router = self._running()
        few = len(router.ready) <= self._pool_size // 2 and len(router.ready) < self._pool_size
        if few and (self._refill is None or self._refill.done()):
            self._refill = self._thread("router").submit(partial(self._refill_one, router), Urgency.BACKGROUND)

    # What follows runs in the threads.

    def _refill_one(self, router: Router) -> None:
        if len(router.ready) >= self._pool_size:
            return
        try:
            router.make_ready()
        except NetworkError as error:
            # The next acquire or repair tries again, and acquire tells its caller.
            _log.warning("slot_pool_not_filled", error=str(error))
            return
        with contextlib.suppress(NetworkError):
            self._refill = self._thread("router").submit(partial(self._refill_one, router), Urgency.BACKGROUND)

    def _give_back(self, router: Router, sandbox_id: str, slot: Slot, *, keep: bool) -> None:
        # Asked twice for one sandbox, the second finds it done.
        if self._held.get(sandbox_id) is not slot:
            return
        router.give_back(slot, keep=keep)
        self._held.pop(sandbox_id, None)

    def _take_over(self, kept: list[Slot]) -> None:
        with refusals("the router's table cannot be read"):
            self._policies.take_over(kept)

    def _apply(self, change: Change) -> None:
        with refusals("the router's table cannot be changed"):
            self._firewall.apply(change)

    def _bear_socket(self) -> None:
        born = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._sockets.put(born)

    def _ensure_router(self) -> None:
        if not is_pin(self._router_pin):
            with inside(None):
                pin_here(self._router_pin)

    def _remove_everything(self) -> None:
        self._host.remove()
        if is_pin(self._router_pin):
            with inside(self._router_pin), Links() as links:
                remove_all(self._netns_dir, links)
        else:
            with inside(None), Links() as links:
                remove_all(self._netns_dir, links)
        unpin(self._router_pin)
        self._ports.forget()
        self._host.close()


def _tell(loop: asyncio.AbstractEventLoop, told: Callable[[Future[_T]], None], done: Future[_T]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(told, done)
