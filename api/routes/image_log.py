"""Logs of images as the public surface shows them."""

import re
from collections.abc import AsyncIterator
from typing import Final

from api.routes.relay import Render, whole_lines

_KIND: Final = re.compile(rb'"kind":"([a-z]{1,16})"')
_NEXT: Final = re.compile(rb'"next":([0-9]{1,12})')


async def as_lines(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Show a log as lines of JSON: what the node says, whole lines at a time."""
    async for whole in whole_lines(content):
        for line in whole:
            yield line + b"\n"


def as_server_events(after: int) -> Render:
    """Return what shows a log as server-sent events."""

    async def render(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"retry: 1000\nid: %d\ndata:\n\n" % after
        async for whole in whole_lines(content):
            for line in whole:
                kind, following = _KIND.search(line), _NEXT.search(line)
                if kind is None or following is None:
                    yield b": keepalive\n\n"
                    continue
                end = b":end" if kind[1] == b"exit" else b""
                yield b"event: %b\nid: %b%b\ndata: %b\n\n" % (kind[1], following[1], end, line)

    return render
