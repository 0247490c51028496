"""Raw tunnels of one node: the same thing in three places, opened and closed in an order that leaves nothing half-open.

The router's table, the host's table and the public port. What comes in meets the host's first, so that is changed last
when a tunnel opens, and first when it closes.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Literal, Protocol, TypeVar, cast

import structlog

from netpolicy.elements import Change
from netpolicy.firewall import Firewall
from netpolicy.flows import Flow, Flows, answers_to
from netpolicy.tunnels import IN, OUT, RawTunnel, router_elements, source_elements
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.network.base import NetworkError, Slot
from sandboxd.network.failures import refusals
from sandboxd.network.host import HostSide
from sandboxd.network.ports import PublicPorts

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
Where = Literal["host", "births", "router"]


class Threads(Protocol):
    """Does a job in a namespace's thread."""

    def __call__(self, where: Where, job: Callable[[], _T], /) -> Awaitable[_T]:
        """Do it, and return what it returns."""
        ...


class RawTunnels:
    """What the kernel carries now. The methods are the event loop's; what they do is done in the threads."""

    def __init__(self, host: HostSide, ports: PublicPorts, firewall: Firewall, run: Threads) -> None:
        """`firewall` is the one of the thread `births`."""
        self._host = host
        self._ports = ports
        self._firewall = firewall
        self._run = run
        self._open: dict[str, RawTunnel] = {}
        self._changing = asyncio.Lock()
        self._inner = Flows()
        self._outer = Flows()

    def close(self) -> None:
        """Let go of everything; the kernel keeps the tunnels."""
        self._open = {}
        self._inner.close()
        self._outer.close()

    def adopt(self, tunnels: Iterable[tuple[Slot, NodeTunnel]]) -> list[RawTunnel]:
        """Take as open what the tables are about to be loaded with."""
        self._open = {
            tunnel.id: raw(slot, tunnel, tunnel.public_port)
            for slot, tunnel in tunnels
            if tunnel.kind in ("tcp", "udp") and tunnel.public_port is not None
        }
        self._host.tunnels = tuple(self._open.values())
        return list(self._open.values())

    async def open(self, slot: Slot, tunnel: NodeTunnel) -> NodeTunnel:
        """Carry a tunnel, with its public port or a fresh one; again, with other sources: nobody else is left in it."""
        async with self._changing:
            known = self._open.get(tunnel.id)
            if known is not None:
                await self._run("host", partial(self._ports.keep, known.public_port))
                await self._narrow(tunnel.id, known, raw(slot, tunnel, known.public_port))
                return _placed(tunnel, known.public_port)
            port = tunnel.public_port
            if port is None:
                port = await self._run("host", self._ports.take)
            else:
                await self._run("host", partial(self._ports.keep, port))
            new = raw(slot, tunnel, port)
            self._open[tunnel.id] = new
            try:
                await self._run("births", partial(self._apply, Change(add=router_elements(new))))
                await self._run("host", partial(self._tell_host, new, present=True))
            except BaseException:
                await self._close(tunnel.id)
                raise
            return _placed(tunnel, port)

    async def shut(self, tunnel_id: str) -> None:
        """Carry it no more: its connections are dead when this returns. Idempotent."""
        async with self._changing:
            await self._close(tunnel_id)

    async def shut_all(self, slot: int) -> None:
        """Carry nothing more to a slot."""
        for tunnel_id in [tunnel_id for tunnel_id, tunnel in self._open.items() if tunnel.slot == slot]:
            await self.shut(tunnel_id)

    async def counted(self) -> dict[str, tuple[int, int]]:
        """Return the bytes that went in and came out, by tunnel, since the tables were loaded."""
        if not self._open:
            return {}
        going_in, coming_out = await self._run("births", lambda: (self._counts(IN), self._counts(OUT)))
        return {
            tunnel_id: (going_in.get(tunnel.mark, 0), coming_out.get(tunnel.mark, 0))
            for tunnel_id, tunnel in self._open.items()
        }

    async def _narrow(self, tunnel_id: str, old: RawTunnel, new: RawTunnel) -> None:
        if new == old:
            return
        if (new.slot, new.port, new.protocol) != (old.slot, old.port, old.protocol):
            raise NetworkError(f"tunnel {tunnel_id} leads to another port already")
        change = Change(remove=source_elements(old), add=source_elements(new))
        await self._run("births", partial(self._apply, change))
        self._open[tunnel_id] = new
        await self._end_flows(new, lambda flow: not new.allows(flow.source))

    async def _close(self, tunnel_id: str) -> None:
        tunnel = self._open.get(tunnel_id)
        if tunnel is None:
            return
        await self._run("host", partial(self._tell_host, tunnel, present=False))
        await self._run("births", partial(self._apply, Change(remove=router_elements(tunnel))))
        await self._end_flows(tunnel, lambda _: True)
        await self._run("host", partial(self._ports.rest, tunnel.public_port))
        self._open.pop(tunnel_id, None)

    async def _end_flows(self, tunnel: RawTunnel, which: Callable[[Flow], bool]) -> None:
        """End connections on both sides: on the host's, too, the port's next tunnel must not inherit any."""
        flows = await self._run("router", partial(self._end_inside, tunnel, which))
        await self._run("host", partial(self._end_outside, flows))

    # What follows runs in the threads.

    def _apply(self, change: Change) -> None:
        with refusals("the router's table cannot be changed for a tunnel"):
            self._firewall.apply(change)

    def _counts(self, set_name: str) -> dict[int, int]:
        with refusals("tunnels' counters cannot be read"):
            counted = self._firewall.counts(set_name)
        return {int.from_bytes(key, sys.byteorder): count for key, count in counted.items()}

    def _tell_host(self, tunnel: RawTunnel, *, present: bool) -> None:
        self._host.set_tunnel(tunnel, present=present)

    def _end_inside(self, tunnel: RawTunnel, which: Callable[[Flow], bool]) -> list[Flow]:
        with refusals(f"connections of the tunnel on port {tunnel.public_port} cannot be ended"):
            flows = [flow for flow in self._inner.every(tunnel.mark) if which(flow)]
            self._inner.end(flows)
        return flows

    def _end_outside(self, flows: list[Flow]) -> None:
        with refusals("connections of a tunnel cannot be ended on the host's side"):
            self._outer.end_answered(answers_to(flow) for flow in flows)


def raw(slot: Slot, tunnel: NodeTunnel, public_port: int) -> RawTunnel:
    """Return a tunnel as the tables know it."""
    return RawTunnel(
        protocol=cast("Literal['tcp', 'udp']", tunnel.kind),
        public_port=public_port,
        slot=slot.index,
        address=IPv4Address(slot.address),
        port=tunnel.port or 0,
        sources=tuple(IPv4Network(text) for text in tunnel.allow_cidrs),
    )


def _placed(tunnel: NodeTunnel, port: int) -> NodeTunnel:
    return tunnel.model_copy(update={"public_port": port})
