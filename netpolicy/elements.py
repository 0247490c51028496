"""What a slot and its policy are in the sets of the router's table: elements, as bytes in its layout. Pure."""

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy.policy import BLOCKED, Limits, Mode, Policy
from netpolicy.regions import PROTOCOL_NUMBERS, Region, regions
from netpolicy.router_side import GENERATION_MASK, SLOT_PREFIX, slot_mark, slot_of_mark

SOURCES: Final = "sources"
MARKS: Final = "marks"
LIVE: Final = "live"
OPEN_IF: Final = "open_if"
NAMED_IF: Final = "named_if"
JUDGED_IF: Final = "judged_if"
ALLOW: Final = "allow"
DENY: Final = "deny"
LEARNED: Final = "learned"
LEARNED_RANGES: Final = "learned_ranges"
NEW_RATES: Final = "new_rates"
COUNTS: Final = "counts"
UP_RATES: Final = "up_rates"
DOWN_RATES: Final = "down_rates"
NODE_ADDRESSES: Final = "node_addresses"

PER_SLOT: Final = (
    SOURCES,
    MARKS,
    LIVE,
    OPEN_IF,
    NAMED_IF,
    JUDGED_IF,
    ALLOW,
    DENY,
    LEARNED,
    LEARNED_RANGES,
    NEW_RATES,
    COUNTS,
    UP_RATES,
    DOWN_RATES,
)
"""Every set whose elements begin with an interface, or with the mark of a slot's policy."""
BY_POLICY: Final = frozenset({ALLOW, DENY})
"""Sets whose elements begin with the mark of the policy that they are of. Removing an interval takes the kernel a walk
over all of them, so what an older policy has left here is out of use at once and removed later."""

INTERFACE_BYTES: Final = 16
_MARK_BYTES: Final = 4
_BURST_BYTES = 131_072
"""Over what a second may carry: a bucket below some segments of the largest size would never let one pass."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What an element lets pass before it matches: connections at once, new ones or bytes a second."""

    kind: str
    """`connections`, `packets` or `bytes`."""
    value: int
    burst: int = 0


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set, or of a map when it has data, as the kernel wants it."""

    set_name: str
    key: bytes
    data: bytes | None = None
    last: bytes | None = None
    """Of a set of intervals: the last key that the element stands for."""
    limit: Limit | None = None
    timeout_ms: int | None = None

    @property
    def interface(self) -> str:
        """Whose it is, in a set of PER_SLOT."""
        if self.set_name in BY_POLICY:
            return f"{SLOT_PREFIX}{slot_of_mark(int.from_bytes(self.key[:_MARK_BYTES], 'big'))}"
        return self.key[:INTERFACE_BYTES].rstrip(b"\0").decode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction does. Removing what is not there and adding what is are no errors."""

    remove: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """Ports of an address that a name has led to, for a time."""

    protocol: str
    address: IPv4Address
    first: int
    last: int


def interface_key(interface: str) -> bytes:
    return interface.encode().ljust(INTERFACE_BYTES, b"\0")


def source_element(interface: str, address: IPv4Address) -> Element:
    """What a slot has for as long as it exists, whatever its policy."""
    return Element(SOURCES, interface_key(interface) + address.packed)


def node_address_element(address: IPv4Address) -> Element:
    return Element(NODE_ADDRESSES, address.packed)


def policy_elements(index: int, interface: str, generation: int, policy: Policy) -> tuple[Element, ...]:
    """Return everything that a policy is in the kernel, but for what names have led to."""
    key = interface_key(interface)
    mark = generation_mark(index, generation)
    found = [Element(MARKS, key, mark), Element(LIVE, key + mark)]
    if policy.mode is Mode.BLOCKED:
        return tuple(found)
    if policy.mode is Mode.OPEN:
        found.append(Element(OPEN_IF, key))
    if policy.named:
        found.append(Element(NAMED_IF, key))
    if policy.judged:
        found.append(Element(JUDGED_IF, key))
    of_policy = policy_key(mark)
    found += [_region_element(ALLOW, of_policy, region) for region in regions(policy.allow)]
    found += [_region_element(DENY, of_policy, region) for region in regions(policy.deny, denying=True)]
    return (*found, *_limit_elements(key, policy.limits))


def closed_elements(index: int, interface: str, generation: int) -> tuple[Element, ...]:
    """Return what a slot has that reaches nothing."""
    return policy_elements(index, interface, generation, BLOCKED)


def opening_element(interface: str, opening: Opening, timeout_ms: int | None = None) -> Element:
    """Return what the kernel is told of an address that a name has led to."""
    protocol = PROTOCOL_NUMBERS[opening.protocol]
    address = int(opening.address)
    region = Region(protocol, address, address, opening.first, opening.last)
    key, last = _region_keys(interface_key(interface), region)
    if opening.first == opening.last:
        return Element(LEARNED, key, timeout_ms=timeout_ms)
    return Element(LEARNED_RANGES, key, last=last, timeout_ms=timeout_ms)


def opening_of(element: Element) -> Opening:
    """Return what an element of `learned` or `learned_ranges` opens."""
    region = region_of(element)
    protocol = next(name for name, number in PROTOCOL_NUMBERS.items() if number == region.protocol)
    return Opening(protocol, IPv4Address(region.first), region.low, region.high)


def region_of(element: Element) -> Region:
    """Return where an element of a set of destinations leads."""
    width = _MARK_BYTES if element.set_name in BY_POLICY else INTERFACE_BYTES
    first, last = element.key[width:], (element.last or element.key)[width:]
    return Region(
        protocol=first[0],
        first=int.from_bytes(first[4:8], "big"),
        last=int.from_bytes(last[4:8], "big"),
        low=int.from_bytes(first[8:10], "big"),
        high=int.from_bytes(last[8:10], "big"),
    )


def change_between(old: Collection[Element], new: Iterable[Element]) -> Change:
    """Return the one transaction that leads from the elements that are there to those that should be."""
    wanted = tuple(new)
    keep = set(old) & set(wanted)
    return Change(
        remove=tuple(element for element in old if element not in keep),
        add=tuple(element for element in wanted if element not in keep),
    )


def generation_mark(index: int, generation: int) -> bytes:
    """Return the mark of connections that this policy of this slot has allowed."""
    return (slot_mark(index) | generation & GENERATION_MASK).to_bytes(4, sys.byteorder)


def policy_key(mark: bytes) -> bytes:
    """Return how the elements of a policy's regions begin: sets of intervals have numbers in network order."""
    return int.from_bytes(mark, sys.byteorder).to_bytes(_MARK_BYTES, "big")


def _limit_elements(key: bytes, limits: Limits) -> list[Element]:
    rate = limits.new_connections_per_second
    found = [
        Element(NEW_RATES, key, limit=Limit("packets", rate, 2 * rate)),
        Element(COUNTS, key, limit=Limit("connections", limits.connections)),
    ]
    for name, value in ((UP_RATES, limits.up_bytes_per_second), (DOWN_RATES, limits.down_bytes_per_second)):
        if value is not None:
            found.append(Element(name, key, limit=Limit("bytes", value, _BURST_BYTES)))
    return found


def _region_element(set_name: str, key: bytes, region: Region) -> Element:
    first, last = _region_keys(key, region)
    return Element(set_name, first, last=last)


def _region_keys(key: bytes, region: Region) -> tuple[bytes, bytes]:
    def fields(address: int, port: int) -> bytes:
        return key + bytes((region.protocol, 0, 0, 0)) + address.to_bytes(4, "big") + port.to_bytes(2, "big") + b"\0\0"

    return fields(region.first, region.low), fields(region.last, region.high)
