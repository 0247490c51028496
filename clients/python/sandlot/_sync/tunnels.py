# Derived from _async by unasync.py: change it there.
"""Tunnels: ways from outside to a port of a sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from sandlot._commands import segment
from sandlot._requests import Request
from sandlot._sync.client import Client
from sandlot.descriptions import Link, Tunnel
from sandlot.errors import ConfigurationError
from sandlot.ids import new_idempotency_key
from sandlot.models import as_object, as_objects, parse_time, required, text

_SILENCE_SECONDS = 60.0
"""Opening waits for a sandbox that is still starting."""
_FORMS = ("name", "path", "whole-path")


class Tunnels:
    """The tunnels of one sandbox."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = f"{path}/tunnels"
        self._tokens = f"{path}/tokens"

    def open(
        self,
        port: int | None,
        kind: str = "tcp",
        *,
        allow_cidrs: Sequence[str] = (),
        visibility: str | None = None,
        server_name: str | None = None,
    ) -> Tunnel:
        """Open a tunnel to a port inside; the same again is the same tunnel.

        `tcp` and `udp` are reached at `tunnel.address` by everybody, or from `allow_cidrs` only, and must be listened
        for on 0.0.0.0. `tls` and `http` go through the gateway; `visibility` is of `http` alone, and so is port None.
        """
        given: dict[str, Any] = {
            "allow_cidrs": list(allow_cidrs) or None,
            "visibility": visibility,
            "server_name": server_name,
        }
        body = {"port": port, "kind": kind} | {name: value for name, value in given.items() if value is not None}
        request = Request(
            "POST",
            self._path,
            body=body,
            idempotency_key=new_idempotency_key(),
            silence_seconds=_SILENCE_SECONDS,
        )
        return Tunnel.parse(self._client.call(request))

    def list(self) -> "list[Tunnel]":
        """Return what is open, the oldest first."""
        answer = as_object(self._client.call(Request("GET", self._path)))
        return [Tunnel.parse(item) for item in as_objects(answer.get("items"))]

    def get(self, tunnel_id: str) -> Tunnel:
        """Look one up by id, with the bytes that it has carried and what keeps it from working. NotFoundError."""
        return Tunnel.parse(self._client.call(Request("GET", self._one(tunnel_id))))

    def change(
        self, tunnel_id: str, *, allow_cidrs: Sequence[str] | None = None, visibility: str | None = None
    ) -> Tunnel:
        """Say anew who may use it; whoever may not any more has been cut off when this returns."""
        given: dict[str, Any] = {
            "allow_cidrs": None if allow_cidrs is None else list(allow_cidrs),
            "visibility": visibility,
        }
        body = {name: value for name, value in given.items() if value is not None}
        return Tunnel.parse(self._client.call(Request("PATCH", self._one(tunnel_id), body=body)))

    def close(self, tunnel_id: str) -> None:
        """Close one: its connections are dead when this returns. NotFoundError if there is none."""
        self._client.call(Request("DELETE", self._one(tunnel_id), absence_is_success=True))

    def link(
        self,
        tunnel: Tunnel,
        path: str = "/",
        *,
        port: int | None = None,
        form: str = "name",
        expires_in_seconds: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> Link:
        """Make an address that opens an http tunnel in a browser or a player, to hand out: it works for a while.

        `path` is the server's own. The `form` is a `name` of its own for the server, or a `path` below `/s/`, or below
        `/w/` (`whole-path`), of which the server sees all: for those whose links begin at the root. `port` says which
        one of a tunnel to all of them. What `identity` says reaches the server in `X-Sandlot-Identity`.
        ConfigurationError where there is no such address.
        """
        if form not in _FORMS:
            raise ConfigurationError(f"no form of address: {form!r}", hint=f"There are {', '.join(_FORMS)}.")
        body: dict[str, Any] = {"scopes": ["tunnels:read"], "port": tunnel.port if port is None else port}
        if expires_in_seconds is not None:
            body["expires_in_seconds"] = expires_in_seconds
        if identity is not None:
            body["identity"] = dict(identity)
        request = Request("POST", self._tokens, body=body, idempotency_key=new_idempotency_key())
        answer = as_object(self._client.call(request))
        base = (text(answer, "url") or "").partition("?")[0] if form == "name" else tunnel.path_url
        if base and form == "whole-path":
            base = base.replace("/s/", "/w/", 1)
        if not base:
            raise ConfigurationError("the tunnel has no such address", hint="Is it an http tunnel, and the gateway up?")
        token = required(answer, "token")
        mark = "&" if "?" in path else "?"
        return Link(
            url=f"{base}{path.lstrip('/')}{mark}sandlot_token={token}",
            token=token,
            expires_at=parse_time(answer.get("expires_at")),
        )

    def _one(self, tunnel_id: str) -> str:
        return f"{self._path}/{segment(tunnel_id)}"
