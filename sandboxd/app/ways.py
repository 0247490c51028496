"""Tunnels of this node as its gateway asks for them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sandboxd.app.streams import Way
from sandboxd.contract.tunnels import NodeTunnel, TunnelKind, tunnel_to
from sandboxd.processes.live import Ending


@dataclass(slots=True)
class NodeWays:
    """The `Ways` of a node."""

    of: Callable[[str], Sequence[NodeTunnel]]
    """What a sandbox has open; nothing of one that is not here or has ended."""
    sandbox_ids: Callable[[], Iterable[str]]
    _in_use: dict[tuple[str, str], tuple[NodeTunnel, Ending]] = field(
        default_factory=dict[tuple[str, str], tuple[NodeTunnel, Ending]]
    )
    """Tunnels as they were when streams were opened through them, by sandbox and id."""

    def http(self, sandbox_id: str, port: int) -> Way | None:
        return self._way(sandbox_id, port, "http")

    def tls(self, server_name: str, sandbox_id: str | None, port: int | None) -> Way | None:
        if sandbox_id is not None and port is not None:
            # The platform's own name for a port: nobody else may have taken it for a tunnel of theirs.
            found = self._way(sandbox_id, port, "tls")
            return found if found is not None and found.tunnel.server_name is None else None
        for each in self.sandbox_ids():
            for tunnel in self.of(each):
                if tunnel.kind == "tls" and tunnel.server_name == server_name and tunnel.port is not None:
                    return Way(each, tunnel.port, tunnel, self._ending(each, tunnel))
        return None

    def look_again(self) -> None:
        """End the streams of tunnels that are closed, or no longer what they were. After each change of any."""
        for (sandbox_id, tunnel_id), (tunnel, ending) in list(self._in_use.items()):
            if tunnel not in self.of(sandbox_id):
                del self._in_use[sandbox_id, tunnel_id]
                ending.set()

    def _way(self, sandbox_id: str, port: int, kind: TunnelKind) -> Way | None:
        tunnel = tunnel_to(self.of(sandbox_id), port, kind)
        return None if tunnel is None else Way(sandbox_id, port, tunnel, self._ending(sandbox_id, tunnel))

    def _ending(self, sandbox_id: str, tunnel: NodeTunnel) -> Ending:
        known = self._in_use.get((sandbox_id, tunnel.id))
        if known is None or known[0] != tunnel:
            if known is not None:
                known[1].set()
            self._forget_ended()
            known = (tunnel, Ending())
            self._in_use[sandbox_id, tunnel.id] = known
        return known[1]

    def _forget_ended(self) -> None:
        """Drop what is of sandboxes that have ended: their streams ended with them."""
        live = set(self.sandbox_ids())
        for key in [key for key in self._in_use if key[0] not in live]:
            del self._in_use[key]
