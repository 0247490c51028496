"""What a registry says about who may come in: `WWW-Authenticate` parsed, `Retry-After` parsed. Text in, values out."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_HEADER_LIMIT: Final = 16 * 1024
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar's word for a word
_SCHEME: Final = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)(?!\s*=)")
_PARAMETER: Final = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in: `basic` or `bearer`, with what the server says about it."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict[str, str])


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header. What cannot be read ends the list; the first of a doubled parameter counts."""
    if len(header) > _HEADER_LIMIT:
        return []
    challenges: list[Challenge] = []
    position = 0
    while position < len(header):
        if challenges and (match := _PARAMETER.match(header, position)):
            value = re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL) if match[2] is not None else match[3]
            challenges[-1].parameters.setdefault(match[1].lower(), value)
        elif match := _SCHEME.match(header, position):
            challenges.append(Challenge(match[1].lower()))
        else:
            break
        position = match.end()
    return challenges


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Read Retry-After, in seconds from now; None when it says nothing readable."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())
