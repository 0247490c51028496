"""What a rule may be, that it is canonical once parsed, and what a name is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.names import NameRefusedError, canonical_name, is_below, name_from_wire
from netpolicy.rules import RuleRefusedError, parse_rule


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("r3---sn-4g5e6nz7.example.com", "r3---sn-4g5e6nz7.example.com"),
        ("example.com:443", "example.com:443"),
        ("example.com:443/tcp", "example.com:443"),
        ("example.com/tcp", "example.com"),
        ("example.com:3478/UDP", "example.com:3478/udp"),
        ("example.com:8000-8100", "example.com:8000-8100"),
        ("example.com:80-80", "example.com:80"),
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4/32", "1.2.3.4"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("255.255.255.255", "255.255.255.255"),
        ("10.9.0.0/24:5432", "10.9.0.0/24:5432"),
        ("10.9.0.0/24:5432/tcp", "10.9.0.0/24:5432"),
        ("10.9.0.0/24/udp", "10.9.0.0/24/udp"),
        ("10.9.0.0/24/tcp", "10.9.0.0/24/tcp"),
        ("1.2.3.4:53/udp", "1.2.3.4:53/udp"),
        ("1.2.3.4:1-65535", "1.2.3.4:1-65535"),
    ],
)
def test_a_rule_has_one_form(text: str, canonical: str) -> None:
    rule = parse_rule(text)
    assert rule.text == canonical
    assert parse_rule(canonical) == rule


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("*", "wildcard"),
        ("a.*.com", "wildcard"),
        ("*.*.com", "wildcard"),
        ("*example.com", "wildcard"),
        ("**.example.com", "wildcard"),
        ("*.", "name"),
        (".", "address"),
        ("example..com", "name"),
        (".example.com", "name"),
        ("-a.example", "name"),
        ("a-.example", "name"),
        ("a_b.example", "name"),
        ("example.com..", "name"),
        ("a" * 64 + ".example", "name"),
        (".".join(["abcdefgh"] * 29), "name"),
        ("xn--a.example", "name"),
        ("xn--zzzzzzzzzzzzzz.example", "name"),
        ("1.2.3.4.5", "address"),
        ("1.2.3", "address"),
        ("0x7f.1", "name"),
        ("example.0x10", "name"),
        ("127.0.0.0x1", "name"),
        ("01.2.3.4", "address"),
        ("1.2.3.256", "address"),
        ("1.2.3.4/33", "address"),
        ("1.2.3.4/24", "address"),
        ("1.2.3.4/255.255.255.0", "destination"),
        ("2001:db8::1", "ipv6"),
        ("[2001:db8::1]:443", "ipv6"),
        ("::/0", "ipv6"),
        ("example.com:0", "ports"),
        ("example.com:65536", "ports"),
        ("example.com:90-80", "ports"),
        ("example.com:", "ports"),
        ("example.com:https", "ports"),
        ("example.com:443-", "ports"),
        ("example.com:٤٤٣", "ports"),
        ("example.com/udp", "ports"),
        ("example.com/sctp", "destination"),
        ("example.com/24", "destination"),
        ("exa\0mple.com", "characters"),
        ("allowed.com\0.evil.com", "characters"),
        ("exa mple.com", "characters"),
        ("example.com\n", "characters"),
        ("exam\u200bple.com", "characters"),
        ("a" * 2000, "too_long"),
        ("http://example.com", "ports"),
        ("user@example.com", "name"),
    ],
)
def test_what_is_no_rule_says_why(text: str, code: str) -> None:
    with pytest.raises(RuleRefusedError) as refused:
        parse_rule(text)
    assert refused.value.code == code


@given(st.text(max_size=60))
def test_whatever_parses_is_stable(text: str) -> None:
    try:
        rule = parse_rule(text)
    except RuleRefusedError:
        return
    assert parse_rule(rule.text) == rule
    assert rule.text.isascii()
    assert "\0" not in rule.text


@given(st.text(max_size=80))
def test_a_name_on_the_wire_is_canonical_or_nothing(text: str) -> None:
    name = name_from_wire(text)
    assert name == name_from_wire(text.encode("utf-8", "surrogatepass"))
    if name is not None:
        assert canonical_name(text) == name
        assert canonical_name(name) == name


def test_names_on_the_wire_are_not_mapped() -> None:
    assert name_from_wire("EXAMPLE.com.") == "example.com"
    assert name_from_wire(b"Example.COM") == "example.com"
    for trick in ("bücher.example", "exa\0mple.com", "example.com:80", "example.com/", "1.2.3.4", "", ".", b"\xff.com"):
        assert name_from_wire(trick) is None


def test_below_is_by_whole_labels() -> None:
    assert is_below("a.example.com", "example.com")
    assert is_below("a.b.example.com", "example.com")
    assert not is_below("example.com", "example.com")
    assert not is_below("evilexample.com", "example.com")
    assert not is_below("example.com.evil.com", "example.com")


@pytest.mark.parametrize("text", ["", ".", "a b", "ex\0.com", "\uff11\uff12\uff17.0.0.1", "0x7f000001", "2130706433"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(NameRefusedError):
        canonical_name(text)
