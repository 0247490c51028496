"""A log as its readers get it: rows as JSON, whole or followed to the end of the sandbox."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

from pydantic_core import to_json

from sandboxd.contract.frames import NAMES, OUTPUT_KINDS, FrameKind
from sandboxd.contract.processes import render_time
from sandboxd.history.keeper import Keeper
from sandboxd.history.log import PARTS, Chunk, read
from sandboxd.history.rows import MARK, NOBODY, Placed, lost_bytes
from sandboxd.history.threads import in_thread
from sandboxd.processes.rendering import moment, split_text

READ_BYTES: Final = 262_144
KEEPALIVE_SECONDS: Final = 15.0


async def lines(
    keeper: Keeper, sandbox_id: str, *, after: int, process_id: str | None, follow: bool
) -> AsyncGenerator[bytes]:
    """Yield lines, each a position, a space and an object: everything behind `after` to the present end.

    Who follows gets what comes later as well, a `keepalive` when nothing has come for a while, and ends with the
    sandbox.
    """
    place = keeper.shelf.place(sandbox_id)
    position = after
    with keeper.watched(sandbox_id) as news:
        while True:
            news.clear()
            goes_on = follow and keeper.is_live(sandbox_id)
            chunk = await in_thread(read, place, position, READ_BYTES)
            rendered = _render(chunk, position, process_id)
            position = chunk.next
            if rendered:
                yield rendered
            if chunk.more:
                continue
            if not goes_on:
                return
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    await news.wait()
            except TimeoutError:
                yield _line(
                    position, {"at": render_time(keeper.now()), "process_id": None, "kind": "keepalive", "text": ""}
                )


def _render(chunk: Chunk, after: int, process_id: str | None) -> bytes:
    out: list[bytes] = []
    for placed in _timed(chunk.rows):
        if placed.row.kind == MARK or process_id not in (None, placed.row.process_id):
            continue
        shown = list(_shown(placed))
        last = len(shown) - 1
        for index, row in enumerate(shown):
            place = placed.end if index == last else placed.begin + index + 1
            if place > after:
                out.append(_line(place, row))
    return b"".join(out)


def _timed(rows: list[Placed]) -> Iterator[Placed]:
    """Give what is missing the time of what follows."""
    at = 0
    timed: list[Placed] = []
    for placed in reversed(rows):
        row = placed.row
        timed.append(placed if row.time_us else placed._replace(row=row._replace(time_us=at)))
        at = row.time_us or at
    return reversed(timed)


def _line(place: int, row: dict[str, Any]) -> bytes:
    return b"%d %s\n" % (place, to_json(row))


def _shown(placed: Placed) -> Iterator[dict[str, Any]]:
    """Yield the objects a row is shown as: at most PARTS, one for each part that is text or is not."""
    row = placed.row
    named = {"at": moment(max(0, row.time_us)), "process_id": row.process_id if row.process_id != NOBODY else None}
    if row.kind in OUTPUT_KINDS:
        kind = NAMES[FrameKind(row.kind)]
        for _, (part, text) in zip(range(PARTS), split_text(row.payload), strict=False):
            content = {"base64": base64.b64encode(part).decode()} if text is None else {"text": text}
            yield named | {"kind": kind} | content
    elif row.kind == FrameKind.LOST:
        yield named | {"kind": "lost", "text": "", "lost_bytes": lost_bytes(row)}
    elif row.kind == FrameKind.EXIT:
        yield named | {"kind": "exit", "text": ""} | _exit(row.payload)


def _exit(payload: bytes) -> dict[str, Any]:
    try:
        return json.loads(payload)
    except ValueError:
        return {}
