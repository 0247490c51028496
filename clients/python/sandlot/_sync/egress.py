# Derived from _async by unasync.py: change it there.
"""What a sandbox may reach: its policy, and what was decided by it."""

from collections.abc import Generator, Mapping
from contextlib import closing
from datetime import datetime
from typing import Any, cast

from sandlot._clock import sleep
from sandlot._commands import iso
from sandlot._lines import NDJSON, LineReader
from sandlot._requests import Request
from sandlot._sync.route import Route
from sandlot.descriptions import Decision
from sandlot.errors import UnreachableError
from sandlot.models import as_object, as_objects
from sandlot.retries import Patience

_PAGE = 1000


class Egress:
    """The egress policy of one sandbox."""

    def __init__(self, route: Route) -> None:
        self._client = route.client
        self._path = f"{route.path}/egress"

    def get(self) -> dict[str, Any]:
        """Return the policy, its generation, and whether it is in force."""
        return as_object(self._client.call(Request("GET", self._path)))

    def set(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the policy; returns once every connection that it forbids is dead."""
        return as_object(self._client.call(Request("PUT", self._path, body=dict(policy))))

    def explain(self, destination: str, policy: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Say whether `host:port` may be reached and which rule says so; by another policy if one is given."""
        body = {"destination": destination} | ({} if policy is None else {"policy": dict(policy)})
        return as_object(self._client.call(Request("POST", f"{self._path}/explain", body=body)))

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
        found = self._followed(query, after) if follow else self._listed(query, after)
        with closing(found) as decisions:
            for decision in decisions:
                yield decision

    def _listed(self, query: dict[str, Any], after: str | None) -> Generator[Decision, None]:
        while True:
            asked = query | {"limit": _PAGE} | ({"after": after} if after else {})
            page = as_object(self._client.call(Request("GET", f"{self._path}/decisions", query=asked)))
            for item in as_objects(page.get("items")):
                yield Decision.parse(item)
            after = cast("str | None", page.get("next_cursor"))
            if not after:
                return

    def _followed(self, query: dict[str, Any], after: str | None) -> Generator[Decision, None]:
        patience = Patience(self._client.retries)
        while True:
            asked = query | ({"after": after} if after else {})
            request = Request("GET", f"{self._path}/decisions", query=asked, accept=NDJSON)
            try:
                with self._client.stream(request) as response:
                    reader = LineReader()
                    for data in response.iter_bytes():
                        for raw in reader.feed(data):
                            patience.progress()
                            after = cast("str | None", raw.get("cursor")) or after
                            if raw.get("kind") != "keepalive":
                                yield Decision.parse(raw)
                return  # noqa: TRY300 - the way out of the loop
            except UnreachableError as error:
                # Without a cursor nobody knows where it broke, and starting over would tell things twice.
                delay = patience.next_delay(error, repeatable=after is not None or not patience.has_progressed)
                if delay is None:
                    raise
            sleep(delay)
