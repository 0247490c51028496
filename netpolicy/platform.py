"""What the platform denies to every sandbox, above any tenant's policy. Pure."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final

PRIVATE_NETWORKS: Final = tuple(
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
"""Addresses that no sandbox reaches in any mode, unless the operator makes an exception."""

_NEVER_EXCEPTED: Final = tuple(
    IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)

PROTOCOLS: Final = frozenset({"tcp", "udp", "icmp"})
DENIED_TCP_PORTS: Final = frozenset({25})
"""Mail between servers: spam ruins the addresses of everybody on the node."""


def denied_networks(extra: Iterable[IPv4Network] = (), exceptions: Iterable[IPv4Network] = ()) -> list[IPv4Network]:
    """Return the platform's denials without the operator's exceptions, and `extra`, as few as possible, in order.

    `extra` is denied even inside an exception.
    """
    left = list(collapse_addresses(PRIVATE_NETWORKS))
    for exception in exceptions:
        left = [part for network in left for part in _without(network, exception)]
    return sorted(collapse_addresses([*left, *extra]))


def check_exception(network: IPv4Network) -> IPv4Network:
    """Return it, or ValueError where no operator can want it: loopback, link-local and metadata, multicast."""
    for never in _NEVER_EXCEPTED:
        if network.overlaps(never):
            raise ValueError(f"{network} reaches into {never}, which no sandbox may reach")
    return network


@dataclass(frozen=True)
class Platform:
    """One node's denials."""

    node_addresses: frozenset[IPv4Address] = frozenset()
    extra_denied: tuple[IPv4Network, ...] = ()
    exceptions: tuple[IPv4Network, ...] = ()
    denied: tuple[IPv4Network, ...] = field(init=False, repr=False, compare=False)
    _firsts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        denied = tuple(denied_networks(self.extra_denied, self.exceptions))
        object.__setattr__(self, "denied", denied)
        object.__setattr__(self, "_firsts", tuple(int(network.network_address) for network in denied))

    def is_denied(self, address: IPv4Address) -> bool:
        """Whether an address lies in a network that no sandbox reaches."""
        place = bisect_right(self._firsts, int(address)) - 1
        return place >= 0 and address in self.denied[place]


PLATFORM: Final = Platform()
"""The denials of a node that knows nothing of itself."""


def _without(network: IPv4Network, exception: IPv4Network) -> Iterable[IPv4Network]:
    if not network.overlaps(exception):
        return (network,)
    return () if network.subnet_of(exception) else network.address_exclude(exception)
