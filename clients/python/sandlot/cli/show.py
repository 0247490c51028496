"""What the commands print. Results go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final, cast

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandlot.errors import ApiError, SandlotError
from sandlot.models import SandboxInfo

_KIBI: Final = 1024
_PIPE_COLUMNS: Final = 200
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""Where Python keeps the bytes of a name that are not text."""
_UNBROKEN: Final = frozenset({"ID", "STATE", "SANDBOX"})


def created(info: SandboxInfo, *, as_json: bool) -> None:
    """Print a new sandbox: its id alone, for `$(…)`."""
    print_json(without_access(info.raw)) if as_json else print_line(info.id)


def sandboxes(items: Sequence[SandboxInfo], *, as_json: bool) -> None:
    """Print a list of sandboxes."""
    if as_json:
        print_json([without_access(info.raw) for info in items])
        return
    shown = table("ID", "STATE", "REASON", "IMAGE", "NAME", "AGE")
    now = datetime.now(timezone.utc)
    for info in items:
        cells = (info.id, info.state, info.reason or "", info.image or "", info.name or "", _age(info.created_at, now))
        shown.add_row(*(escape(cell) for cell in cells))
    console().print(shown)


def console() -> Console:
    """Return what tables are printed on: as wide as they need to be where nobody looks."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_COLUMNS, color_system=None)


def console_for_people() -> Console:
    """Return what progress is shown on."""
    return Console(stderr=True)


def table(*titles: str) -> Table:
    """Return an empty table."""
    made = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for title in titles:
        made.add_column(title, no_wrap=title in _UNBROKEN)
    return made


def size(count: int | None) -> str:
    """Return a number of bytes for people.

    >>> size(500), size(52428800), size(None)
    ('500B', '50.0MiB', '–')
    """
    if count is None:
        return "–"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < _KIBI:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= _KIBI
    return f"{number:.1f}TiB"


def plain(value: Any) -> dict[str, Any]:
    """Return the fields of one of our dataclasses as JSON has them."""
    return {
        name: one.isoformat() if isinstance(one, datetime) else one
        for name, one in cast("dict[str, Any]", vars(value)).items()
        if name != "raw"
    }


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print one JSON value, on one line unless it is for a person."""
    print_line(json.dumps(value, ensure_ascii=False, indent=indent))


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    r"""Return text as one line that steers no terminal: names and messages may come from inside a sandbox.

    >>> printable("a\x1b[2Jb\n"), printable("grüße"), printable("\udcff")
    ('a\\x1b[2Jb\\n', 'grüße', '\\xff')
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    if _FIRST_BYTE <= ord(one) <= _LAST_BYTE:
        return f"\\x{ord(one) - 0xDC00:02x}"
    return repr(one)[1:-1]


def note(text: str) -> None:
    """Say something beside the output of the program."""
    sys.stderr.write(f"sandlot: {printable(text)}\n")
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


def without_access(raw: Mapping[str, Any]) -> dict[str, Any]:
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
