"""The slot: a network of the sandbox's own, with egress blocked."""

from sandboxd.hooks.base import NOTHING, FailPoints, Parts
from sandboxd.network.base import Network, NetworkError


class SlotHook:
    """Holds a slot while the sandbox lives."""

    name = "slot"
    steps = ("slot.acquire", "slot.acquired", "slot.release", "slot.released")
    ready_steps = ("slot.acquire", "slot.acquired")
    # A slot that is handed on while a sentry still sits in it would put two sandboxes on one link.
    safe_after = frozenset({"launch"})
    claims_after = NOTHING

    def __init__(self, network: Network, points: FailPoints) -> None:
        self._network = network
        self._points = points

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("slot.acquire")
        slot = await self._network.acquire(parts.handle)
        parts.slot, parts.slot_index = slot, slot.index
        await self._points.reach("slot.acquired")

    async def make_ready(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def claim(self, parts: Parts) -> None:
        """It stays what it is: its address, and its name, which is the handle's."""

    async def recover(self, parts: Parts) -> None:
        if parts.slot_index is None:
            raise NetworkError("the ledger names no slot")
        parts.slot = await self._network.adopt(parts.handle, parts.slot_index)

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("slot.release")
        if parts.slot_index is not None:
            await self._network.release(parts.handle, parts.slot_index)
        parts.slot = None
        await self._points.reach("slot.released")
