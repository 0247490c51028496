# Derived from _async by unasync.py: change it there.
"""The way to one sandbox: its paths, and its node where that can be reached directly."""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx

from sandlot._access import NodeAccess
from sandlot._commands import segment
from sandlot._lines import NDJSON, LineReader
from sandlot._requests import Request
from sandlot._sync.client import Client
from sandlot._sync.websocket import WebSocket
from sandlot.models import as_object, as_objects


class Route:
    """Calls of one sandbox. Those of the data plane go to its node while `access` allows it."""

    def __init__(self, client: Client, sandbox_id: str, access: NodeAccess | None = None) -> None:
        self.client = client
        self.sandbox_id = sandbox_id
        self.path = f"/v1/sandboxes/{segment(sandbox_id)}"
        self.access = access

    @property
    def by_api(self) -> "Route":
        """The same sandbox, for calls that only the api serves."""
        return Route(self.client, self.sandbox_id)

    def call(self, method: str, path: str, **fields: Any) -> Any:
        """Return the JSON of a data-plane call; `fields` are those of Request."""
        return self.client.call(Request(method, self.path + path, **fields), self.access)

    def stream(self, path: str, **fields: Any) -> AbstractContextManager[httpx.Response]:
        """Open a streamed answer of the data plane, once."""
        return self.client.stream(Request("GET", self.path + path, **fields), self.access)

    def socket(self, path: str, query: Mapping[str, Any], subprotocol: str) -> WebSocket:
        """Open a WebSocket of the data plane, once."""
        return self.client.socket(Request("GET", self.path + path, query=query), subprotocol, self.access)

    def lines(self, path: str, query: Mapping[str, Any]) -> Generator[dict[str, Any], None]:
        """Yield the objects of a stream of JSON lines, once: it ends where the connection does."""
        with self.stream(path, query=query, accept=NDJSON) as response:
            reader = LineReader()
            for data in response.iter_bytes():
                for line in reader.feed(data):
                    yield line

    def pages(self, path: str, query: Mapping[str, Any]) -> Generator[dict[str, Any], None]:
        """Yield the items of a list, page after page."""
        asked = dict(query)
        while True:
            page = as_object(self.call("GET", path, query=asked))
            for item in as_objects(page.get("items")):
                yield item
            if not page.get("next_cursor"):
                return
            asked["cursor"] = page["next_cursor"]
