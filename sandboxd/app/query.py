"""Strict query parameters: unknown, repeated or unreadable ones are an error, nothing is clamped."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from sandboxd.contract.validation import invalid_fields

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)


class Query:
    """The query of one request. Read every parameter, then `check`."""

    def __init__(self, request: web.Request, *, repeated: Sequence[str] = ()) -> None:
        """`repeated` may be given more than once."""
        self._values: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        self._errors: list[dict[str, str]] = []
        self._known: set[str] = set()
        if not _is_utf8(request.rel_url.raw_query_string):
            self._refuse("", "encoding", "must be UTF-8; give such a path as path_base64")
        for name, value in request.query.items():
            if name in repeated:
                self._lists.setdefault(name, []).append(value)
                continue
            if name in self._values:
                self._refuse(name, "repeated", "given more than once")
            self._values[name] = value

    def check(self) -> None:
        """Raise `invalid_request` for everything that was wrong, and for what was not asked for."""
        for name in self._values.keys() - self._known:
            self._refuse(name, "unknown_parameter", "not a parameter of this call")
        if self._errors:
            raise invalid_fields(self._errors[:32])

    def has(self, name: str) -> bool:
        """Tell whether a parameter was given."""
        return name in self._values

    def exclusive(self, first: str, second: str) -> None:
        """Refuse two parameters together."""
        if self.has(first) and self.has(second):
            self._refuse(second, "exclusive", f"not together with {first}")

    def text(self, name: str, *, max_bytes: int, pattern: str | None = None) -> str | None:
        value = self._take(name)
        if value is None:
            return None
        if "\0" in value:
            self._refuse(name, "nul", "must not contain NUL")
        elif _utf8_bytes(value) > max_bytes:
            self._refuse(name, "too_long", f"longer than {max_bytes} bytes")
        elif pattern is not None and re.fullmatch(pattern, value) is None:
            self._refuse(name, "pattern", f"must match {pattern}")
        else:
            return value
        return None

    def raw(self, name: str) -> str | None:
        """Return a text; what it may hold is for the caller to say."""
        return self._take(name)

    def texts(self, name: str, *, most: int, max_bytes: int) -> list[str]:
        """Return all texts of a name that may be repeated."""
        found = self._lists.get(name, [])
        if len(found) > most:
            self._refuse(name, "too_many", f"given more than {most} times")
        for value in found[:most]:
            if "\0" in value or not 0 < _utf8_bytes(value) <= max_bytes:
                self._refuse(name, "length", f"has 1 to {max_bytes} bytes, none of them NUL")
        return found

    def choice(self, name: str, values: Sequence[str]) -> str | None:
        value = self._take(name)
        if value is not None and value not in values:
            self._refuse(name, "choice", "must be one of " + ", ".join(values))
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        found = self.optional_integer(name, low, high)
        return default if found is None else found

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        value = self._take(name)
        if value is None:
            return None
        if _INTEGER.fullmatch(value) is None:
            self._refuse(name, "integer", "must be a whole number")
        elif not low <= int(value) <= high:
            self._refuse(name, "range", f"must be from {low} to {high}")
        else:
            return int(value)
        return None

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._take(name)
        if value is None:
            return default
        if _NUMBER.fullmatch(value) is None:
            self._refuse(name, "number", "must be a decimal number")
        elif not low <= float(value) <= high:
            self._refuse(name, "range", f"must be from {low:g} to {high:g}")
        else:
            return float(value)
        return default

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.choice(name, ("true", "false"))
        return default if value is None else value == "true"

    def _take(self, name: str) -> str | None:
        self._known.add(name)
        return self._values.get(name)

    def _refuse(self, name: str, code: str, message: str) -> None:
        self._errors.append({"path": f"query:{name[:100]}", "code": code, "message": message})


def _is_utf8(query: str) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
