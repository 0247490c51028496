"""Tunnels as callers see them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from api.store.tables import Sandbox
from sandboxd.contract.ids import SandboxId, TunnelId
from sandboxd.contract.messages import NodeReport, SandboxReport
from sandboxd.contract.processes import Open, Time
from sandboxd.contract.tunnels import RAW_KINDS, NodeTunnel, TunnelKind, TunnelReport, Visibility
from tunnels.routing import host_of, path_of

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Tunnel(Open):
    """A way from outside to a port of a sandbox: `host` and `public_port` for `tcp` and `udp`, `url` for `http`."""

    id: TunnelId
    sandbox_id: SandboxId
    port: int | None
    kind: TunnelKind
    visibility: Visibility
    allow_cidrs: list[str]
    server_name: str | None
    state: Literal["open", "closed"]
    reason: str | None
    message: str | None
    """What keeps it from working, as far as the node can see."""
    host: str | None
    public_port: int | None
    url: str | None
    path_url: str | None
    in_bytes: int | None
    """Carried into the sandbox so far, for `tcp` and `udp`; may begin anew when the node agent does."""
    out_bytes: int | None
    created_at: Time


class TunnelList(Open):
    """The tunnels of one sandbox, the oldest first."""

    items: list[Tunnel]


def tunnel_view(
    tunnel: NodeTunnel, sandbox_id: str, node: NodeReport | None, report: TunnelReport | None = None
) -> Tunnel:
    """Render a tunnel; `node` is what its node last said of itself, `report` what it says of the tunnel."""
    raw = tunnel.kind in RAW_KINDS
    return Tunnel.model_construct(
        id=tunnel.id,
        sandbox_id=sandbox_id,
        port=tunnel.port,
        kind=tunnel.kind,
        visibility=tunnel.visibility,
        allow_cidrs=list(tunnel.allow_cidrs),
        server_name=tunnel.server_name,
        state="open",
        reason=None,
        message=report.message if report else None,
        **_addresses(tunnel, sandbox_id, node).__dict__,
        in_bytes=report.in_bytes if raw and report else None,
        out_bytes=report.out_bytes if raw and report else None,
        created_at=_EPOCH + timedelta(microseconds=tunnel.created_at_us),
    )


class _Addresses(Open):
    """Where to connect."""

    host: str | None = None
    public_port: int | None = None
    url: str | None = None
    path_url: str | None = None


def _addresses(tunnel: NodeTunnel, sandbox_id: str, node: NodeReport | None) -> _Addresses:
    """Return where to connect: to the kernel for `tcp` and `udp`, to the gateway for the others."""
    gateway = None if node is None else node.gateway
    if tunnel.kind in RAW_KINDS:
        host = node.tunnel_host if node is not None and tunnel.public_port is not None else None
        return _Addresses(host=host, public_port=tunnel.public_port)
    if gateway is None or tunnel.port is None:
        return _Addresses()
    if tunnel.kind == "http":
        by_name = None if gateway.domain is None else host_of(gateway.url, gateway.domain, sandbox_id, tunnel.port)
        by_path = gateway.url + path_of(sandbox_id, tunnel.port) if gateway.by_path else None
        return _Addresses(url=by_name or by_path, path_url=by_path)
    if gateway.tls_port is None:
        return _Addresses()
    own = None if gateway.domain is None else f"{tunnel.port}-{sandbox_id}.{gateway.domain}"
    return _Addresses(host=tunnel.server_name or own, public_port=gateway.tls_port)


def views_of(sandbox: Sandbox, seen: SandboxReport | None, node: NodeReport | None) -> list[Tunnel]:
    """Render a sandbox's tunnels as its node last said, or as they were asked for with it."""
    if sandbox.ended_at is not None:
        return []
    if seen is not None:
        return [tunnel_view(tunnel, sandbox.id, node) for tunnel in in_order(seen.tunnels)]
    asked: list[dict[str, Any]] = sandbox.spec.get("tunnels") or []
    return [tunnel_view(NodeTunnel(**each), sandbox.id, node) for each in asked]


def in_order(tunnels: Sequence[NodeTunnel]) -> list[NodeTunnel]:
    """Return them, the oldest first."""
    return sorted(tunnels, key=lambda tunnel: (tunnel.created_at_us, tunnel.id))
