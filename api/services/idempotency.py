"""Requests that came with an `Idempotency-Key`."""

import hmac
import json
from typing import Any, NoReturn

from api.store.idempotency import Claim, Key
from sandboxd.contract.problems import ProblemError


def key_of(secret: bytes, value: str, *, operation: str, path: str, body: Any) -> Key:
    """Return the key of a request. The fingerprint is keyed, so that the database tells nothing of a body's secrets."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    fingerprint = hmac.digest(secret, f"POST {path}\0".encode() + canonical, "sha256")
    return Key(value=value, fingerprint=fingerprint, operation=operation)


def refuse(claim: Claim) -> NoReturn:
    """Raise what a claim that is neither fresh nor done means."""
    if claim.outcome == "mismatch":
        raise ProblemError(
            "idempotency_mismatch",
            "This Idempotency-Key was used for another request within the last 24 hours.",
            hint="Use a new key for a new request.",
        )
    raise ProblemError(
        "idempotency_in_flight",
        "The first request with this Idempotency-Key is still running.",
        retry_after_seconds=1,
    )
