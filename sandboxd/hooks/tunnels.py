"""Tunnels: the raw ones are open before anything of the sandbox runs, so that its first answer can name their ports."""

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import RAW_KINDS, NodeTunnel
from sandboxd.hooks.base import NOTHING, FailPoints, Parts
from sandboxd.network.base import Network, NetworkError, NoPublicPortError, Slot


class TunnelsHook:
    """Opens what the spec asks for and writes the public ports into it; the gateway's kinds need nothing here."""

    name = "tunnels"
    steps = ("tunnels.open", "tunnels.opened", "tunnels.close", "tunnels.closed")
    ready_steps = ("tunnels.open", "tunnels.opened")
    safe_after = NOTHING
    # What leads to the sandbox must meet its own policy for what it sends back.
    claims_after = frozenset({"egress"})

    def __init__(self, network: Network, points: FailPoints) -> None:
        self._network = network
        self._points = points

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("tunnels.open")
        await self._open(parts)
        await self._points.reach("tunnels.opened")

    async def make_ready(self, parts: Parts) -> None:
        """Nothing leads to a sandbox that is nobody's."""

    async def claim(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def recover(self, parts: Parts) -> None:
        await self._open(parts)

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("tunnels.close")
        for tunnel in parts.spec.tunnels:
            if tunnel.kind in RAW_KINDS:
                await self._network.close_tunnel(tunnel.id)
        await self._points.reach("tunnels.closed")

    async def _open(self, parts: Parts) -> None:
        if not parts.spec.tunnels:
            return
        if parts.slot is None:
            raise NetworkError("no slot for tunnels to lead to")
        opened = [await open_one(self._network, parts.slot, tunnel) for tunnel in parts.spec.tunnels]
        parts.spec = parts.spec.model_copy(update={"tunnels": opened})


async def open_one(network: Network, slot: Slot, tunnel: NodeTunnel) -> NodeTunnel:
    """Open a tunnel if it is the kernel's; `no_capacity` where there is no public port for it."""
    if tunnel.kind not in RAW_KINDS:
        return tunnel
    try:
        return await network.open_tunnel(slot, tunnel)
    except NoPublicPortError as error:
        raise ProblemError(
            "no_capacity",
            f"The node has no public port left: {error}.",
            hint="Close a tunnel, or try again in some minutes.",
            reason="port_range_exhausted",
            retry_after_seconds=60,
        ) from error
