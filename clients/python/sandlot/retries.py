"""When to ask again. Pure: errors in, seconds to wait out; the caller waits.

Two rules decide. An error that says `retryable` had no lasting effect. A connection that broke may have had one, so
only requests that name their effect (an id, an offset, an `Idempotency-Key`) or have none are sent again.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sandlot.errors import ApiError, SandlotError, UnreachableError

_PATIENT_CODES: Final = frozenset({"idempotency_in_flight", "operation_in_progress", "sandbox_not_ready"})
"""The server is at work on it: these wait by the clock, not by the number of tries."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to try again. `RetryPolicy(attempts=1)` never does."""

    attempts: int = 8
    """Tries in a row without any sign of progress."""
    first_seconds: float = 0.2
    longest_seconds: float = 8
    """The pause doubles from the first to the longest, and is then shortened at random by up to a half."""
    patience_seconds: float = 90
    """How long to wait in all for something the server says it is still at work on."""
    deadline_seconds: float | None = None
    """How long one call may take in all, with its retries; None: as long as the rules above allow."""
    longest_retry_after_seconds: float = 60
    """A server that asks for more than this is not waited for: the caller gets its error."""
    spread: Callable[[], float] = field(default=random.random, repr=False)
    """A number from 0 to 1; a seam for tests."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    """Seconds that only grow; a seam for tests."""


class Patience:
    """Counts the failures of one request, or of one stream."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._waited = 0.0
        self.has_progressed = False
        """Something was achieved since the beginning."""
        self._deadline = None if policy.deadline_seconds is None else policy.clock() + policy.deadline_seconds

    def left_seconds(self) -> float | None:
        """Return how much is left of the deadline; None if there is none."""
        return None if self._deadline is None else self._deadline - self._policy.clock()

    def progress(self) -> None:
        """Note that something was achieved: the next failure is the first again."""
        self.has_progressed = True
        self._failures = 0
        self._waited = 0.0

    def next_delay(self, error: SandlotError, *, repeatable: bool) -> float | None:
        """Return the seconds to wait before asking again; None when the error is final.

        `repeatable` says that sending the request twice has the effect of sending it once.
        """
        if isinstance(error, UnreachableError):
            if error.sent and not repeatable:
                return None
            if error.alive:
                self.progress()
        elif not isinstance(error, ApiError) or not self._worth_it(error, repeatable=repeatable):
            return None
        self._failures += 1
        if self._policy.attempts <= 1 or not self._may_go_on(error):
            return None
        delay = self._delay(error)
        left = self.left_seconds()
        if delay is None or (left is not None and delay >= left):
            return None
        self._waited += delay
        return delay

    def _worth_it(self, error: ApiError, *, repeatable: bool) -> bool:
        # A proxy's 502 or 504 says nothing about what reached the server; a problem document does.
        foreign = error.code.startswith("http_") and error.status != 429
        return error.retryable and (repeatable or not foreign)

    def _may_go_on(self, error: SandlotError) -> bool:
        if isinstance(error, ApiError) and error.code in _PATIENT_CODES:
            return self._waited < self._policy.patience_seconds
        return self._failures < self._policy.attempts

    def _delay(self, error: SandlotError) -> float | None:
        asked = error.retry_after_seconds if isinstance(error, ApiError) else None
        if asked is not None:
            longest = self._policy.longest_retry_after_seconds
            return max(asked, self._policy.first_seconds) if asked <= longest else None
        doublings = min(self._failures - 1, 30)
        pause = min(self._policy.first_seconds * 2**doublings, self._policy.longest_seconds)
        return pause * (1 - self._policy.spread() / 2)
