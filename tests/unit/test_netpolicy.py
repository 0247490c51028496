"""What a policy says, and that the tables and elements say the same."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy import compile as compiled
from netpolicy.elements import Element, source_element
from netpolicy.platform import PRIVATE_NETWORKS, Platform, denied_networks
from netpolicy.policy import BLOCKED, OPEN
from netpolicy.router_side import SLOT_MASK, slot_mark, slot_of_mark
from netpolicy.verdict import Destination, Line, verdict

NODE = frozenset({IPv4Address("45.33.8.2")})


def to(address: str, protocol: str = "tcp", port: int | None = 443) -> Destination:
    return Destination(ip_address(address), protocol, port)


def _networks_of(address: IPv4Address | IPv6Address) -> st.SearchStrategy[IPv4Network]:
    return st.integers(0, 32).map(lambda length: IPv4Network((int(address), length), strict=False))


@pytest.mark.parametrize(
    ("destination", "rule"),
    [
        (to("93.184.216.34"), Line.MODE_OPEN),
        (to("93.184.216.34", "udp", 25), Line.MODE_OPEN),
        (to("93.184.216.34", "icmp", None), Line.MODE_OPEN),
        (to("93.184.216.34", port=25), Line.PLATFORM_PORT),
        (to("93.184.216.34", "gre", None), Line.PLATFORM_PROTOCOL),
        (to("45.33.8.2"), Line.PLATFORM_NODE),
        (to("169.254.169.254", port=80), Line.PLATFORM_ADDRESS),
        (to("168.63.129.16", port=80), Line.PLATFORM_ADDRESS),
        (to("168.63.129.15", port=80), Line.MODE_OPEN),
        (to("10.255.255.255"), Line.PLATFORM_ADDRESS),
        (to("11.0.0.0"), Line.MODE_OPEN),
        (to("9.255.255.255"), Line.MODE_OPEN),
        (to("100.63.255.255"), Line.MODE_OPEN),
        (to("100.127.255.255"), Line.PLATFORM_ADDRESS),
        (to("172.32.0.0"), Line.MODE_OPEN),
        (to("223.255.255.255"), Line.MODE_OPEN),
        (to("224.0.0.0"), Line.PLATFORM_ADDRESS),
        (to("255.255.255.255"), Line.PLATFORM_ADDRESS),
        (to("0.0.0.0"), Line.PLATFORM_ADDRESS),  # noqa: S104 - an address to reach, not to bind
        (to("2606:4700::1111"), Line.PLATFORM_IPV6),
        (to("::ffff:93.184.216.34"), Line.PLATFORM_IPV6),
    ],
)
def test_open_reaches_what_is_public(destination: Destination, rule: Line) -> None:
    given_verdict = verdict(OPEN, destination, Platform(node_addresses=NODE))
    assert given_verdict.rule == rule
    assert given_verdict.allowed is (rule is Line.MODE_OPEN)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["tcp", "udp", "icmp", "sctp"]), st.integers(0, 65535))
def test_blocked_reaches_nothing(address: int, protocol: str, port: int) -> None:
    assert not verdict(BLOCKED, Destination(IPv4Address(address), protocol, port)).allowed


@given(st.integers(0, 2**32 - 1))
def test_nothing_that_is_not_global_is_ever_allowed(address: int) -> None:
    """The standard library's own registry of special addresses is the second opinion."""
    destination = IPv4Address(address)
    if not destination.is_global or destination.is_multicast:
        assert not verdict(OPEN, Destination(destination, "tcp", 443)).allowed


def test_blocked_says_that_it_is_the_mode() -> None:
    assert verdict(BLOCKED, to("93.184.216.34")).rule is Line.MODE_BLOCKED
    assert verdict(BLOCKED, to("10.0.0.1")).rule is Line.PLATFORM_ADDRESS


def test_an_operator_can_deny_more() -> None:
    more = (IPv4Network("93.184.216.0/24"),)
    assert verdict(OPEN, to("93.184.216.34"), Platform(extra_denied=more)).rule is Line.PLATFORM_ADDRESS
    assert "93.184.216.0/24" in compiled.router_table(Platform(extra_denied=more))
    assert "93.184.216.0/24" in compiled.host_table(
        name="t", uplink="slt", address=IPv4Address("10.0.0.1"), platform=Platform(extra_denied=more)
    )


@given(st.lists(st.ip_addresses(v=4).flatmap(_networks_of)))
def test_denied_networks_never_overlap(extra: list[IPv4Network]) -> None:
    """The kernel refuses a set of intervals that overlap."""
    denied = denied_networks(extra)
    assert all(one.broadcast_address < other.network_address for one, other in pairwise(denied))
    assert all(any(network.subnet_of(whole) for whole in denied) for network in [*extra, *PRIVATE_NETWORKS])


def test_both_tables_deny_the_platforms_list() -> None:
    router = compiled.router_table()
    host = compiled.host_table(name="t", uplink="slt", address=IPv4Address("10.0.0.1"))
    for network in denied_networks():
        assert str(network) in router
        assert str(network) in host


def test_a_slot_is_known_by_interface_and_address_together() -> None:
    source = source_element("sbx0", IPv4Address("10.231.0.1"))
    assert source == Element("sources", b"sbx0" + bytes(12) + bytes((10, 231, 0, 1)))


def test_sets_of_others_are_replaced_and_those_of_slots_kept() -> None:
    text = compiled.router_table(tunnels=compiled.TablePart(sets="  map tun { type mark : verdict; }"))
    flushed = [line.split()[-1] for line in text.splitlines() if line.startswith("flush ")]
    assert flushed == ["sandlot", "denied", "node_addresses", "tun"]


@given(st.integers(0, 0xFFFE - 1), st.integers(0, 0xFFFE - 1))
def test_marks_tell_slots_apart(one: int, other: int) -> None:
    assert slot_mark(one) & SLOT_MASK == slot_mark(one)
    assert 0 < slot_mark(one) < 2**32
    assert (slot_mark(one) == slot_mark(other)) is (one == other)
    assert slot_of_mark(slot_mark(one) | 0xFFFF) == one


def test_ipv6_is_no_way_around() -> None:
    assert verdict(OPEN, Destination(IPv6Address("64:ff9b::5db8:d822"), "tcp", 443)).rule is Line.PLATFORM_IPV6
