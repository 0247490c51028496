"""One rule of an egress policy: `destination[:port[-port]][/tcp|/udp]`. Pure."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from typing import Final

from netpolicy.names import NameRefusedError, canonical_name, is_below

MAX_RULE: Final = 1100
WEB_PORTS: Final = (80, 443)
"""Where a name is read from what the client sends, so that the proxy decides and no address ever does."""
DNS_PORTS: Final = (53, 853)
ANY_PORT: Final = (0, 65535)

_ADDRESS = re.compile(r"[0-9.]+(/[0-9]+)?")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class RuleRefusedError(ValueError):
    """A text is no rule; `code` is stable, the message says what to write instead."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Rule:
    """A destination: addresses, or one name, or (`wildcard`) the names below it.

    Without ports an address means every port of TCP and UDP, a name TCP 80 and 443. With ports it is TCP unless UDP
    is said.
    """

    network: IPv4Network | None
    name: str | None
    wildcard: bool
    ports: tuple[int, int] | None
    protocol: str | None

    @property
    def text(self) -> str:
        """The canonical form, which parses to the same rule and is what tenants are shown."""
        if self.network is not None:
            where = str(self.network.network_address if self.network.prefixlen == 32 else self.network)
        else:
            where = f"*.{self.name}" if self.wildcard else str(self.name)
        if self.ports is not None:
            first, last = self.ports
            where += f":{first}" if first == last else f":{first}-{last}"
            return where + ("/udp" if self.protocol == "udp" else "")
        return where + (f"/{self.protocol}" if self.protocol is not None else "")

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that it means."""
        if self.protocol is not None:
            return (self.protocol,)
        return ("tcp",) if self.name is not None else ("tcp", "udp")

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The ranges of ports that it means."""
        if self.ports is not None:
            return (self.ports,)
        return (ANY_PORT,) if self.name is None else tuple((port, port) for port in WEB_PORTS)

    @property
    def whole(self) -> bool:
        """Whether it names a destination and nothing else: as a denial it then covers every protocol."""
        return self.ports is None and self.protocol is None

    def names(self, name: str) -> bool:
        """Whether it is about this canonical name, whatever the port."""
        if self.name is None:
            return False
        return is_below(name, self.name) if self.wildcard else name == self.name

    def holds(self, address: IPv4Address) -> bool:
        """Whether it is about this address, whatever the port."""
        return self.network is not None and address in self.network

    def carries(self, protocol: str, port: int | None) -> bool:
        """Whether it means this protocol and port."""
        if protocol not in self.protocols or port is None:
            return False
        return any(first <= port <= last for first, last in self.spans)


def parse_rule(text: str) -> Rule:
    """Parse one rule; RuleRefusedError says what is wrong with it."""
    _check_text(text)
    rest, protocol = _split_protocol(text)
    destination, colon, ports_text = rest.partition(":")
    if ":" in ports_text or "[" in rest:
        raise RuleRefusedError("ipv6", "IPv6 is not carried: name the destination, or give its IPv4 address")
    ports = _ports(ports_text) if colon else None
    if ports is not None:
        protocol = protocol or "tcp"
    if _ADDRESS.fullmatch(destination):
        return Rule(network=_network(destination), name=None, wildcard=False, ports=ports, protocol=protocol)
    return _name_rule(destination, ports, protocol)


def _name_rule(destination: str, ports: tuple[int, int] | None, protocol: str | None) -> Rule:
    wildcard = destination.startswith("*.")
    if "*" in (destination[2:] if wildcard else destination):
        raise RuleRefusedError("wildcard", "`*` stands only at the beginning, for the names below: *.example.com")
    if "/" in destination:
        raise RuleRefusedError("destination", "a name has no prefix length; protocols are /tcp and /udp")
    try:
        name = canonical_name(destination.removeprefix("*."))
    except NameRefusedError as error:
        raise RuleRefusedError("name", str(error)) from error
    if ports is None:
        if protocol == "udp":
            raise RuleRefusedError("ports", "a name with /udp needs a port: example.com:3478/udp")
        protocol = None
    return Rule(network=None, name=name, wildcard=wildcard, ports=ports, protocol=protocol)


def _check_text(text: str) -> None:
    if not text:
        raise RuleRefusedError("empty", "the rule is empty")
    if len(text) > MAX_RULE:
        raise RuleRefusedError("too_long", "a rule has at most 1100 characters")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise RuleRefusedError("characters", "no spaces, NULs or control characters in a rule")


def _split_protocol(text: str) -> tuple[str, str | None]:
    rest, slash, last = text.rpartition("/")
    if slash and last.lower() in ("tcp", "udp"):
        return rest, last.lower()
    return text, None


def _ports(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text) if text.isascii() else None
    if match is None:
        raise RuleRefusedError("ports", "after the colon stands a port or a range: 443 or 8000-8100")
    first = int(match[1])
    last = int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise RuleRefusedError("ports", "ports are 1 to 65535, the lower one first")
    return first, last


def _network(text: str) -> IPv4Network:
    try:
        network = IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise RuleRefusedError("address", "not an IPv4 address or network in dotted decimals") from error
    if str(network.network_address) != text.partition("/")[0]:
        raise RuleRefusedError("address", f"the network is written {network}: bits behind the prefix must be zero")
    return network
