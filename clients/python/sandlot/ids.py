"""Identifiers the client makes: a process that it names itself is never started twice by a retry."""

import base64
import secrets
from typing import Final

_ID_BYTES: Final = 13
_KEY_BYTES: Final = 16


def new_process_id() -> str:
    """Draw a fresh process id.

    >>> process_id = new_process_id()
    >>> len(process_id), process_id[:3]
    (23, 'prc')
    """
    return "prc" + base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower()[:20]


def new_idempotency_key() -> str:
    """Draw a fresh `Idempotency-Key`: one for each intended effect, the same for all its retries."""
    return secrets.token_hex(_KEY_BYTES)
