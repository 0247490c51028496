"""What the calls of tunnels take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict

from sandlot.document.shared import Tunnel


class CreateToken(TypedDict, total=False):
    scopes: list[str]
    expires_in_seconds: int
    port: int | None
    path: str | None
    identity: dict[str, Any] | None


class PatchTunnel(TypedDict, total=False):
    visibility: str
    allow_cidrs: list[str]


class Token(TypedDict, total=False):
    token: str
    expires_at: str
    scopes: list[str]
    url: str | None


class TunnelList(TypedDict, total=False):
    items: list[Tunnel]
