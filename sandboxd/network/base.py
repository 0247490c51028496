"""The network seam: slots, and what they may reach."""

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from netpolicy.credentials import Credentials
from netpolicy.platform import Platform
from netpolicy.policy import Policy
from sandboxd.contract.messages import EgressSpec
from sandboxd.contract.tunnels import NodeTunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One sandbox's network: a namespace with one end of a routed /31."""

    index: int
    """Names everything of the slot; unique on the node among live slots."""
    netns_path: Path
    interface: str
    """The host-side end, in the router namespace."""
    address: str
    """The sandbox's own end, where its guest listens."""
    peer: str
    """The router's end: the sandbox's gateway, and where the node's calls seem to come from."""
    mtu: int


class NetworkError(Exception):
    """A namespace, link or rule could not be made; says which and the kernel's words."""


class NoPublicPortError(NetworkError):
    """The node has no public port left for a tunnel."""


class Names(Protocol):
    """The programs that decide names, as the network uses them."""

    async def apply(self, address: str, policy: Policy | None, credentials: Credentials | None = None) -> int:
        """Have the sandbox at an address judged by a policy, or by none: then it has no names at all.

        What the policy puts into requests is in `credentials`; without them, the hosts that get it are closed.

        Returns how many proxied connections that closed; all that it forbids are dead. A program that is down has none.
        """
        ...

    async def set_platform(self, platform: Platform) -> None:
        """Have the node's own denials judged from now on."""
        ...


class NoNames:
    """`Names` where no program decides them: what names allow is closed."""

    async def apply(self, address: str, policy: Policy | None, credentials: Credentials | None = None) -> int:  # noqa: ARG002
        return 0

    async def set_platform(self, platform: Platform) -> None:
        """Have nobody to tell."""


class Network(Protocol):
    """Slots of one node. Complete undo, and recovery by looking at what exists."""

    @property
    def platform(self) -> Platform:
        """What no sandbox of this node reaches, whatever its policy."""
        ...

    @property
    def public_address(self) -> str:
        """The host's address towards the internet, where its public ports are; a loopback one if there is none."""
        ...

    async def start(self, in_use: dict[str, int], tunnels: Mapping[str, Sequence[NodeTunnel]] | None = None) -> None:
        """Make or adopt the router namespace and its table; keep the slots in use (sandbox id to index), no others.

        Raw tunnels (by sandbox id) of those in use are carried on without a gap; all others are gone.
        """
        ...

    async def acquire(self, sandbox_id: str) -> Slot:
        """Hand out a verified slot with egress blocked. NetworkError if none can be made."""
        ...

    async def adopt(self, sandbox_id: str, index: int) -> Slot:
        """Return the slot a sandbox already has; NetworkError if it is not whole."""
        ...

    async def apply_egress(self, slot: Slot, egress: EgressSpec, credentials: Credentials | None = None) -> int:
        """Make the policy true; returns how many connections that has ended: all that it forbids.

        Without `credentials`, the hosts that it injects into are closed.

        Connections that it allows go on. NetworkError: it is not true, and then the sandbox reaches nothing.
        """
        ...

    async def learn(self, address: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        """Open what the policy of the sandbox at `address` opens at addresses of a name, for so long.

        Open when this returns. NetworkError: none of them is.
        """
        ...

    async def open_tunnel(self, slot: Slot, tunnel: NodeTunnel) -> NodeTunnel:
        """Carry a `tcp` or `udp` tunnel to a slot; returns it with its public port, drawn unless it had one.

        Idempotent. Asked again with other `allow_cidrs`, connections from elsewhere are dead when it returns. Raises
        NoPublicPortError, NetworkError.
        """
        ...

    async def close_tunnel(self, tunnel_id: str) -> None:
        """Carry it no more: its connections are dead when this returns, its port rests. Idempotent."""
        ...

    async def tunnel_bytes(self) -> dict[str, tuple[int, int]]:
        """Return the bytes carried into and out of sandboxes, by tunnel, since some moment: counts may fall to zero."""
        ...

    async def release(self, sandbox_id: str, index: int) -> None:
        """Close its tunnels, block it and make it ready for another, or remove it. Idempotent."""
        ...

    def open_socket(self) -> socket.socket:
        """Return a fresh non-blocking TCP socket born in the router namespace. Does not block."""
        ...

    def counters(self) -> dict[str, tuple[int, int]]:
        """Return the bytes each slot's sandbox has sent and been sent, by router-side interface, since that was made.

        A slot keeps its counts when it is used again. Blocks; for threads.
        """
        ...

    async def repair(self) -> None:
        """Put back what others have flushed or changed on the host's side. Cheap; to be called every some seconds."""
        ...

    async def problems(self) -> list[str]:
        """Say what keeps sandboxes from reaching what they may, each with what to do about it."""
        ...

    async def stop(self, *, keep: bool) -> None:
        """Let go; unless `keep`, remove the router namespace, every slot and the host-side piece."""
        ...
