"""What a policy may say, its canonical document, and what follows from it."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from netpolicy.platform import Platform, check_exception, denied_networks
from netpolicy.policy import Mode, Policy, PolicyRefusedError, from_json, parse_policy
from netpolicy.rules import RuleRefusedError
from netpolicy.verdict import Destination, Line, Reason, name_verdict, openings, parse_destination, verdict

PUBLIC = IPv4Address("93.184.216.34")
INJECT = {"host": "API.example.com", "header": "Authorization", "value_from": {"secret": "token"}}


def policy(mode: str = "allowlist", **members: Any) -> Policy:
    return parse_policy({"mode": mode, **members})


def to_name(name: str, port: int = 443, protocol: str = "tcp") -> Destination:
    return Destination(name=name, port=port, protocol=protocol)


def to_address(address: str, port: int = 443, protocol: str = "tcp") -> Destination:
    return Destination(address=IPv4Address(address), port=port, protocol=protocol)


def test_a_policy_is_canonical() -> None:
    made = policy(
        allow=["Example.com", "example.com.", "*.CDN.example", "1.2.3.4/32"],
        deny=["bad.CDN.example"],
        inject=[INJECT],
        limits={"connections": 5},
    )
    assert made.to_json() == {
        "mode": "allowlist",
        "allow": ["example.com", "*.cdn.example", "1.2.3.4"],
        "deny": ["bad.cdn.example"],
        "inject": [
            {
                "host": "api.example.com",
                "header": "authorization",
                "value_from": {"secret": "token"},
                "format": "{value}",
            }
        ],
        "limits": {
            "connections": 5,
            "new_connections_per_second": 200,
            "up_bytes_per_second": None,
            "down_bytes_per_second": None,
        },
    }
    assert from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"mode": "open", "allow": ["example.com"]}, ("allow",)),
        ({"mode": "blocked", "allow": ["example.com"]}, ("allow",)),
        ({"mode": "blocked", "deny": ["example.com"]}, ("deny",)),
        ({"mode": "blocked", "inject": [INJECT]}, ("inject",)),
        ({"mode": "open", "deny": ["example.com:22"]}, ("deny", 0)),
        ({"mode": "allowlist", "allow": ["ok.example", "a b"]}, ("allow", 1)),
        ({"mode": "allowlist", "allow": ["1.2.3.4"] * 200, "deny": ["1.2.3.4"] * 57}, ()),
        ({"mode": "allowlist", "inject": [INJECT, {**INJECT, "header": "authorization"}]}, ("inject", 1)),
        ({"mode": "allowlist", "inject": [{**INJECT, "header": "Host"}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "header": "a b"}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "host": "*.example.com"}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "host": "1.2.3.4"}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "value_from": {"secret": "a b"}}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "format": "Bearer"}]}, ("inject", 0)),
        ({"mode": "allowlist", "inject": [{**INJECT, "format": "{value}\r\nX: y"}]}, ("inject", 0)),
        ({"mode": "open", "limits": {"connections": 8193}}, ("limits", "connections")),
        ({"mode": "open", "limits": {"new_connections_per_second": -1}}, ("limits", "new_connections_per_second")),
        ({"mode": "open", "limits": {"up_bytes_per_second": 1}}, ("limits", "up_bytes_per_second")),
    ],
)
def test_what_is_no_policy_says_where(document: dict[str, Any], path: tuple[str | int, ...]) -> None:
    with pytest.raises(PolicyRefusedError) as refused:
        parse_policy(document)
    assert path in [flaw.path for flaw in refused.value.flaws]


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(PolicyRefusedError) as refused:
        policy(allow=["a b", "fine.example", "::1"], deny=["*"])
    assert [flaw.path for flaw in refused.value.flaws] == [("allow", 0), ("allow", 2), ("deny", 0)]


def test_platform_beats_deny_beats_allow_beats_the_mode() -> None:
    both = policy(allow=["10.0.0.0/8", "93.184.216.0/24"], deny=["93.184.216.34:443"])
    assert verdict(both, to_address("10.1.2.3")).rule == Line.PLATFORM_ADDRESS
    assert verdict(both, to_address("93.184.216.34")).rule == "93.184.216.34:443"
    assert verdict(both, to_address("93.184.216.34", 80)).rule == "93.184.216.0/24"
    assert verdict(both, to_address("8.8.8.8")).reason is Reason.NOT_ALLOWED
    opened = policy("open", deny=["93.184.216.34"])
    assert verdict(opened, Destination(PUBLIC, "icmp")).reason is Reason.DENIED_BY_RULE
    assert verdict(opened, to_address("8.8.8.8")).rule == Line.MODE_OPEN


def test_an_address_is_tcp_and_udp_and_a_port_is_tcp() -> None:
    made = policy(allow=["93.184.216.34", "8.8.8.8:99", "9.9.9.9:99/udp"])
    assert verdict(made, to_address("93.184.216.34", 7, "udp")).allowed
    assert not verdict(made, Destination(PUBLIC, "icmp")).allowed
    assert verdict(made, to_address("8.8.8.8", 99)).allowed
    assert not verdict(made, to_address("8.8.8.8", 99, "udp")).allowed
    assert verdict(made, to_address("9.9.9.9", 99, "udp")).allowed


@pytest.mark.parametrize(
    ("rule", "last"),
    [("0.0.0.0/0", "223.255.255.255"), ("255.255.255.255", None), ("223.255.255.255", "223.255.255.255")],
)
def test_edges_of_the_address_space(rule: str, last: str | None) -> None:
    made = policy(allow=[rule])
    assert verdict(made, to_address("255.255.255.255")).rule == Line.PLATFORM_ADDRESS
    if last is not None:
        assert verdict(made, to_address(last)).allowed


def test_an_empty_allowlist_reaches_nothing() -> None:
    assert verdict(policy(), to_address("8.8.8.8")).rule == Line.MODE_ALLOWLIST
    assert not verdict(policy(), to_name("example.com")).allowed


def test_a_name_is_itself_and_a_wildcard_what_is_below() -> None:
    made = policy(allow=["example.com", "*.cdn.example"], deny=["bad.cdn.example"])
    assert verdict(made, to_name("example.com")).by_name
    assert verdict(made, to_name("example.com", 80)).allowed
    assert not verdict(made, to_name("example.com", 22)).allowed
    assert not verdict(made, to_name("example.com", 443, "udp")).allowed
    assert not verdict(made, to_name("www.example.com")).allowed
    assert verdict(made, to_name("a.b.cdn.example")).rule == "*.cdn.example"
    assert not verdict(made, to_name("cdn.example")).allowed
    assert verdict(made, to_name("bad.cdn.example")).reason is Reason.DENIED_BY_RULE
    assert not verdict(made, to_name("evilexample.com")).allowed


def test_a_name_that_leads_to_a_private_address_is_refused() -> None:
    made = policy(allow=["example.com"])
    there = Destination(name="example.com", address=IPv4Address("10.0.0.1"), port=443)
    assert verdict(made, there).reason is Reason.PRIVATE_ADDRESS


def test_only_the_platforms_resolver_is_asked_where_names_decide() -> None:
    named = policy(allow=["example.com", "8.8.8.8"])
    assert verdict(named, to_address("8.8.8.8", 53, "udp")).rule == Line.RESOLVER_ONLY
    assert verdict(named, to_address("8.8.8.8", 853)).rule == Line.RESOLVER_ONLY
    assert verdict(policy(allow=["8.8.8.8"]), to_address("8.8.8.8", 53, "udp")).allowed


def test_a_denied_name_makes_names_needed() -> None:
    made = policy("open", deny=["evil.example"])
    assert verdict(made, to_address("8.8.8.8", 443)).reason is Reason.NO_NAME
    assert verdict(made, to_address("8.8.8.8", 443, "udp")).reason is Reason.NO_NAME
    assert verdict(made, to_address("8.8.8.8", 22)).allowed
    assert verdict(made, Destination(name="fine.example", address=PUBLIC, port=443)).allowed
    assert not verdict(made, Destination(name="evil.example", address=PUBLIC, port=443)).allowed
    assert not verdict(made, Destination(name="evil.example", address=PUBLIC, port=22)).allowed


def test_a_secret_allows_its_host_on_443_by_name() -> None:
    for made in (policy(inject=[INJECT]), policy("open", inject=[INJECT])):
        given = verdict(made, to_name("api.example.com"))
        assert given.allowed
        assert given.by_name
        assert given.rule == "api.example.com:443"
    assert not verdict(policy(inject=[INJECT]), to_name("api.example.com", 80)).allowed
    assert verdict(policy("open", inject=[INJECT]), to_address("8.8.8.8", 443)).allowed
    assert not verdict(policy("open", inject=[INJECT]), to_address("8.8.8.8", 443, "udp")).allowed


def test_what_the_resolver_opens() -> None:
    made = policy(
        allow=["db.example:5432", "*.example:79-81", "db.example:3478/udp", "db.example:24-26", "db.example:53/udp"],
        deny=["db.example:5433", "no.example", "db.example:80"],
    )
    assert openings(made, "db.example") == (
        ("tcp", 24, 24),
        ("tcp", 26, 26),
        ("tcp", 79, 79),
        ("tcp", 81, 81),
        ("tcp", 5432, 5432),
        ("udp", 3478, 3478),
    )
    assert openings(made, "no.example") == ()
    assert openings(policy("open"), "db.example") == ()


def test_which_names_the_resolver_answers() -> None:
    made = policy(allow=["example.com", "db.example:5432", "*.w.example"], deny=["x.w.example", "y.w.example:80"])
    answered = ("example.com", "db.example", "a.w.example", "y.w.example")
    assert all(name_verdict(made, name).allowed for name in answered)
    assert not any(name_verdict(made, name).allowed for name in ("w.example", "other.com", "x.w.example"))
    assert name_verdict(policy("open", deny=["evil.example"]), "fine.example").allowed
    assert name_verdict(policy("open", deny=["evil.example"]), "evil.example").reason is Reason.DENIED_BY_RULE
    assert name_verdict(policy(inject=[INJECT]), "api.example.com").allowed
    assert not name_verdict(policy("blocked"), "example.com").allowed


def test_an_operator_makes_exceptions_but_not_to_everything() -> None:
    platform = Platform(exceptions=(IPv4Network("10.9.0.0/16"),), node_addresses=frozenset({IPv4Address("10.9.0.1")}))
    made = policy(allow=["10.9.0.0/24:5432"])
    assert verdict(made, to_address("10.9.0.7", 5432), platform).allowed
    assert verdict(made, to_address("10.9.0.1", 5432), platform).rule == Line.PLATFORM_NODE
    assert verdict(policy("open"), to_address("10.10.0.0"), platform).rule == Line.PLATFORM_ADDRESS
    assert verdict(policy("open"), to_address("10.8.255.255"), platform).rule == Line.PLATFORM_ADDRESS
    assert IPv4Network("10.0.0.0/8") not in denied_networks((), platform.exceptions)
    for never in ("127.0.0.1/32", "169.254.169.254/32", "0.0.0.0/0", "224.0.0.1/32"):
        with pytest.raises(ValueError, match="reaches into"):
            check_exception(IPv4Network(never))


def test_destinations_are_read() -> None:
    assert parse_destination("Packages.Example.com:443") == to_name("packages.example.com")
    assert parse_destination("1.2.3.4:53/udp") == to_address("1.2.3.4", 53, "udp")
    assert verdict(policy("open"), parse_destination("[::1]:443")).rule == Line.PLATFORM_IPV6
    for text in ("example.com", "example.com:0", "example.com:x", "a b:1", "1.2.3.4:99999", "1.2.3.4:1/icmp", ":1", ""):
        with pytest.raises(RuleRefusedError):
            parse_destination(text)
    assert policy().mode is Mode.ALLOWLIST
