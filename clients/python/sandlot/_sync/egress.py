# Derived from _async by unasync.py: change it there.
"""What a sandbox may reach: read, changed while it runs, explained, and what it tried."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from sandlot._commands import iso, policy_of
from sandlot._requests import Request
from sandlot._sync import decisions
from sandlot._sync.client import Client
from sandlot.descriptions import Decision, EgressExplanation, EgressInfo


class Egress:
    """The egress policy of one sandbox."""

    def __init__(self, client: Client, sandbox_path: str) -> None:
        self._client = client
        self._path = f"{sandbox_path}/egress"

    def get(self) -> EgressInfo:
        """Return the policy, and whether it is in force. Also of a sandbox that has ended."""
        return EgressInfo.parse(self._client.call(Request("GET", self._path)))

    def set(
        self,
        policy: str | Mapping[str, Any] | None = None,
        *,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        limits: Mapping[str, Any] | None = None,
        if_generation: int | None = None,
    ) -> EgressInfo:
        """Replace the policy; returns once every connection that the new one forbids is dead, the others live on.

        `policy` is a mode (`"open"`, `"blocked"`, `"allowlist"`) or a whole policy; with `allow` alone it is an
        allowlist. Rules read `destination[:port[-port]][/tcp|/udp]`. With `if_generation` nothing changes unless that
        is the present policy's. Raises ApiError `egress_not_applied` when the node could not: until a change succeeds
        the sandbox reaches nothing.
        """
        body = policy_of(policy, allow=allow, deny=deny, limits=limits)
        headers = {} if if_generation is None else {"If-Match": f'"{if_generation}"'}
        return EgressInfo.parse(self._client.call(Request("PUT", self._path, body=body, more_headers=headers)))

    def explain(self, destination: str, policy: str | Mapping[str, Any] | None = None) -> EgressExplanation:
        """Say whether a destination such as `"packages.example.com:443"` is allowed, and which rule says so.

        By the present policy unless one is given. Nothing is sent there, and nothing changed.
        """
        body: dict[str, Any] = {"destination": destination}
        if policy is not None:
            body["policy"] = policy_of(policy)
        return EgressExplanation.parse(self._client.call(Request("POST", f"{self._path}/explain", body=body)))

    def decisions(
        self,
        *,
        follow: bool = False,
        after: str | None = None,
        verdict: str | None = None,
        since: datetime | None = None,
    ) -> Generator[Decision, None]:
        """Yield what was decided about its traffic, oldest first, also after its end.

        With `follow` it goes on until the sandbox ends; a broken stream is opened again where it broke.
        """
        given = {"verdict": verdict, "since": iso(since)}
        query: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        read = decisions.followed if follow else decisions.listed
        with closing(read(self._client, f"{self._path}/decisions", query, after)) as found:
            for decision in found:
                yield decision
