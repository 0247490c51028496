"""Strict query parameters: unknown, repeated or unreadable ones are an error, nothing is clamped."""

import re
from collections.abc import Collection
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl

from sandboxd.contract.validation import MAX_ERRORS, invalid_field, invalid_fields

_INTEGER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})", re.ASCII)
_METADATA: Final = re.compile(r"metadata\.([A-Za-z0-9_.-]{1,63})", re.ASCII)


def parse_time(text: str) -> int | None:
    """Read an RFC 3339 time as microseconds since 1970; None if it is none."""
    if _TIME.fullmatch(text) is None:
        return None
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1e6)
    except (ValueError, OverflowError):
        return None


class Query:
    """The query of one request. Read every parameter, then `check`."""

    def __init__(self, raw: bytes) -> None:
        self._values: dict[str, list[str]] = {}
        self._errors: list[dict[str, str]] = []
        self._known: set[str] = set()
        if not raw:
            return
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000)
        except (UnicodeDecodeError, ValueError):
            raise invalid_field("query:", "encoding", "the query is not UTF-8, percent-encoded") from None
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def _refuse(self, name: str, code: str, message: str) -> None:
        self._errors.append({"path": f"query:{name[:128]}", "code": code, "message": message})

    def _take(self, name: str) -> str | None:
        self._known.add(name)
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            self._refuse(name, "repeated", "given more than once")
        return values[0]

    def check(self) -> None:
        """Raise `invalid_request` for everything that was wrong, and for what was not asked for."""
        for name in self._values.keys() - self._known:
            self._refuse(name, "unknown_parameter", "not a parameter of this call")
        if self._errors:
            raise invalid_fields(self._errors[:MAX_ERRORS])

    def text(self, name: str, pattern: str) -> str | None:
        value = self._take(name)
        if value is not None and re.fullmatch(pattern, value) is None:
            self._refuse(name, "pattern", f"must match {pattern}")
        return value

    def choice(self, name: str, default: str, values: Collection[str]) -> str:
        value = self._take(name)
        if value is None:
            return default
        if value not in values:
            self._refuse(name, "choice", "must be one of " + ", ".join(values))
        return value

    def choices(self, name: str, values: Collection[str]) -> tuple[str, ...]:
        """Read a parameter that may be repeated."""
        self._known.add(name)
        given = self._values.get(name, [])
        if any(value not in values for value in given):
            self._refuse(name, "choice", "must be one of " + ", ".join(values))
        return tuple(sorted(set(given)))

    def comma_choices(self, name: str, values: Collection[str]) -> tuple[str, ...]:
        """Read a comma-separated list."""
        value = self._take(name)
        given = () if value is None else tuple(value.split(","))
        if any(one not in values for one in given):
            self._refuse(name, "choice", "must be some of " + ", ".join(values))
        return given

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self._take(name)
        if value is None:
            return default
        if _INTEGER.fullmatch(value) is None or not low <= int(value) <= high:
            self._refuse(name, "range", f"must be a whole number from {low} to {high}")
            return default
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._take(name)
        if value is None:
            return default
        if _NUMBER.fullmatch(value) is None or not low <= float(value) <= high:
            self._refuse(name, "range", f"must be a number from {low:g} to {high:g}")
            return default
        return float(value)

    def time(self, name: str) -> int | None:
        value = self._take(name)
        if value is None:
            return None
        moment = parse_time(value)
        if moment is None:
            self._refuse(name, "time", "must be an RFC 3339 time such as 2026-01-31T12:00:00Z")
        return moment

    def metadata(self) -> dict[str, str]:
        """Read every `metadata.<key>`."""
        found: dict[str, str] = {}
        for name in self._values:
            if (match := _METADATA.fullmatch(name)) and (value := self._take(name)) is not None:
                found[match[1]] = value
        return found
