"""Egress policies as callers give them, made canonical, and as they are shown."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from netpolicy.policy import (
    MAX_BANDWIDTH,
    MAX_CONNECTION_RATE,
    MAX_CONNECTIONS,
    MAX_INJECTS,
    MAX_RULES,
    MIN_BANDWIDTH,
    PolicyRefusedError,
    parse_policy,
)
from netpolicy.rules import MAX_RULE
from sandboxd.contract.messages import EgressLimits, EgressSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Open, Strict, Time
from sandboxd.contract.validation import MAX_ERRORS, pointer

RuleText = Annotated[str, Field(max_length=MAX_RULE)]
Bandwidth = Annotated[int, Field(ge=MIN_BANDWIDTH, le=MAX_BANDWIDTH)]


class InjectRule(Strict):
    """A secret put into requests to a host."""

    host: Annotated[str, Field(max_length=1024)]
    header: Annotated[str, Field(max_length=128)]
    value_from: dict[Literal["secret"], Annotated[str, Field(max_length=64)]]
    format: Annotated[str, Field(max_length=1024)] = "{value}"


class Limits(Strict):
    """Limits of a policy."""

    connections: int = Field(default=1024, ge=1, le=MAX_CONNECTIONS)
    """At once."""
    new_connections_per_second: int = Field(default=200, ge=1, le=MAX_CONNECTION_RATE)
    up_bytes_per_second: Bandwidth | None = None
    down_bytes_per_second: Bandwidth | None = None


class EgressPolicy(Strict):
    """What a sandbox may reach: `open` is public addresses, `blocked` nothing, `allowlist` what a rule allows.

    A rule is `destination[:port[-port]][/tcp|/udp]`; the destination an IPv4 address or network, a name, or `*.name`
    for the names below. Deny beats allow. A name without a port means TCP 80 and 443.
    """

    mode: Literal["open", "blocked", "allowlist"]
    allow: list[RuleText] = Field(default_factory=list, max_length=MAX_RULES)
    """With mode `allowlist` only."""
    deny: list[RuleText] = Field(default_factory=list, max_length=MAX_RULES)
    """Not with mode `blocked`."""
    inject: list[InjectRule] = Field(default_factory=list[InjectRule], max_length=MAX_INJECTS)
    limits: Limits = Limits()

    def spec(self, *, at: tuple[str, ...] = (), generation: int = 1) -> EgressSpec:
        """Return it in canonical form; `invalid_policy` names every rule that is none. `at`: where it stands."""
        return _canonical(self.model_dump(), at, generation)


class ExplainEgress(Strict):
    """A destination, and the policy that is to be asked about it."""

    destination: Annotated[str, Field(max_length=MAX_RULE)]
    """`host:port`, with `/udp` for UDP."""
    policy: EgressPolicy | None = None
    """Null: the sandbox's present one."""


class ShownPolicy(Open):
    """A policy in canonical form."""

    mode: Literal["open", "blocked", "allowlist"]
    allow: list[str]
    deny: list[str]
    inject: list[dict[str, Any]]
    limits: EgressLimits


class Egress(Open):
    """A sandbox's policy, and whether it is in force."""

    policy: ShownPolicy
    generation: int
    """Counts policies, apart from the sandbox's own generation."""
    applied_generation: int
    applied_at: Time | None
    state: Literal["applied", "applying", "closed"]
    """`closed`: a change has failed, and nothing is reached until one succeeds."""


class ChangedEgress(Egress):
    """A policy just put in force."""

    closed_connections: int
    """How many connections it forbids were ended."""


class EgressExplanation(Open):
    """What a policy says of a destination."""

    verdict: Literal["allow", "deny"]
    source: Literal["policy", "platform", "limit"]
    rule: str | None
    reason: str | None
    hint: str | None


def default_spec(defaults: Mapping[str, Any]) -> EgressSpec:
    """Return the policy that a project's sandboxes have unless they say."""
    document = defaults.get("egress")
    return EgressSpec(mode="blocked") if document is None else _canonical(document, (), 1)


_HINTS: Final = {
    "not_allowed": "Allow it with a rule in `allow`, or use mode `open`.",
    "denied_by_rule": "Remove the rule from `deny`.",
    "private_address": "Private addresses are not reachable from sandboxes; only an operator can make an exception.",
    "platform_denied": "No policy allows this.",
    "no_name": "Connect by name: where names are denied, a connection on 80 or 443 must say which one it is for.",
}


def hint_of(reason: str | None) -> str | None:
    """Return what to do about a denial."""
    return None if reason is None else _HINTS.get(reason)


def _canonical(document: Mapping[str, Any], at: tuple[str, ...], generation: int) -> EgressSpec:
    try:
        policy = parse_policy(document)
    except PolicyRefusedError as error:
        errors = [
            {"path": pointer((*at, *flaw.path)), "code": flaw.code, "message": flaw.message}
            for flaw in error.flaws[:MAX_ERRORS]
        ]
        first = errors[0]
        raise ProblemError(
            "invalid_policy", f"{first['path'] or 'The policy'}: {first['message']}", errors=errors
        ) from error
    return EgressSpec.model_validate({**policy.to_json(), "generation": generation})
