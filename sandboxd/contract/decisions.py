"""What was decided about a sandbox's traffic, as its owner reads it."""

from typing import Literal

from sandboxd.contract.processes import Open, Time


class Decision(Open):
    """One decision; equal ones within ten seconds are one, with their count."""

    cursor: str
    first_at: Time
    last_at: Time
    count: int
    verdict: Literal["allow", "deny"]
    source: Literal["policy", "platform", "limit"]
    rule: str | None = None
    reason: str | None = None
    name: str | None = None
    address: str | None = None
    port: int | None = None
    protocol: str | None = None
    via: Literal["proxy", "resolver", "kernel"]


class DecisionList(Open):
    """Decisions, oldest first."""

    items: list[Decision]
    next_cursor: str | None = None
