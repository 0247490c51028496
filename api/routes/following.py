"""What a stream of the api's own is asked for with: in which form, and where it goes on."""

import re
from typing import Final

from starlette.requests import Request

from api.routes.relay import EVENT_STREAM
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field

CURSOR: Final = r"[A-Za-z0-9_=-]{1,256}"
_MOST_RANGES: Final = 64


def accepted(request: Request, *offers: str) -> str:
    """Return the offer the caller accepts; the first that fits where several do. Raises `not_acceptable`."""
    accept = request.headers.get("accept", "")
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")[:_MOST_RANGES] if part.strip()]
    for media in ranges or ["*/*"]:
        for offer in offers:
            if media in {"*/*", offer, offer.partition("/")[0] + "/*"}:
                return offer
    raise ProblemError("not_acceptable", "None of the types in Accept is available.", available=list(offers))


def goes_on(request: Request, kind: str, after: str | None, cursor: str = CURSOR) -> tuple[str | None, bool]:
    """Return where a stream goes on, and whether it was read to its end before: then the answer is 204.

    `Last-Event-ID` is heard with server-sent events alone, and overrides `after`.
    """
    last = request.headers.get("last-event-id") if kind == EVENT_STREAM else None
    if not last:
        return after, False
    found = re.fullmatch(rf"({cursor})?(:end)?", last)
    if found is None:
        raise invalid_field("header:Last-Event-ID", "event_id", "is not an id of this stream")
    return found[1], found[2] is not None
