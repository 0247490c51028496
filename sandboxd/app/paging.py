"""One page of a list of processes, by start time and id, with a cursor that fits only the filters it was made for."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Process, ProcessList


def page_of(
    processes: Sequence[Process],
    *,
    filters: tuple[str | None, ...],
    descending: bool,
    limit: int,
    cursor: str | None,
) -> ProcessList:
    """Return the page behind `cursor`. What exists during a whole walk is seen exactly once."""
    ordered = sorted(processes, key=_place, reverse=descending)
    seal = hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]
    if cursor is not None:
        behind = _read_cursor(cursor, seal)
        ordered = [row for row in ordered if (_place(row) < behind if descending else _place(row) > behind)]
    page = ordered[:limit]
    more = len(ordered) > limit
    return ProcessList(items=page, next_cursor=_cursor(page[-1], seal) if more else None)


def _place(process: Process) -> tuple[datetime, str]:
    return process.started_at, process.id


def _cursor(process: Process, seal: str) -> str:
    place = json.dumps([seal, process.started_at.isoformat(), process.id])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, seal: str) -> tuple[datetime, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        sealed, at, process_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        moment = datetime.fromisoformat(at)
    except (binascii.Error, ValueError, TypeError):
        raise _invalid() from None
    if sealed != seal or moment.tzinfo is None or not isinstance(process_id, str):
        raise _invalid()
    return moment, process_id


def _invalid() -> ProblemError:
    return ProblemError("invalid_cursor", "The cursor is not one of this list.", hint="Begin again without cursor.")
