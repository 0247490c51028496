"""Egress policy: what a sandbox may reach, and `verdict`, the one answer that kernel, proxy and resolver are held to.

Pure. A policy is canonical once it exists: two texts that mean the same rule are the same rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from netpolicy.inject import Inject, parse_inject
from netpolicy.regions import MAX_REGIONS, regions
from netpolicy.rules import WEB_PORTS, Rule, RuleRefusedError, parse_rule

MAX_RULES: Final = 256
MAX_INJECTS: Final = 32
MAX_CONNECTIONS: Final = 8192
MAX_CONNECTION_RATE: Final = 1000
MIN_BANDWIDTH: Final = 16_384
MAX_BANDWIDTH: Final = 10_000_000_000


class Mode(StrEnum):
    """`open`: every public address. `blocked`: nothing. `allowlist`: what a rule allows."""

    OPEN = "open"
    BLOCKED = "blocked"
    ALLOWLIST = "allowlist"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with what was given: where (steps from the policy), a stable code, what to write."""

    path: tuple[str | int, ...]
    code: str
    message: str


class PolicyRefusedError(ValueError):
    """What was given is no policy."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("; ".join(f"{'/'.join(map(str, flaw.path))}: {flaw.message}" for flaw in flaws))
        self.flaws = tuple(flaws)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once and how fast."""

    connections: int = 1024
    new_connections_per_second: int = 200
    up_bytes_per_second: int | None = None
    down_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What one sandbox may reach. Deny beats allow, allow beats the mode; `inject` allows its hosts' port 443."""

    mode: Mode
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    inject: tuple[Inject, ...] = ()
    limits: Limits = Limits()

    @property
    def named(self) -> bool:
        """Whether names decide anything: then 80 and 443 go to the proxy and questions to the resolver."""
        return bool(self.inject) or any(rule.name is not None for rule in (*self.allow, *self.deny))

    @property
    def judged(self) -> bool:
        """Whether an address that is allowed must still show its name on 80 and 443.

        The name may be a denied one, or one into whose requests a secret goes.
        """
        return bool(self.inject) or self.denies_names

    @property
    def denies_names(self) -> bool:
        return any(rule.name is not None for rule in self.deny)

    def injects(self, name: str) -> tuple[Inject, ...]:
        """Return what is put into requests to a host."""
        return tuple(entry for entry in self.inject if entry.host == name)

    def to_json(self) -> dict[str, Any]:
        """Return the canonical document, which `from_json` reads back to an equal policy."""
        return {
            "mode": self.mode.value,
            "allow": [rule.text for rule in self.allow],
            "deny": [rule.text for rule in self.deny],
            "inject": [entry.to_json() for entry in self.inject],
            "limits": {
                "connections": self.limits.connections,
                "new_connections_per_second": self.limits.new_connections_per_second,
                "up_bytes_per_second": self.limits.up_bytes_per_second,
                "down_bytes_per_second": self.limits.down_bytes_per_second,
            },
        }


OPEN: Final = Policy(Mode.OPEN)
BLOCKED: Final = Policy(Mode.BLOCKED)


def parse_policy(document: Mapping[str, Any]) -> Policy:
    """Return the policy that a document of checked types means; PolicyRefusedError names all that is wrong with it.

    Absent members have their defaults, `limits` may be null.
    """
    flaws: list[Flaw] = []
    mode = Mode(document["mode"])
    allow = _rules(document.get("allow", ()), "allow", flaws)
    deny = _rules(document.get("deny", ()), "deny", flaws)
    inject = _injects(document.get("inject", ()), flaws)
    asked: Mapping[str, Any] = document.get("limits") or {}
    limits = Limits(**asked)
    policy = Policy(mode, allow, deny, inject, limits)
    _check_modes(policy, flaws)
    _check_sizes(document, policy, flaws)
    if flaws:
        raise PolicyRefusedError(flaws)
    return policy


def from_json(document: Mapping[str, Any]) -> Policy:
    """Read back a canonical document."""
    return parse_policy(document)


def _rules(texts: Iterable[str], where: str, flaws: list[Flaw]) -> tuple[Rule, ...]:
    found: dict[Rule, None] = {}
    for place, text in enumerate(texts):
        try:
            found[parse_rule(text)] = None
        except RuleRefusedError as error:
            flaws.append(Flaw((where, place), error.code, str(error)))
    return tuple(found)


def _injects(entries: Iterable[Mapping[str, Any]], flaws: list[Flaw]) -> tuple[Inject, ...]:
    found: list[Inject] = []
    for place, entry in enumerate(entries):
        try:
            found.append(parse_inject(entry))
        except RuleRefusedError as error:
            flaws.append(Flaw(("inject", place), error.code, str(error)))
            continue
        if any((one.host, one.header) == (found[-1].host, found[-1].header) for one in found[:-1]):
            flaws.append(Flaw(("inject", place), "duplicate", "this header of this host is set twice"))
    return tuple(found)


def _check_modes(policy: Policy, flaws: list[Flaw]) -> None:
    if policy.allow and policy.mode is not Mode.ALLOWLIST:
        flaws.append(Flaw(("allow",), "mode", f"`allow` says nothing in mode {policy.mode}: use mode allowlist"))
    if policy.mode is Mode.BLOCKED:
        if policy.deny:
            flaws.append(Flaw(("deny",), "mode", "mode blocked denies everything already"))
        if policy.inject:
            flaws.append(Flaw(("inject",), "mode", "mode blocked reaches no host to put a secret into"))
    if policy.mode is Mode.OPEN:
        for place, rule in enumerate(policy.deny):
            if rule.name is not None and rule.ports is not None and not _is_web(rule):
                message = "in mode open a name can be denied as a whole or on TCP 80 and 443, not on other ports"
                flaws.append(Flaw(("deny", place), "ports", message))


def _check_sizes(document: Mapping[str, Any], policy: Policy, flaws: list[Flaw]) -> None:
    if len(document.get("allow", ())) + len(document.get("deny", ())) > MAX_RULES:
        flaws.append(Flaw((), "too_many", f"a policy has at most {MAX_RULES} rules in all"))
    if len(document.get("inject", ())) > MAX_INJECTS:
        flaws.append(Flaw(("inject",), "too_many", f"a policy sets at most {MAX_INJECTS} headers"))
    if len(regions(policy.allow)) + len(regions(policy.deny, denying=True)) > MAX_REGIONS:
        flaws.append(Flaw((), "too_complex", "its networks lie in each other with too many different ports"))
    bounds = {
        "connections": (1, MAX_CONNECTIONS),
        "new_connections_per_second": (1, MAX_CONNECTION_RATE),
        "up_bytes_per_second": (MIN_BANDWIDTH, MAX_BANDWIDTH),
        "down_bytes_per_second": (MIN_BANDWIDTH, MAX_BANDWIDTH),
    }
    for name, (least, most) in bounds.items():
        value = getattr(policy.limits, name)
        if value is not None and not least <= value <= most:
            flaws.append(Flaw(("limits", name), "limits", f"between {least} and {most}"))


def _is_web(rule: Rule) -> bool:
    return rule.protocol == "tcp" and rule.ports is not None and rule.ports in tuple((port, port) for port in WEB_PORTS)
