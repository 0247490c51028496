"""Identifiers: a three-letter type and 20 characters of base32, always 23 long.

One length for all, because runsc matches an ambiguous id by its prefix, and lower case without a
separator, because a sandbox id is also a DNS label.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import StringConstraints

ID_BYTES: Final = 13
"""Random bytes drawn for one id; 100 of their 104 bits are kept."""

TYPES: Final = frozenset(
    {"sbx", "prc", "img", "snp", "tun", "nod", "prj", "key", "evt", "whk", "dlv", "aud", "req"},
)

_PATTERN: Final = re.compile(r"[a-z]{3}[a-z2-7]{20}")

RandomBytes = Callable[[int], bytes]
"""Returns the given number of random bytes; `os.urandom` outside tests."""

SandboxId = Annotated[str, StringConstraints(pattern=r"^sbx[a-z2-7]{20}$")]
ProcessId = Annotated[str, StringConstraints(pattern=r"^prc[a-z2-7]{20}$")]
ImageId = Annotated[str, StringConstraints(pattern=r"^img[a-z2-7]{20}$")]
NodeId = Annotated[str, StringConstraints(pattern=r"^nod[a-z2-7]{20}$")]
TunnelId = Annotated[str, StringConstraints(pattern=r"^tun[a-z2-7]{20}$")]
ProjectId = Annotated[str, StringConstraints(pattern=r"^prj[a-z2-7]{20}$")]


def new_id(kind: str, random_bytes: RandomBytes) -> str:
    """Draw a fresh id of `kind`, one of TYPES."""
    return id_from_bytes(kind, random_bytes(ID_BYTES))


def id_from_bytes(kind: str, data: bytes) -> str:
    """Render the first 100 bits of `data` (at least 13 bytes) as an id of `kind`."""
    if kind not in TYPES:
        msg = f"no such id type: {kind}"
        raise ValueError(msg)
    return kind + base64.b32encode(data).decode().lower()[:20]


def is_id(kind: str, text: str) -> bool:
    """Tell whether `text` is an id of `kind`."""
    return text.startswith(kind) and _PATTERN.fullmatch(text) is not None


def new_handle(random_bytes: RandomBytes) -> str:
    """Draw a name for a sandbox that is nobody's yet. As long as an id, but no call can name it: it is none."""
    return "sbx1" + id_from_bytes("sbx", random_bytes(ID_BYTES))[4:]


def is_handle(text: str) -> bool:
    """Tell whether `text` is what a node's own parts may know a sandbox by: its id, or a name of the ready pool."""
    return is_id("sbx", f"sbxa{text[4:]}" if text.startswith("sbx1") else text)


def process_id_from_key(sandbox_id: str, idempotency_key: str) -> str:
    """Return the process id an `Idempotency-Key` on a process call stands for."""
    digest = hashlib.sha256(sandbox_id.encode() + b"\0" + idempotency_key.encode()).digest()
    return id_from_bytes("prc", digest)


def entrypoint_process_id(sandbox_id: str) -> str:
    """Return the process id of a sandbox's entrypoint. No key can stand for it: keys are printable."""
    return process_id_from_key(sandbox_id, "\0entrypoint")


def image_id_from_digest(digest: str) -> str:
    """Return the image id of a `sha256:<hex>` digest: the same content has the same id on every node."""
    return id_from_bytes("img", bytes.fromhex(digest.removeprefix("sha256:")))
