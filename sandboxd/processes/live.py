"""A live sandbox as calls on its processes see it, and what becomes of a call when the sandbox ends under it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Final, Protocol

from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError

END_GRACE_SECONDS: Final = 0.25
"""What was already on its way when a sandbox ended may still arrive within this time."""

VERDICT_SECONDS: Final = 5.0
"""How long a guest that fell silent is given before it counts as failed rather than ended."""


class Ending:
    """The moment after which nothing more comes from a sandbox's guest. Happens once."""

    def __init__(self) -> None:
        self._over = False
        self._watchers: dict[object, Callable[[], None]] = {}

    def is_set(self) -> bool:
        """Tell whether it has happened."""
        return self._over

    def set(self) -> None:
        """Let it happen. Idempotent."""
        self._over = True
        while self._watchers:
            self._watchers.popitem()[1]()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called once when it happens, at once if it has; returns how to call that off."""
        if self._over:
            callback()
            return lambda: None
        key = object()
        self._watchers[key] = callback

        def unsubscribe() -> None:
            self._watchers.pop(key, None)

        return unsubscribe

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for it; False when the time is over before."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unsubscribe = self.subscribe(lambda: None if waiter.done() else waiter.set_result(None))
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            unsubscribe()
        return True


class LiveSandbox(Protocol):
    """A sandbox whose guest can be spoken to. Using it counts as activity."""

    @property
    def id(self) -> str:
        """The sandbox's id."""
        ...

    @property
    def guest(self) -> Guest:
        """A client of its guest."""
        ...

    @property
    def shell(self) -> str | None:
        """What runs `shell` commands; None: the image has none."""
        ...

    @property
    def ended(self) -> Ending:
        """Set when the sandbox's host processes are gone, after its guest was drained if that was possible."""
        ...

    def process_started(self) -> None:
        """Take note that a process was started, whose output is to be kept."""
        ...

    def denied(self, begin: datetime, end: datetime) -> list[dict[str, Any]]:
        """Return the refusals of its traffic between two moments, the latest 20, oldest first."""
        ...

    def end_problem(self) -> ProblemError:
        """Return the `sandbox_ended` problem with state, reason and time. Only once `ended` is set."""
        ...

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        """Take note that the guest broke its protocol, or is silent although the sandbox has not ended."""
        ...


class Sandboxes(Protocol):
    """The sandboxes of this node."""

    def use(self, sandbox_id: str) -> AbstractAsyncContextManager[LiveSandbox]:
        """Enter a sandbox; being inside counts as activity.

        Entering waits at most 30 s for the NOT_READY states to pass, then raises `sandbox_not_ready`. Raises
        `sandbox_not_found`, `sandbox_paused`, `sandbox_ended` or `moved` as ProblemError.
        """
        ...


@asynccontextmanager
async def guarded(sandbox: LiveSandbox) -> AsyncGenerator[None]:
    """Run one call on a guest: its end, its silence and its lies become problems.

    Raises `sandbox_ended` when the sandbox ends before the call is done, `guest_failed` when the guest breaks its
    protocol, or falls silent in a sandbox that has not ended.
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    try:
        async with scope:
            unsubscribe = sandbox.ended.subscribe(lambda: scope.reschedule(loop.time() + END_GRACE_SECONDS))
            try:
                yield
            finally:
                unsubscribe()
    except TimeoutError:
        if not scope.expired():
            raise
        raise sandbox.end_problem() from None
    except GuestError as error:
        raise failed(sandbox, error) from error
    except GuestUnreachableError as error:
        if await sandbox.ended.wait(VERDICT_SECONDS):
            raise sandbox.end_problem() from None
        raise failed(sandbox, error) from error


def failed(sandbox: LiveSandbox, error: GuestError | GuestUnreachableError) -> ProblemError:
    """Report what the guest did and return the problem a client sees of it."""
    sandbox.report_guest(error)
    if isinstance(error, GuestError):
        detail = "The sandbox's guest agent broke its protocol."
    else:
        detail = "The sandbox's guest agent does not answer."
    return ProblemError("guest_failed", detail, hint="Delete this sandbox and create another.")
