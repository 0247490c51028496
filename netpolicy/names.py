"""Host names: one canonical form, made once, so that what a rule names is byte for byte what is looked up and dialled.

Pure. Whoever reads a name off the wire (a question to the resolver, a Host field, an SNI) takes `name_from_wire`.
"""

import re
from typing import Final

import idna

MAX_NAME: Final = 253
MAX_TEXT: Final = 1024
"""Of a name as it is written, before anything is made of it."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class NameRefusedError(ValueError):
    """What was given is no host name; says why."""


def canonical_name(text: str) -> str:
    """Return a name as it is stored, matched and dialled: A-labels in lower case without a trailing dot."""
    if len(text) > MAX_TEXT:
        raise NameRefusedError("a name has at most 253 characters")
    if not text.isascii():
        text = _to_ascii(text)
    name = text.lower().removesuffix(".")
    _check(name)
    return name


def name_from_wire(data: bytes | str) -> str | None:
    """Return the canonical form of a name that a client sent, or None for what is none.

    Nothing is mapped but case and one trailing dot: on the wire a name is ASCII, or it is somebody's trick.
    """
    try:
        text = data.decode("ascii") if isinstance(data, bytes) else data
        if not text.isascii() or len(text) > MAX_NAME + 1:
            return None
        name = text.lower().removesuffix(".")
        _check(name)
    except ValueError:
        return None
    return name


def is_below(name: str, parent: str) -> bool:
    """Whether a canonical name is a label or more below another; a name is not below itself."""
    return name.endswith("." + parent)


def _to_ascii(text: str) -> str:
    trailing = text.endswith((".", "\u3002", "\uff0e", "\uff61"))
    try:
        encoded = idna.encode(text[:-1] if trailing else text, uts46=True, std3_rules=True, transitional=False)
    except (idna.IDNAError, UnicodeError) as error:
        raise NameRefusedError("not a name that IDNA 2008 can encode") from error
    return encoded.decode("ascii")


def _check(name: str) -> None:
    if not name:
        raise NameRefusedError("the name is empty")
    if len(name) > MAX_NAME:
        raise NameRefusedError("a name has at most 253 characters")
    labels = name.split(".")
    for label in labels:
        if _LABEL.fullmatch(label) is None:
            raise NameRefusedError(
                "every part of a name is 1 to 63 letters, digits and hyphens, with no hyphen at either end"
            )
        if label.startswith("xn--"):
            _check_a_label(label)
    # Some programs read such a name as an address, in decimal, octal or hexadecimal.
    if _NUMBER.fullmatch(labels[-1]):
        raise NameRefusedError("a name does not end in a number")


def _check_a_label(label: str) -> None:
    """Refuse what only looks encoded: two spellings of one label would be matched and dialled as different names."""
    try:
        idna.ulabel(label)
    except (idna.IDNAError, UnicodeError) as error:
        raise NameRefusedError("a part of the name is not a valid A-label") from error
