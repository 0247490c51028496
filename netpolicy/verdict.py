"""The one answer: may this sandbox reach that destination, and which line says so. Pure.

Platform deny, then deny, then allow, then the mode. The kernel's table, the proxy and the resolver are three ways of
asking this; a property test holds them to it.
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from netpolicy.names import NameRefusedError, canonical_name
from netpolicy.platform import DENIED_TCP_PORTS, PLATFORM, PROTOCOLS, Platform
from netpolicy.policy import Mode, Policy
from netpolicy.regions import join_spans, subtract_spans
from netpolicy.rules import DNS_PORTS, WEB_PORTS, Rule, RuleRefusedError

Source = Literal["policy", "platform", "limit"]


class Line(StrEnum):
    """Lines that are no rule of the tenant's; stable, because tenants read them in denials."""

    PLATFORM_IPV6 = "platform_ipv6"
    PLATFORM_ADDRESS = "platform_address"
    PLATFORM_NODE = "platform_node"
    PLATFORM_PROTOCOL = "platform_protocol"
    PLATFORM_PORT = "platform_port"
    RESOLVER_ONLY = "resolver_only"
    NAME_NEEDED = "name_needed"
    MODE_OPEN = "mode_open"
    MODE_BLOCKED = "mode_blocked"
    MODE_ALLOWLIST = "mode_allowlist"


class Reason(StrEnum):
    """Why not."""

    NOT_ALLOWED = "not_allowed"
    DENIED_BY_RULE = "denied_by_rule"
    PRIVATE_ADDRESS = "private_address"
    PLATFORM_DENIED = "platform_denied"
    NO_NAME = "no_name"
    NAME_MISMATCH = "name_mismatch"
    ECH_REFUSED = "ech_refused"
    UNRESOLVABLE = "unresolvable"
    CREDENTIALS_MISSING = "credentials_missing"
    CERTIFICATE_REFUSED = "certificate_refused"
    REQUEST_REFUSED = "request_refused"
    CONNECTION_LIMIT = "connection_limit"
    RATE_LIMIT = "rate_limit"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where something wants to go: an address, a canonical name, or both when a name has led to an address.

    For a name that the resolver is asked for, the port is what the connection after it will want.
    """

    address: IPv4Address | IPv6Address | None = None
    protocol: str = "tcp"
    port: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and the line of the policy that gave it."""

    allowed: bool
    source: Source
    rule: str
    reason: Reason | None = None
    by_name: bool = False
    """Allowed because of the name: whoever connects must dial the name, not the address that came with it."""


def verdict(policy: Policy, destination: Destination, platform: Platform = PLATFORM) -> Verdict:
    """Say whether a policy lets a sandbox reach a destination, and why."""
    denied = _platform_denial(destination, platform)
    if denied is not None:
        return denied
    if policy.mode is Mode.BLOCKED:
        return _deny(Line.MODE_BLOCKED, Reason.NOT_ALLOWED)
    refused = _denied_by_rule(policy, destination) or _resolver_only(policy, destination)
    if refused is not None:
        return refused
    allowed = _allowed_by_name(policy, destination)
    if allowed is not None:
        return allowed
    if _name_needed(policy, destination):
        return _deny(Line.NAME_NEEDED, Reason.NO_NAME)
    return _allowed_by_address(policy, destination)


def name_verdict(policy: Policy, name: str, platform: Platform = PLATFORM) -> Verdict:
    """Say whether the resolver may answer for a canonical name at all: whether any connection to it is allowed."""
    for rule in policy.deny:
        if rule.names(name) and rule.whole:
            return _deny(rule.text, Reason.DENIED_BY_RULE)
    if policy.mode is Mode.OPEN:
        return Verdict(allowed=True, source="policy", rule=Line.MODE_OPEN)
    ports = {*WEB_PORTS, *(first for _, first, _ in openings(policy, name))}
    for protocol in ("tcp", "udp"):
        for port in sorted(ports):
            given = verdict(policy, Destination(name=name, protocol=protocol, port=port), platform)
            if given.allowed:
                return given
    return verdict(policy, Destination(name=name, protocol="tcp", port=443), platform)


def openings(policy: Policy, name: str) -> tuple[tuple[str, int, int], ...]:
    """Return what the resolver opens at an address of a name: protocol, first and last port; disjoint, in order.

    TCP 80 and 443 are never among them, because there the proxy decides; neither is what is denied.
    """
    found: list[tuple[str, int, int]] = []
    if policy.mode is not Mode.ALLOWLIST:
        return ()
    for protocol in ("tcp", "udp"):
        wanted = _spans_of(policy.allow, name, protocol)
        unwanted = _spans_of(policy.deny, name, protocol, denying=True)
        unwanted += [(port, port) for port in DNS_PORTS]
        if protocol == "tcp":
            unwanted += [(port, port) for port in (*WEB_PORTS, *DENIED_TCP_PORTS)]
        found += [(protocol, first, last) for first, last in subtract_spans(join_spans(wanted), unwanted)]
    return tuple(found)


def parse_destination(text: str) -> Destination:
    """Read `name-or-address:port[/tcp|/udp]`; RuleRefusedError says what is wrong with it."""
    rest, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp"):
        raise RuleRefusedError("protocol", "after the port stands /tcp or /udp, or nothing")
    host, colon, port_text = rest.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdecimal() or not 1 <= int(port_text[:6]) <= 65535:
        raise RuleRefusedError("ports", "a destination is host:port, such as packages.example.com:443")
    port, spoken = int(port_text), protocol.lower() or "tcp"
    if ":" in host:
        try:
            return Destination(address=IPv6Address(host.strip("[]")), protocol=spoken, port=port)
        except AddressValueError as error:
            raise RuleRefusedError("address", "not an address") from error
    try:
        return Destination(address=IPv4Address(host), protocol=spoken, port=port)
    except AddressValueError:
        pass
    try:
        return Destination(name=canonical_name(host), protocol=spoken, port=port)
    except NameRefusedError as error:
        raise RuleRefusedError("name", str(error)) from error


def _platform_denial(destination: Destination, platform: Platform) -> Verdict | None:
    address, private = destination.address, False
    line = None
    if isinstance(address, IPv6Address):
        line = Line.PLATFORM_IPV6
    elif address is not None and platform.is_denied(address):
        line, private = Line.PLATFORM_ADDRESS, True
    elif address is not None and address in platform.node_addresses:
        line = Line.PLATFORM_NODE
    elif destination.protocol not in PROTOCOLS:
        line = Line.PLATFORM_PROTOCOL
    elif destination.protocol == "tcp" and destination.port in DENIED_TCP_PORTS:
        line = Line.PLATFORM_PORT
    if line is None:
        return None
    reason = Reason.PRIVATE_ADDRESS if private else Reason.PLATFORM_DENIED
    return Verdict(allowed=False, source="platform", rule=line, reason=reason)


def _denied_by_rule(policy: Policy, destination: Destination) -> Verdict | None:
    for rule in policy.deny:
        if _concerns(rule, destination) and (rule.whole or rule.carries(destination.protocol, destination.port)):
            return _deny(rule.text, Reason.DENIED_BY_RULE)
    return None


def _resolver_only(policy: Policy, destination: Destination) -> Verdict | None:
    """Where names decide, questions go to the platform's resolver and to nobody else."""
    if policy.named and destination.protocol in ("tcp", "udp") and destination.port in DNS_PORTS:
        return _deny(Line.RESOLVER_ONLY, Reason.NOT_ALLOWED)
    return None


def _allowed_by_name(policy: Policy, destination: Destination) -> Verdict | None:
    name = destination.name
    if name is None:
        return None
    for rule in policy.allow:
        if rule.names(name) and rule.carries(destination.protocol, destination.port):
            return Verdict(allowed=True, source="policy", rule=rule.text, by_name=True)
    if destination.protocol == "tcp" and destination.port == 443 and policy.injects(name):
        return Verdict(allowed=True, source="policy", rule=f"{name}:443", by_name=True)
    return None


def _name_needed(policy: Policy, destination: Destination) -> bool:
    """Whether an address alone is too little: a denied name, or one that gets a secret, could be behind it."""
    if destination.protocol == "udp" and destination.port == 443:
        return policy.judged  # nobody reads a name there
    unnamed = destination.name is None and policy.denies_names
    return unnamed and destination.protocol == "tcp" and destination.port in WEB_PORTS


def _allowed_by_address(policy: Policy, destination: Destination) -> Verdict:
    if policy.mode is Mode.OPEN:
        return Verdict(allowed=True, source="policy", rule=Line.MODE_OPEN)
    address = destination.address
    if isinstance(address, IPv4Address):
        for rule in policy.allow:
            if rule.holds(address) and rule.carries(destination.protocol, destination.port):
                return Verdict(allowed=True, source="policy", rule=rule.text)
    return _deny(Line.MODE_ALLOWLIST, Reason.NOT_ALLOWED)


def _concerns(rule: Rule, destination: Destination) -> bool:
    if destination.name is not None and rule.names(destination.name):
        return True
    return isinstance(destination.address, IPv4Address) and rule.holds(destination.address)


def _spans_of(rules: tuple[Rule, ...], name: str, protocol: str, *, denying: bool = False) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for rule in rules:
        if rule.names(name):
            if denying and rule.whole:
                spans.append((0, 65535))
            elif protocol in rule.protocols:
                spans.extend(rule.spans)
    return spans


def _deny(rule: str, reason: Reason) -> Verdict:
    return Verdict(allowed=False, source="policy", rule=rule, reason=reason)
