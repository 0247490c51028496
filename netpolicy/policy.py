"""Egress policy: what a sandbox may reach. Pure.

The platform's denials stand above every mode: no policy of a tenant opens them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, collapse_addresses


class Mode(StrEnum):
    """`open`: every public address. `blocked`: nothing."""

    OPEN = "open"
    BLOCKED = "blocked"


class Rule(StrEnum):
    """Which line of the policy decided; stable, because tenants read it in denials."""

    PLATFORM_IPV6 = "platform_ipv6"
    PLATFORM_ADDRESS = "platform_address"
    PLATFORM_NODE = "platform_node"
    PLATFORM_PROTOCOL = "platform_protocol"
    PLATFORM_PORT = "platform_port"
    MODE_OPEN = "mode_open"
    MODE_BLOCKED = "mode_blocked"


PRIVATE_NETWORKS = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' shared space
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and with it the clouds' metadata service
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # retired 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "168.63.129.16/32",  # a public address on which one cloud answers its guests' platform requests
    )
)
"""Addresses that no sandbox reaches in any mode."""

PROTOCOLS = frozenset({"tcp", "udp", "icmp"})
DENIED_TCP_PORTS = frozenset({25})
"""Mail between servers: spam ruins the addresses of everybody on the node."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one sandbox asked for."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a packet wants to go."""

    address: IPv4Address | IPv6Address
    protocol: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and the line of the policy that gave it."""

    allowed: bool
    rule: Rule


def denied_networks(extra: Iterable[IPv4Network] = ()) -> list[IPv4Network]:
    """Return the platform's denials and `extra`, as few networks as possible, in order."""
    return sorted(collapse_addresses([*PRIVATE_NETWORKS, *extra]))


def verdict(
    policy: Policy,
    destination: Destination,
    *,
    node_addresses: frozenset[IPv4Address] = frozenset(),
    extra_denied: Iterable[IPv4Network] = (),
) -> Verdict:
    """Say what the table that `compile` writes does with a packet, and why."""
    denied = _platform_denial(destination, node_addresses, denied_networks(extra_denied))
    if denied is not None:
        return Verdict(allowed=False, rule=denied)
    if policy.mode is Mode.OPEN:
        return Verdict(allowed=True, rule=Rule.MODE_OPEN)
    return Verdict(allowed=False, rule=Rule.MODE_BLOCKED)


def _platform_denial(
    destination: Destination, node_addresses: frozenset[IPv4Address], denied: list[IPv4Network]
) -> Rule | None:
    address = destination.address
    if isinstance(address, IPv6Address):
        return Rule.PLATFORM_IPV6
    if any(address in network for network in denied):
        return Rule.PLATFORM_ADDRESS
    if address in node_addresses:
        return Rule.PLATFORM_NODE
    if destination.protocol not in PROTOCOLS:
        return Rule.PLATFORM_PROTOCOL
    if destination.protocol == "tcp" and destination.port in DENIED_TCP_PORTS:
        return Rule.PLATFORM_PORT
    return None
