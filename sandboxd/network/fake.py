"""A network in memory, which fails when told to. It keeps the contract, and reaches nothing."""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from netpolicy.platform import PLATFORM
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import NetworkError, Slot


class FakeNetwork:
    """`Network` without a kernel. What `kernel` holds outlives a `stop(keep=True)`: share it to restart a node."""

    def __init__(self, *, slots: int = 1024, kernel: dict[int, Slot] | None = None) -> None:
        self.slots: dict[int, Slot] = kernel if kernel is not None else {}
        """Every slot that exists, by index; free ones are not kept."""
        self.egress: dict[int, EgressSpec] = {}
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
        self._failures: dict[str, list[Exception]] = {}
        self._started = False

    def fail(self, operation: str, error: Exception | None = None, times: int = 1) -> None:
        """Let the next calls of an operation raise instead of doing anything."""
        self._failures.setdefault(operation, []).extend(
            [error or NetworkError(f"{operation} was told to fail")] * times
        )

    async def start(self, in_use: dict[str, int]) -> None:
        self._check("start", started=False)
        for index in set(self.slots) - set(in_use.values()):
            del self.slots[index]
        self.held = {owner: index for owner, index in in_use.items() if index in self.slots}
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

    async def apply_egress(self, slot: Slot, egress: EgressSpec) -> int:
        egress.policy()
        try:
            self._check("apply_egress")
        except Exception:
            self.egress[slot.index] = EgressSpec(mode="blocked")
            raise
        changed = self.egress.get(slot.index) != egress
        self.egress[slot.index] = egress
        closed, self.closes = self.closes, 0
        return closed if changed else 0

    async def learn(self, address: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        self._check("learn")
        index = next((slot.index for slot in self.slots.values() if slot.address == address), None)
        if index is None:
            raise NetworkError(f"no sandbox is at {address}")
        self.learned.setdefault(index, []).append((name, tuple(addresses), seconds))

    async def release(self, sandbox_id: str, index: int) -> None:
        self._check("release")
        if self.held.get(sandbox_id) == index:
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
