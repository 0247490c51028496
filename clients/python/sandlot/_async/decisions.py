"""What was decided about a sandbox's traffic: a list, or a stream."""

from collections.abc import AsyncGenerator
from typing import Any, cast

from sandlot._async.client import AsyncClient
from sandlot._clock import async_sleep
from sandlot._lines import NDJSON, LineReader
from sandlot._requests import Request
from sandlot.descriptions import Decision
from sandlot.errors import UnreachableError
from sandlot.models import as_object, as_objects
from sandlot.retries import Patience

_PAGE = 1000


async def listed(
    client: AsyncClient, path: str, query: dict[str, Any], after: str | None
) -> AsyncGenerator[Decision, None]:
    """Yield decisions page after page."""
    while True:
        asked = query | {"limit": _PAGE} | ({"after": after} if after else {})
        page = as_object(await client.call(Request("GET", path, query=asked)))
        for item in as_objects(page.get("items")):
            yield Decision.parse(item)
        after = cast("str | None", page.get("next_cursor"))
        if not after:
            return


async def followed(
    client: AsyncClient, path: str, query: dict[str, Any], after: str | None
) -> AsyncGenerator[Decision, None]:
    """Yield decisions as they come; a broken stream is opened again where it broke."""
    patience = Patience(client.retries)
    while True:
        asked = query | ({"after": after} if after else {})
        request = Request("GET", path, query=asked, accept=NDJSON)
        try:
            async with client.stream(request) as response:
                reader = LineReader()
                async for data in response.aiter_bytes():
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
        await async_sleep(delay)
