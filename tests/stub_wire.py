"""What crosses the wire to and from the stub: requests, and what is to go wrong with them."""

import json
from dataclasses import dataclass, field
from typing import Any

NOW = "2026-11-22T10:59:01.123Z"

Answer = tuple[int, Any]
"""A status, and what becomes JSON; None for nothing."""


class BreakError(Exception):
    """Close the connection now."""


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""
    raw_path: str = ""
    """The path before anything in it was decoded."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def value(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def is_set(self, name: str, *, default: bool = False) -> bool:
        return self.value(name, str(default).lower()) == "true"


@dataclass
class Raw:
    """An answer that is no JSON."""

    data: bytes
    headers: dict[str, str] = field(default_factory=dict[str, str])
    kind: str = "application/octet-stream"


@dataclass
class Fault:
    """What goes wrong with the next request whose `METHOD path` ends so."""

    ending: str
    status: int | None = None
    """Answer this instead of doing anything."""
    problem: dict[str, Any] | None = None
    """The body of that answer; None: a plain text, as of some proxy."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    drop: str | None = None
    """`before`: close unanswered without any effect; `after`: have the effect, then close unanswered."""
    cut_input: int | None = None
    """Read so many bytes of the request's body, then close."""
    cut_body: int | None = None
    """Send so many bytes of the answer's body, then close."""
    spaces_first: bool = False
    """Send a space before the body, as a server does that is at work on a long answer."""


def problem(status: int, code: str, **members: Any) -> dict[str, Any]:
    return {
        "type": f"/errors/{code}",
        "title": code,
        "status": status,
        "detail": f"stub says {code}",
        "code": code,
        "hint": "Ask the stub.",
        "retryable": False,
        "request_id": "req" + "a" * 20,
    } | members
