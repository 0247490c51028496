"""The policy of one sandbox as the programs ask it: of a name, of an address that a name led to, of a connection. Pure.

Nothing is decided here: every answer is `verdict`'s, on what the program knows of the destination.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from netpolicy.platform import Platform
from netpolicy.policy import Policy, from_json
from netpolicy.verdict import Destination, Reason, Verdict, name_verdict, openings, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What was decided, and by what: `source` is policy, platform or limit; `rule` a line of the tenant's own."""

    allowed: bool
    source: str
    rule: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """What becomes of a connection: where it goes, if it goes anywhere."""

    ruling: Ruling
    name: str | None
    """Dialled, and nothing else, where there is one."""
    address: IPv4Address
    """What the client asked for; dialled where no name allows the connection but an address does."""
    port: int


@dataclass(frozen=True, slots=True)
class Judge:
    """One sandbox's policy on one node."""

    policy: Policy
    platform: Platform

    @classmethod
    def from_document(cls, document: dict[str, Any], platform: Platform) -> "Judge":
        return cls(from_json(document), platform)

    def of_name(self, name: str) -> Ruling:
        """Say whether the resolver may answer for a canonical name."""
        return _ruling(name_verdict(self.policy, name, self.platform))

    def opens(self, name: str) -> bool:
        """Whether the kernel is to let anything through at a name's addresses."""
        return bool(openings(self.policy, name))

    def against(self, address: IPv4Address) -> Ruling | None:
        """Return why nothing at all may be had at an address, if so."""
        denied = verdict(self.policy, Destination(address=address, protocol="icmp"), self.platform)
        if denied.source == "platform":
            return _ruling(denied)
        for rule in self.policy.deny:
            if rule.whole and rule.holds(address):
                return Ruling(allowed=False, source="policy", rule=rule.text, reason=Reason.DENIED_BY_RULE.value)
        return None

    def of_connection(self, name: str | None, address: IPv4Address, port: int, flaw: str | None = None) -> Course:
        """Decide on a TCP connection to an address whose client gave this name; without one, `flaw` says why."""
        by_name = None if name is None else self._asked(name=name, port=port)
        if by_name is not None and by_name.allowed:
            return Course(_ruling(by_name), name, address, port)
        by_address = self._asked(name=name, address=address, port=port)
        if by_address.allowed:
            return Course(_ruling(by_address), None, address, port)
        refusal = by_name or by_address
        if refusal.source == "policy" and refusal.reason is not Reason.DENIED_BY_RULE:
            missing = flaw or (Reason.NO_NAME if name is None and self.policy.named else refusal.reason)
            refusal = replace(refusal, reason=None if missing is None else Reason(missing))
        return Course(_ruling(refusal), None, address, port)

    def of_result(self, name: str, address: IPv4Address, port: int) -> Ruling:
        """Say whether the proxy may dial an address that an allowed name has led to."""
        return _ruling(self._asked(name=name, address=address, port=port))

    def _asked(self, *, port: int, name: str | None = None, address: IPv4Address | None = None) -> Verdict:
        return verdict(self.policy, Destination(address=address, protocol="tcp", port=port, name=name), self.platform)


def platform_from_document(document: dict[str, Any]) -> Platform:
    """Read what sandboxd says of the node."""
    return Platform(
        node_addresses=frozenset(IPv4Address(text) for text in document["node_addresses"]),
        extra_denied=_networks(document["extra_denied"]),
        exceptions=_networks(document["exceptions"]),
    )


def platform_document(platform: Platform) -> dict[str, Any]:
    """Say the same the other way."""
    return {
        "node_addresses": sorted(str(address) for address in platform.node_addresses),
        "extra_denied": [str(network) for network in platform.extra_denied],
        "exceptions": [str(network) for network in platform.exceptions],
    }


def _networks(texts: Iterable[str]) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in texts)


def _ruling(given: Verdict) -> Ruling:
    return Ruling(
        allowed=given.allowed,
        source=given.source,
        rule=given.rule,
        reason=None if given.reason is None else given.reason.value,
    )
