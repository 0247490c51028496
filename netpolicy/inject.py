"""Secrets put into requests to a host: what may be asked for. Pure; the values are never here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from netpolicy.names import NameRefusedError, canonical_name
from netpolicy.rules import RuleRefusedError

PLACE: Final = "{value}"
MAX_FORMAT: Final = 1024

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_FORBIDDEN = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say how a message is framed or routed: set by another, they would make one request into two."""


@dataclass(frozen=True, slots=True)
class Inject:
    """One header of requests to one host, on TLS 443, made of a secret."""

    host: str
    header: str
    """In lower case."""
    secret: str
    """The secret's name."""
    format: str = PLACE

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "header": self.header,
            "value_from": {"secret": self.secret},
            "format": self.format,
        }


def parse_inject(entry: Mapping[str, Any]) -> Inject:
    """Return the entry in canonical form; RuleRefusedError says what is wrong with it."""
    host, header, form = entry["host"], entry["header"], entry.get("format", PLACE)
    secret = entry["value_from"].get("secret", "")
    if "*" in host:
        raise RuleRefusedError("wildcard", "a secret goes to one host: its name without `*`")
    try:
        name = canonical_name(host)
    except NameRefusedError as error:
        raise RuleRefusedError("name", str(error)) from error
    if _HEADER.fullmatch(header) is None:
        raise RuleRefusedError("header", "not the name of an HTTP header")
    if header.lower() in _FORBIDDEN:
        raise RuleRefusedError("header", f"{header.lower()} says how a request is framed, and cannot be set")
    if _SECRET.fullmatch(secret) is None:
        raise RuleRefusedError("secret", "a secret's name is a letter or _, then letters, digits, _ and -")
    if len(form) > MAX_FORMAT or not form.isascii() or not form.isprintable() or form.count(PLACE) != 1:
        raise RuleRefusedError("format", f"up to {MAX_FORMAT} printable ASCII characters with {PLACE} exactly once")
    return Inject(host=name, header=header.lower(), secret=secret, format=form)
