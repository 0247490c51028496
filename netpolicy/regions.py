"""Rules about addresses as regions that do not overlap, which is how the kernel's interval sets want them. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from netpolicy.rules import ANY_PORT, Rule

PROTOCOL_NUMBERS: Final = {"icmp": 1, "tcp": 6, "udp": 17}
MAX_REGIONS: Final = 1024
"""Of one policy. Networks nested in each other with different ports multiply; a policy that does so is refused."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A range of addresses and of ports of one protocol; ends are inside."""

    protocol: int
    first: int
    last: int
    low: int
    high: int


def regions(rules: Iterable[Rule], *, denying: bool = False) -> tuple[Region, ...]:
    """Return what the rules about addresses mean together. A denial of a whole destination is of ICMP too."""
    by_protocol: dict[int, list[tuple[int, int, Span]]] = {}
    for rule in rules:
        if rule.network is None:
            continue
        first, last = int(rule.network.network_address), int(rule.network.broadcast_address)
        protocols = (*rule.protocols, "icmp") if denying and rule.whole else rule.protocols
        for protocol in protocols:
            spans = (ANY_PORT,) if protocol == "icmp" else rule.spans
            by_protocol.setdefault(PROTOCOL_NUMBERS[protocol], []).extend((first, last, span) for span in spans)
    return tuple(region for protocol in sorted(by_protocol) for region in _disjoint(protocol, by_protocol[protocol]))


def join_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the union of ranges, disjoint and in order."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def subtract_spans(spans: Iterable[Span], holes: Iterable[Span]) -> tuple[Span, ...]:
    """Return disjoint ranges without the holes, in order."""
    left = list(spans)
    for low, high in holes:
        around = [((first, min(last, low - 1)), (max(first, high + 1), last)) for first, last in left]
        left = [part for pair in around for part in pair if part[0] <= part[1]]
    return tuple(left)


def _disjoint(protocol: int, boxes: list[tuple[int, int, Span]]) -> list[Region]:
    """Walk over the addresses at which anything begins or ends; what is the same on both sides of one is joined."""
    begins: dict[int, list[Span]] = {}
    ends: dict[int, list[Span]] = {}
    for first, last, span in boxes:
        begins.setdefault(first, []).append(span)
        ends.setdefault(last + 1, []).append(span)
    found: list[Region] = []
    active: Counter[Span] = Counter()
    spans: tuple[Span, ...] = ()
    since = 0
    for edge in sorted({*begins, *ends}):
        active.update(begins.get(edge, ()))
        active.subtract(ends.get(edge, ()))
        now = join_spans(span for span, count in active.items() if count)
        if now != spans:
            found += [Region(protocol, since, edge - 1, low, high) for low, high in spans]
            spans, since = now, edge
    return found
