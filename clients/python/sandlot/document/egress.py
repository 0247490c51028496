"""What the calls of egress take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict

from sandlot.document.shared import EgressLimits, EgressPolicy


class ShownPolicy(TypedDict, total=False):
    mode: str
    allow: list[str]
    deny: list[str]
    inject: list[dict[str, Any]]
    limits: EgressLimits


class ChangedEgress(TypedDict, total=False):
    policy: ShownPolicy
    generation: int
    applied_generation: int
    applied_at: str | None
    state: str
    closed_connections: int


class Decision(TypedDict, total=False):
    cursor: str
    first_at: str
    last_at: str
    count: int
    verdict: str
    source: str
    rule: str | None
    reason: str | None
    name: str | None
    address: str | None
    port: int | None
    protocol: str | None
    via: str


class DecisionList(TypedDict, total=False):
    items: list[Decision]
    next_cursor: str | None


class Egress(TypedDict, total=False):
    policy: ShownPolicy
    generation: int
    applied_generation: int
    applied_at: str | None
    state: str


class EgressExplanation(TypedDict, total=False):
    verdict: str
    source: str
    rule: str | None
    reason: str | None
    hint: str | None


class ExplainEgress(TypedDict, total=False):
    destination: str
    policy: EgressPolicy | None
