"""API keys: 24 bytes in two renderings. Pure.

`secret` is 20 random bytes, `check` the CRC-32 of `"sandlot" + secret`; a typing error or a scanner's guess is refused
without a look-up.
"""

import base64
import hashlib
import re
import zlib
from typing import Final, Literal, NamedTuple

from sandboxd.contract.ids import RandomBytes

SECRET_BYTES: Final = 20
KEY_BYTES: Final = 24
_BASE32: Final = re.compile(r"(sandlot|sandlotop)_([a-z2-7]{39})")
_HEX: Final = re.compile(r"e2b_([0-9a-f]{48})")
_PREFIX_CHARACTERS: Final = 6

KeyKind = Literal["project", "operator"]


class ParsedKey(NamedTuple):
    """A well-formed key: what to look up, and what it claims to be."""

    kind: KeyKind
    digest: bytes


def _check(secret: bytes) -> bytes:
    return zlib.crc32(b"sandlot" + secret).to_bytes(4, "big")


def new_key(random_bytes: RandomBytes) -> bytes:
    """Draw the 24 bytes of a key."""
    secret = random_bytes(SECRET_BYTES)
    return secret + _check(secret)


def render(kind: KeyKind, key: bytes) -> str:
    """Render as `sandlot_…`, or `sandlotop_…` for an operator's."""
    word = "sandlot" if kind == "project" else "sandlotop"
    return f"{word}_{base64.b32encode(key).decode().lower().rstrip('=')}"


def render_e2b(key: bytes) -> str:
    """Render as `e2b_…`: the same key, in the form E2B's clients insist on."""
    return f"e2b_{key.hex()}"


def digest_of(key: bytes) -> bytes:
    """Return what is stored of a key."""
    return hashlib.sha256(key).digest()


def prefix_of(kind: KeyKind, key: bytes) -> str:
    """Return what may be shown of a key."""
    rendered = render(kind, key)
    return rendered[: rendered.index("_") + 1 + _PREFIX_CHARACTERS]


def decode(text: str) -> bytes:
    """Return the 24 bytes of a key that `parse` accepts."""
    word, _, body = text.partition("_")
    return bytes.fromhex(body) if word == "e2b" else base64.b32decode(body.upper() + "=")


def parse(text: str) -> ParsedKey | None:
    """Read either rendering; None if it is malformed, has padding bits set, or a wrong check."""
    kind: KeyKind = "project"
    if match := _BASE32.fullmatch(text):
        kind = "project" if match[1] == "sandlot" else "operator"
    elif _HEX.fullmatch(text) is None:
        return None
    key = decode(text)
    if match and render(kind, key) != text:
        return None
    secret, check = key[:SECRET_BYTES], key[SECRET_BYTES:]
    return ParsedKey(kind, digest_of(key)) if _check(secret) == check else None
