"""What the commands print. Results go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandlot.errors import ApiError, SandlotError
from sandlot.models import SandboxInfo


def created(info: SandboxInfo, *, as_json: bool) -> None:
    """Print a new sandbox: its id alone, for `$(…)`."""
    print_json(without_access(info.raw)) if as_json else print_line(info.id)


def sandboxes(items: Sequence[SandboxInfo], *, as_json: bool) -> None:
    """Print a list of sandboxes."""
    if as_json:
        print_json([without_access(info.raw) for info in items])
        return
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for title in ("ID", "STATE", "REASON", "IMAGE", "NAME", "AGE"):
        table.add_column(title, no_wrap=title in {"ID", "STATE"})
    now = datetime.now(timezone.utc)
    for info in items:
        cells = (info.id, info.state, info.reason or "", info.image or "", info.name or "", _age(info.created_at, now))
        table.add_row(*(escape(cell) for cell in cells))
    Console().print(table)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print_line(json.dumps(value, ensure_ascii=False))


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something beside the output of the program."""
    sys.stderr.write(f"sandlot: {text}\n")
    sys.stderr.flush()


def failure(error: SandlotError, *, as_json: bool) -> None:
    """Say what went wrong and what can be done about it."""
    if as_json:
        problem = error.problem if isinstance(error, ApiError) else {"detail": error.message, "hint": error.hint}
        sys.stderr.write(json.dumps({"error": problem}, ensure_ascii=False) + "\n")
        return
    note(error.message)
    if error.hint:
        note(error.hint)
    if isinstance(error, ApiError) and error.request_id:
        note(f"request {error.request_id}")


def without_access(raw: dict[str, Any]) -> dict[str, Any]:
    """Leave out the token of a create: what is printed ends up in logs."""
    return {key: value for key, value in raw.items() if key != "access"}


def _age(since: datetime | None, now: datetime) -> str:
    if since is None:
        return ""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
