"""Egress: the policy is true before anything of the sandbox runs."""

from sandboxd.contract.messages import EgressSpec
from sandboxd.hooks.base import NOTHING, FailPoints, Parts
from sandboxd.network.base import Network, NetworkError


class EgressHook:
    """Applies the policy to the slot. Releasing the slot blocks it again, so there is nothing to clean up."""

    name = "egress"
    steps = ("egress.apply", "egress.applied")
    ready_steps = steps
    safe_after = NOTHING
    claims_after = NOTHING

    def __init__(self, network: Network, points: FailPoints) -> None:
        self._network = network
        self._points = points

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("egress.apply")
        await self._apply(parts)
        await self._points.reach("egress.applied")

    async def make_ready(self, parts: Parts) -> None:
        """Block the slot by a policy, though it comes blocked: then nothing is left that a claim must look for."""
        if parts.slot is not None:
            await self._network.apply_egress(parts.slot, EgressSpec(mode="blocked"))

    async def claim(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def recover(self, parts: Parts) -> None:
        await self._apply(parts)

    async def cleanup(self, parts: Parts) -> None:
        """Leave it to the slot."""
        parts.credentials = None

    async def _apply(self, parts: Parts) -> None:
        if parts.slot is None:
            raise NetworkError("no slot to apply a policy to")
        await self._network.apply_egress(parts.slot, parts.spec.egress, parts.credentials)
        parts.egress_applied, parts.egress_closed = parts.spec.egress.generation, False
