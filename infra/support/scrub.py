"""Takes secrets out of text and documents before they leave the machine. Pure."""

import re
from collections.abc import Iterable
from typing import Any, Final, cast

REMOVED: Final = "[removed]"
_SHORTEST: Final = 8
"""Below this a known secret would take ordinary words with it."""

_PATTERNS: Final = (
    re.compile(r"sandlot(?:op)?_[a-z2-7]{20,}"),
    re.compile(r"e2b_[0-9a-f]{20,}"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+"),
    re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"),
    re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
)
_NAMED: Final = re.compile(
    r"(?i)\b([\w-]*(?:password|passwd|secret|token|api[_-]?key|credential|nonce|authorization)[\w-]*)"
    r"(\"?\s*[=:]\s*)(?!\"?\[removed\])(\"(?:[^\"\\]|\\.)*\"|\"?(?:(?:basic|bearer|digest)\s+)?[^\s\",;}]+)"
)
_FIELDS: Final = re.compile(
    r"(?i)^(env|secret_env|labels|metadata|nonce|files|input|stdin)$|password|secret|token|key$|hash"
)


def _without_value(found: re.Match[str]) -> str:
    """Return a name without its value, which may be quoted: then it is so still."""
    quote = '"' if found[3].startswith('"') else ""
    end = quote if found[3].endswith('"') and len(found[3]) > 1 else ""
    return f"{found[1]}{found[2]}{quote}{REMOVED}{end}"


class Scrubber:
    """Knows what must not be seen: whatever looks like a credential, and the secrets it is told of."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({each for each in secrets if len(each) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """Return a text without them."""
        if self._known is not None:
            text = self._known.sub(REMOVED, text)
        for pattern in _PATTERNS:
            text = pattern.sub(REMOVED, text)
        return _NAMED.sub(_without_value, text)

    def document(self, value: Any) -> Any:
        """Return a JSON value without them; of what a caller fills as it likes, the names stay."""
        match value:
            case dict():
                items = cast("dict[str, Any]", value).items()
                return {self.text(str(name)): self._field(str(name), inner) for name, inner in items}
            case list():
                return [self.document(inner) for inner in cast("list[Any]", value)]
            case str():
                return self.text(value)
            case _:
                return value

    def _field(self, name: str, value: Any) -> Any:
        if value in (None, "", [], {}) or isinstance(value, bool):
            return value
        if not _FIELDS.search(name):
            return self.document(value)
        return {str(inner): REMOVED for inner in cast("dict[str, Any]", value)} if isinstance(value, dict) else REMOVED
