# Derived from _async by unasync.py: change it there.
"""What was decided about a sandbox's traffic: a list, or a stream."""

from collections.abc import Generator
from typing import Any, cast

from sandlot._clock import sleep
from sandlot._lines import NDJSON, LineReader
from sandlot._requests import Request
from sandlot._sync.client import Client
from sandlot.descriptions import Decision
from sandlot.errors import UnreachableError
from sandlot.models import as_object, as_objects
from sandlot.retries import Patience

_PAGE = 1000


def listed(client: Client, path: str, query: dict[str, Any], after: str | None) -> Generator[Decision, None]:
    """Yield decisions page after page."""
    while True:
        asked = query | {"limit": _PAGE} | ({"after": after} if after else {})
        page = as_object(client.call(Request("GET", path, query=asked)))
        for item in as_objects(page.get("items")):
            yield Decision.parse(item)
        after = cast("str | None", page.get("next_cursor"))
        if not after:
            return


def followed(client: Client, path: str, query: dict[str, Any], after: str | None) -> Generator[Decision, None]:
    """Yield decisions as they come; a broken stream is opened again where it broke."""
    patience = Patience(client.retries)
    while True:
        asked = query | ({"after": after} if after else {})
        request = Request("GET", path, query=asked, accept=NDJSON)
        try:
            with client.stream(request) as response:
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
