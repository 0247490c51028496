"""Identifiers the client makes: a process that it names itself is never started twice by a retry."""

import base64
import re
import secrets
from typing import Final

_ID_BYTES: Final = 13
_KEY_BYTES: Final = 16
_SANDBOX_ID: Final = re.compile("sbx[a-z2-7]{20}")


def new_process_id() -> str:
    """Draw a fresh process id.

    >>> process_id = new_process_id()
    >>> len(process_id), process_id[:3]
    (23, 'prc')
    """
    return "prc" + base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower()[:20]


def is_sandbox_id(text: str) -> bool:
    """Tell an id from a name.

    >>> is_sandbox_id("sbxaaaaaaaaaaaaaaaaaaaa"), is_sandbox_id("my-box")
    (True, False)
    """
    return _SANDBOX_ID.fullmatch(text) is not None


def new_idempotency_key() -> str:
    """Draw a fresh `Idempotency-Key`: one for each intended effect, the same for all its retries."""
    return secrets.token_hex(_KEY_BYTES)
