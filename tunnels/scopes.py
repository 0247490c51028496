"""What a scope allows, and which one each call of the data plane needs. Pure.

One table for api and node: a token must open the same doors at both.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

AREAS: Final = frozenset(
    {
        "sandboxes",
        "processes",
        "files",
        "egress",
        "tunnels",
        "snapshots",
        "images",
        "events",
        "webhooks",
        "secrets",
        "usage",
        "audit",
        "projects",
        "keys",
        "quotas",
    }
)
SCOPES: Final = AREAS | {f"{area}:{right}" for area in AREAS for right in ("read", "write")}
"""Every scope that a token can have; `admin` and `operator` are for keys alone."""
OF_ACCESS: Final = ("processes", "files", "tunnels")
"""Areas of the calls that a node serves."""

_READS: Final = frozenset({"GET", "HEAD"})
_AREA_OF: Final = {
    "run": "processes",
    "processes": "processes",
    "ports": "processes",
    "files": "files",
    "directories": "files",
    "archive": "files",
    "watch": "files",
    "dial": "tunnels",
}


class Need(NamedTuple):
    """What a call needs."""

    area: str
    write: bool

    @property
    def scope(self) -> str:
        """The least scope that is enough."""
        return f"{self.area}:{'write' if self.write else 'read'}"


VISIT: Final = Need("tunnels", write=False)
"""Opening what an http tunnel leads to."""


def may(scopes: Collection[str], area: str, *, write: bool) -> bool:
    """Tell whether scopes allow reading, or writing, an area. Writing implies reading."""
    enough = ("admin", area, f"{area}:write") if write else ("admin", area, f"{area}:write", f"{area}:read")
    return any(scope in scopes for scope in enough)


def grants(scopes: Collection[str], asked: str) -> bool:
    """Tell whether who has `scopes` may hand out `asked`, a member of SCOPES."""
    area, _, right = asked.partition(":")
    return may(scopes, area, write=right != "read") if right != "" else may(scopes, area, write=True)


def of_access(scopes: Collection[str]) -> list[str]:
    """Return what is left of scopes for the calls that a node serves."""
    found: list[str] = []
    for area in OF_ACCESS:
        if may(scopes, area, write=True):
            found.append(area)
        elif may(scopes, area, write=False):
            found.append(f"{area}:read")
    return found


def need_of(method: str, call: str) -> Need | None:
    """Return what a call `…/sandboxes/{id}/<call>` of the data plane needs; `call` is one path segment.

    None: no call of the data plane. To dial is to write, though its handshake is a GET.
    """
    area = _AREA_OF.get(call)
    if area is None:
        return None
    return Need(area, write=method not in _READS or call == "dial")
