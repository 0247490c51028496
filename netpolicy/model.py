"""What the router's table does with a packet of one slot, computed from the slot's elements. Pure.

It is read from the same bytes as the kernel reads. An update asks it which connections it forbids, and a property test
holds it, and with it the elements, to `verdict`.
"""

from bisect import bisect_right
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address

from netpolicy.elements import (
    ALLOW,
    DENY,
    JUDGED_IF,
    LEARNED,
    LEARNED_RANGES,
    NAMED_IF,
    OPEN_IF,
    Element,
    region_of,
)
from netpolicy.platform import DENIED_TCP_PORTS, PLATFORM, PROTOCOLS, Platform
from netpolicy.regions import PROTOCOL_NUMBERS
from netpolicy.rules import DNS_PORTS, WEB_PORTS

_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}


class Outcome(StrEnum):
    """Where a packet goes."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    PROXY = "proxy"
    RESOLVER = "resolver"


class _Intervals:
    """One interval set's elements of one slot."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._regions = sorted(region_of(element) for element in elements)
        self._firsts = [(region.protocol, region.first) for region in self._regions]

    def __contains__(self, where: tuple[int, int, int]) -> bool:
        protocol, address, port = where
        place = bisect_right(self._firsts, (protocol, address)) - 1
        if place < 0:
            return False
        # Regions of one range of addresses stand side by side.
        first = self._firsts[place]
        while place >= 0 and self._firsts[place] == first:
            region = self._regions[place]
            if first[0] == protocol and region.first <= address <= region.last and region.low <= port <= region.high:
                return True
            place -= 1
        return False


class Model:
    """One slot's part of the table."""

    def __init__(self, elements: Iterable[Element], platform: Platform = PLATFORM) -> None:
        by_set: dict[str, list[Element]] = {}
        for element in elements:
            by_set.setdefault(element.set_name, []).append(element)
        self._open, self._named, self._judged = (name in by_set for name in (OPEN_IF, NAMED_IF, JUDGED_IF))
        self._allow, self._deny, self._learned, self._ranges = (
            _Intervals(by_set.get(name, ())) for name in (ALLOW, DENY, LEARNED, LEARNED_RANGES)
        )
        self._platform = platform

    def first_packet(self, protocol: str, address: IPv4Address, port: int) -> Outcome:
        """Say what becomes of a new connection: the chains `names`, then `forward`."""
        where = (PROTOCOL_NUMBERS.get(protocol, 0), int(address), port)
        if not self._named:
            return self.later_packet(protocol, address, port)
        if protocol in ("tcp", "udp") and port == DNS_PORTS[0]:
            return Outcome.RESOLVER
        if self._platform.is_denied(address) or address in self._platform.node_addresses or where in self._deny:
            return self.later_packet(protocol, address, port)
        if protocol == "tcp" and port in WEB_PORTS and (self._judged or where not in self._allow):
            return Outcome.PROXY
        return self.later_packet(protocol, address, port)

    def later_packet(self, protocol: str, address: IPv4Address, port: int) -> Outcome:
        """Say what becomes of a packet that is not redirected and that no present policy has allowed yet."""
        allowed = not self._platform_refuses(protocol, address, port) and self._allows(protocol, address, port)
        return Outcome.ACCEPT if allowed else Outcome.REFUSE

    def serves(self, *, new: bool) -> bool:
        """Whether the slot's redirected connections reach the programs that they were redirected to."""
        return self._named or (self._open and not new)

    def _platform_refuses(self, protocol: str, address: IPv4Address, port: int) -> bool:
        if self._platform.is_denied(address) or address in self._platform.node_addresses:
            return True
        return protocol not in PROTOCOLS or (protocol == "tcp" and port in DENIED_TCP_PORTS)

    def _allows(self, protocol: str, address: IPv4Address, port: int) -> bool:
        where = (PROTOCOL_NUMBERS[protocol], int(address), port)
        carried = protocol in ("tcp", "udp")
        if where in self._deny or (self._named and carried and port in DNS_PORTS):
            return False
        if where in self._learned or where in self._ranges:
            return True
        if self._judged and ((protocol == "tcp" and port in WEB_PORTS) or (protocol == "udp" and port == 443)):
            return False
        return where in self._allow or self._open


def protocol_name(number: int) -> str:
    """Return the name of a protocol by its number, or the number where it has none here."""
    return _NAMES.get(number, str(number))
