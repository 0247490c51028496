"""A network in memory, which fails when told to. It keeps the contract, and reaches nothing."""

import socket
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from netpolicy.credentials import Credentials
from netpolicy.platform import PLATFORM
from sandboxd.contract.messages import EgressSpec
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.network.base import NetworkError, NoPublicPortError, Slot

_TUNNEL_PORTS = range(20_000, 30_000)


class FakeNetwork:
    """`Network` without a kernel. What `kernel` holds outlives a `stop(keep=True)`: share it to restart a node."""

    def __init__(
        self, *, slots: int = 1024, kernel: dict[int, Slot] | None = None, tunnel_ports: range = _TUNNEL_PORTS
    ) -> None:
        self.slots: dict[int, Slot] = kernel if kernel is not None else {}
        """Every slot that exists, by index; free ones are not kept."""
        self.egress: dict[int, EgressSpec] = {}
        self.credentials: dict[int, Credentials | None] = {}
        self.tunnels: dict[str, tuple[int, NodeTunnel]] = {}
        """What is carried, by tunnel, with its slot."""
        self.rested: set[int] = set()
        """Public ports that were used; none is used again."""
        self.carried: dict[str, tuple[int, int]] = {}
        """What `tunnel_bytes` answers."""
        self.held: dict[str, int] = {}
        self.bytes: dict[str, tuple[int, int]] = {}
        """What `counters` answers."""
        self.closes = 0
        """What the next `apply_egress` that changes something answers."""
        self.learned: dict[int, list[tuple[str, tuple[IPv4Address, ...], int]]] = {}
        self.repairs = 0
        self.complaints: list[str] = []
        """What `problems` answers."""
        self.platform = PLATFORM
        self._limit = slots
        self._ports = tunnel_ports
        self._failures: dict[str, list[Exception]] = {}
        self._started = False

    def fail(self, operation: str, error: Exception | None = None, times: int = 1) -> None:
        """Let the next calls of an operation raise instead of doing anything."""
        self._failures.setdefault(operation, []).extend(
            [error or NetworkError(f"{operation} was told to fail")] * times
        )

    @property
    def public_address(self) -> str:
        return "127.0.0.1"

    async def start(self, in_use: dict[str, int], tunnels: Mapping[str, Sequence[NodeTunnel]] | None = None) -> None:
        self._check("start", started=False)
        for index in set(self.slots) - set(in_use.values()):
            del self.slots[index]
        self.held = {owner: index for owner, index in in_use.items() if index in self.slots}
        self.tunnels = {
            tunnel.id: (index, tunnel)
            for owner, index in self.held.items()
            for tunnel in (tunnels or {}).get(owner, ())
            if tunnel.public_port is not None
        }
        self._started = True

    async def acquire(self, sandbox_id: str) -> Slot:
        self._check("acquire")
        if sandbox_id not in self.held:
            index = next((index for index in range(self._limit) if index not in self.slots), None)
            if index is None:
                raise NetworkError(f"all {self._limit} slots are in use")
            self.slots[index] = _slot(index)
            self.egress[index] = EgressSpec(mode="blocked")
            self.held[sandbox_id] = index
        return self.slots[self.held[sandbox_id]]

    async def adopt(self, sandbox_id: str, index: int) -> Slot:
        self._check("adopt")
        if self.held.get(sandbox_id) != index or index not in self.slots:
            raise NetworkError(f"slot {index} of {sandbox_id} does not exist")
        return self.slots[index]

    async def apply_egress(self, slot: Slot, egress: EgressSpec, credentials: Credentials | None = None) -> int:
        egress.policy()
        try:
            self._check("apply_egress")
        except Exception:
            self.egress[slot.index] = EgressSpec(mode="blocked")
            raise
        changed = self.egress.get(slot.index) != egress
        self.egress[slot.index] = egress
        self.credentials[slot.index] = credentials
        closed, self.closes = self.closes, 0
        return closed if changed else 0

    async def learn(self, address: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        self._check("learn")
        index = next((slot.index for slot in self.slots.values() if slot.address == address), None)
        if index is None:
            raise NetworkError(f"no sandbox is at {address}")
        self.learned.setdefault(index, []).append((name, tuple(addresses), seconds))

    async def open_tunnel(self, slot: Slot, tunnel: NodeTunnel) -> NodeTunnel:
        self._check("open_tunnel")
        known = self.tunnels.get(tunnel.id)
        port = known[1].public_port if known is not None else tunnel.public_port
        if port is None:
            taken = {each.public_port for _, each in self.tunnels.values()} | self.rested
            port = next((port for port in self._ports if port not in taken), None)
        if port is None:
            raise NoPublicPortError("all public ports are in use")
        placed = tunnel.model_copy(update={"public_port": port})
        self.tunnels[tunnel.id] = (slot.index, placed)
        return placed

    async def close_tunnel(self, tunnel_id: str) -> None:
        self._check("close_tunnel")
        gone = self.tunnels.pop(tunnel_id, None)
        if gone is not None and gone[1].public_port is not None:
            self.rested.add(gone[1].public_port)

    async def tunnel_bytes(self) -> dict[str, tuple[int, int]]:
        return {tunnel_id: self.carried.get(tunnel_id, (0, 0)) for tunnel_id in self.tunnels}

    async def release(self, sandbox_id: str, index: int) -> None:
        self._check("release")
        if self.held.get(sandbox_id) == index:
            for tunnel_id in [each for each, (slot, _) in self.tunnels.items() if slot == index]:
                await self.close_tunnel(tunnel_id)
            del self.held[sandbox_id]
            self.slots.pop(index, None)
            self.egress.pop(index, None)
            self.learned.pop(index, None)

    def open_socket(self) -> socket.socket:
        self._check("open_socket")
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def counters(self) -> dict[str, tuple[int, int]]:
        return dict(self.bytes)

    async def repair(self) -> None:
        self._check("repair")
        self.repairs += 1

    async def problems(self) -> list[str]:
        self._check("problems")
        return list(self.complaints)

    async def stop(self, *, keep: bool) -> None:
        self._check("stop", started=False)
        self._started = False
        self.held = {}
        if not keep:
            self.slots.clear()
            self.egress.clear()

    def _check(self, operation: str, *, started: bool = True) -> None:
        failures = self._failures.get(operation)
        if failures:
            raise failures.pop(0)
        if started and not self._started:
            raise NetworkError("the network is not started")


def _slot(index: int) -> Slot:
    return Slot(
        index=index,
        netns_path=Path(f"/nowhere/slot{index}"),
        interface=f"sbx{index}",
        address=f"10.231.{index // 128 % 256}.{index % 128 * 2 + 1}",
        peer=f"10.231.{index // 128 % 256}.{index % 128 * 2}",
        mtu=1500,
    )
