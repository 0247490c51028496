"""Tunnels of this node as its gateway asks for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sandboxd.app.streams import Way
from sandboxd.contract.tunnels import NodeTunnel, tunnel_to
from sandboxd.manager.manager import Manager
from sandboxd.processes.live import Ending


class OpenTunnels(Protocol):
    """What is open of each sandbox."""

    def tunnels_of(self, sandbox_id: str) -> Iterable[NodeTunnel]:
        """Return the tunnels of a sandbox; none for one that is not here."""
        ...

    def all_tunnels(self) -> Mapping[str, Iterable[NodeTunnel]]:
        """Return those of all, by sandbox."""
        ...


@dataclass(frozen=True, slots=True)
class RunnersTunnels:
    """What the manager's sandboxes have open."""

    manager: Manager

    def tunnels_of(self, sandbox_id: str) -> Iterable[NodeTunnel]:
        runner = self.manager.runners.get(sandbox_id)
        return () if runner is None else runner.life.record.spec.tunnels

    def all_tunnels(self) -> Mapping[str, Iterable[NodeTunnel]]:
        return {sandbox_id: runner.life.record.spec.tunnels for sandbox_id, runner in self.manager.runners.items()}


@dataclass(slots=True)
class NodeWays:
    """The `Ways` of a node."""

    tunnels: OpenTunnels
    _closings: dict[str, tuple[NodeTunnel, Ending]] = field(default_factory=dict[str, tuple[NodeTunnel, Ending]])

    def http(self, sandbox_id: str, port: int) -> Way | None:
        tunnel = tunnel_to(self.tunnels.tunnels_of(sandbox_id), port, "http")
        return None if tunnel is None else Way(sandbox_id, port, tunnel, self._closing(tunnel))

    def tls(self, server_name: str) -> Way | None:
        for sandbox_id, tunnels in self.tunnels.all_tunnels().items():
            for tunnel in tunnels:
                if tunnel.kind == "tls" and tunnel.server_name == server_name and tunnel.port is not None:
                    return Way(sandbox_id, tunnel.port, tunnel, self._closing(tunnel))
        return None

    def look_again(self) -> None:
        """End the streams of tunnels that are closed, or no longer what they were when the streams were opened."""
        now = {tunnel.id: tunnel for tunnels in self.tunnels.all_tunnels().values() for tunnel in tunnels}
        for tunnel_id, (tunnel, closing) in list(self._closings.items()):
            if now.get(tunnel_id) != tunnel:
                del self._closings[tunnel_id]
                closing.set()

    def _closing(self, tunnel: NodeTunnel) -> Ending:
        known = self._closings.get(tunnel.id)
        if known is None or known[0] != tunnel:
            if known is not None:
                known[1].set()
            known = (tunnel, Ending())
            self._closings[tunnel.id] = known
        return known[1]
