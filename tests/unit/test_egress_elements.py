"""The elements of a policy, read as the kernel reads them, say what the verdict says."""

from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netpolicy.elements import (
    LIVE,
    MARKS,
    Change,
    Element,
    Opening,
    change_between,
    closed_elements,
    opening_element,
    policy_elements,
)
from netpolicy.model import Model, Outcome
from netpolicy.platform import Platform
from netpolicy.policy import BLOCKED, OPEN, Policy, PolicyRefusedError, parse_policy
from netpolicy.regions import regions
from netpolicy.rules import WEB_PORTS, parse_rule
from netpolicy.verdict import Destination, Line, openings, verdict

PLATFORM = Platform(
    node_addresses=frozenset({IPv4Address("45.33.8.2")}),
    extra_denied=(IPv4Network("8.8.4.0/24"),),
    exceptions=(IPv4Network("10.9.0.0/16"),),
)
NAMES = ("a.example", "b.example", "c.b.example", "d.example")
# Few addresses and ports, close to each other and to the edges, so that rules meet.
ADDRESSES = st.one_of(
    st.integers(0, 40).map(lambda low: IPv4Address("93.184.216.0") + low),
    st.sampled_from(
        [IPv4Address(text) for text in ("0.0.0.1", "255.255.255.255", "10.9.0.1", "10.8.0.1", "45.33.8.2")]
    ),
    st.sampled_from([IPv4Address(text) for text in ("223.255.255.255", "1.0.0.0", "8.8.4.4", "8.8.8.8")]),
)
PORTS = st.one_of(st.sampled_from([25, 53, 80, 443, 853, 1, 65535]), st.integers(78, 90), st.integers(1, 65535))
PROTOCOLS = st.sampled_from(["tcp", "udp"])


@st.composite
def rule_texts(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        name = draw(st.sampled_from(NAMES))
        where = f"*.{name}" if draw(st.booleans()) else name
    else:
        where = str(
            IPv4Network((int(draw(ADDRESSES)), draw(st.sampled_from([0, 1, 8, 24, 27, 29, 31, 32]))), strict=False)
        )
    if not draw(st.booleans()):
        return where
    low, high = sorted((draw(PORTS), draw(PORTS)))
    return f"{where}:{low}-{high}" + draw(st.sampled_from(["", "/tcp", "/udp"]))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    mode = draw(st.sampled_from(["open", "blocked", "allowlist", "allowlist"]))
    document: dict[str, Any] = {"mode": mode}
    some = st.lists(rule_texts(), max_size=6)
    if mode == "allowlist":
        document["allow"] = draw(some)
    if mode != "blocked":
        document["deny"] = draw(some)
        if draw(st.integers(0, 3)) == 0:
            entry = {"host": draw(st.sampled_from(NAMES)), "header": "x", "value_from": {"secret": "s"}}
            document["inject"] = [entry]
    try:
        return parse_policy(document)
    except PolicyRefusedError:
        return BLOCKED


def model_of(policy: Policy, *more: Element) -> Model:
    return Model((*policy_elements(3, "sbx3", 1, policy), *more), PLATFORM)


@given(policies(), ADDRESSES, st.sampled_from(["tcp", "udp", "icmp", "sctp"]), PORTS)
def test_the_table_does_what_the_verdict_says(policy: Policy, address: IPv4Address, protocol: str, port: int) -> None:
    outcome = model_of(policy).first_packet(protocol, address, port)
    given_verdict = verdict(policy, Destination(address, protocol, port), PLATFORM)
    if outcome is Outcome.PROXY:
        # The proxy asks the verdict itself, with the name that it reads.
        assert policy.named
        assert protocol == "tcp"
        assert port in WEB_PORTS
        assert given_verdict.source == "policy"
    elif outcome is Outcome.RESOLVER:
        assert (
            given_verdict.source == "platform" or given_verdict.rule == Line.RESOLVER_ONLY or not given_verdict.allowed
        )
    else:
        assert given_verdict.allowed is (outcome is Outcome.ACCEPT)


@given(policies(), st.sampled_from(NAMES), ADDRESSES, PROTOCOLS, PORTS)
@example(
    parse_policy({"mode": "allowlist", "allow": ["a.example:79-81"]}), "a.example", IPv4Address("8.8.8.8"), "tcp", 80
)
def test_what_a_name_opens_is_what_the_verdict_says(
    policy: Policy, name: str, address: IPv4Address, protocol: str, port: int
) -> None:
    more = [opening_element("sbx3", Opening(kind, address, low, high)) for kind, low, high in openings(policy, name)]
    outcome = model_of(policy, *more).first_packet(protocol, address, port)
    by_address = verdict(policy, Destination(address, protocol, port), PLATFORM)
    by_name = verdict(policy, Destination(address, protocol, port, name), PLATFORM)
    if outcome is Outcome.ACCEPT:
        assert by_address.allowed or by_name.allowed
    elif outcome is Outcome.REFUSE:
        assert not by_address.allowed
        assert not by_name.allowed or by_name.rule == Line.MODE_OPEN


@given(policies())
def test_a_connection_in_its_midst_is_never_let_past_the_names(policy: Policy) -> None:
    """What the proxy must see is not allowed to go on by itself."""
    model = model_of(policy)
    for port in WEB_PORTS:
        if policy.judged and policy.denies_names:
            assert model.later_packet("tcp", IPv4Address("8.8.8.8"), port) is Outcome.REFUSE


@given(st.lists(rule_texts(), max_size=12), st.booleans())
def test_regions_do_not_overlap(texts: list[str], denying: bool) -> None:
    made = regions([parse_rule(text) for text in texts], denying=denying)
    for one in made:
        assert one.first <= one.last
        assert one.low <= one.high
    for one, other in pairwise(sorted(made)):
        apart = one.protocol != other.protocol or one.last < other.first or one.high < other.low
        assert apart, (one, other)
    for place, one in enumerate(made):
        for other in made[place + 1 :]:
            assert (
                one.protocol != other.protocol
                or one.last < other.first
                or other.last < one.first
                or one.high < other.low
                or other.high < one.low
            )


def test_whole_and_last_and_single_addresses() -> None:
    everything, last, one = (regions([parse_rule(text)]) for text in ("0.0.0.0/0", "255.255.255.255", "1.2.3.4:5"))
    assert [(region.first, region.last) for region in everything] == [(0, 2**32 - 1)] * 2
    assert [(region.first, region.last) for region in last] == [(2**32 - 1, 2**32 - 1)] * 2
    assert [(region.low, region.high) for region in one] == [(5, 5)]
    joined = regions([parse_rule("10.0.0.0/9"), parse_rule("10.128.0.0/9"), parse_rule("10.1.0.0/16")])
    assert [(region.first, region.last) for region in joined] == [(10 << 24, (11 << 24) - 1)] * 2


def test_a_policy_that_multiplies_is_refused() -> None:
    nested = [f"10.0.{2 * place}.0/24" for place in range(128)]
    many = [*nested, *(f"{IPv4Network((int(IPv4Address('10.0.0.0')), 8))}:{2 * port + 1}" for port in range(120))]
    with pytest.raises(PolicyRefusedError) as refused:
        parse_policy({"mode": "allowlist", "allow": [*many[128:], *(f"{network}:60001" for network in nested)]})
    assert [flaw.code for flaw in refused.value.flaws] == ["too_complex"]


def test_a_change_is_only_the_difference() -> None:
    one = parse_policy({"mode": "allowlist", "allow": ["1.2.3.4", "5.6.7.8"]})
    two = parse_policy({"mode": "allowlist", "allow": ["1.2.3.4", "9.9.9.9"]})
    old, new = policy_elements(0, "sbx0", 4, one), policy_elements(0, "sbx0", 5, two)
    change = change_between(old, new)
    # The regions bear the policy's mark, so that an older one's are out of use at once.
    assert {element.set_name for element in change.remove} == {MARKS, LIVE, "allow"}
    assert len(change.remove) == len(change.add) == 6
    assert change_between(new, new) == Change()


def test_closed_has_a_mark_and_reaches_nothing() -> None:
    closed = closed_elements(0, "sbx0", 7)
    assert {element.set_name for element in closed} == {MARKS, LIVE}
    assert Model(closed).first_packet("tcp", IPv4Address("8.8.8.8"), 443) is Outcome.REFUSE
    assert Model(()).first_packet("udp", IPv4Address("8.8.8.8"), 53) is Outcome.REFUSE
    assert Model(policy_elements(0, "sbx0", 1, OPEN)).first_packet("icmp", IPv4Address("8.8.8.8"), 0) is Outcome.ACCEPT


def test_generations_never_touch_the_slots_half() -> None:
    marks = {policy_elements(9, "sbx9", generation, BLOCKED)[0].data for generation in (0, 1, 0x3FFF)}
    assert len(marks) == 3
    assert policy_elements(9, "sbx9", 0x4000, BLOCKED) == policy_elements(9, "sbx9", 0, BLOCKED)
