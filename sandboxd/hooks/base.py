"""The hook seam, what hooks hand each other, and the points at which tests make them fail."""

import asyncio
import hashlib
import hmac
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from netpolicy.credentials import Credentials
from sandboxd.contract.messages import SandboxSpec
from sandboxd.errors import SandboxDiedError
from sandboxd.guest_client.base import Guest, InitResult
from sandboxd.images.base import LocalImage
from sandboxd.network.base import Slot
from sandboxd.runtime.base import Incarnation, Runtime

T = TypeVar("T")


class FailPoints(Protocol):
    """Named moments at which a test may fail, hang or cancel a hook."""

    async def reach(self, step: str) -> None:
        """Say that a step is next."""
        ...


class NoFailPoints:
    """Outside tests nothing happens at a step."""

    async def reach(self, step: str) -> None:
        """Do nothing."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """What the hooks of one sandbox have made of it so far. Written by the hook that makes it, read by later ones."""

    sandbox_id: str
    handle: str
    """What runtime, groups, slot and upper directory know it by: its id, or the name it had in the ready pool."""
    spec: SandboxSpec
    env: dict[str, str] = field(repr=False)
    """Kept until the guest has been told, then dropped."""
    secret_env: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """The same, for processes that want it."""
    token: str = field(repr=False)
    credentials: Credentials | None = field(default=None, repr=False)
    """What its policy injects; in memory only."""
    trusted: str | None = None
    """The certificate of the authority that is trusted inside."""
    wall_deadline: float | None
    """Boot time."""
    leases: AsyncExitStack = field(default_factory=AsyncExitStack)
    image: LocalImage | None = None
    slot: Slot | None = None
    slot_index: int | None = None
    """Also known of a slot that could not be adopted, so that it can be released."""
    incarnation: Incarnation | None = None
    egress_applied: int | None = None
    """The generation of the policy that is true."""
    egress_closed: bool = False
    """A change has failed since: nothing is reached until one succeeds."""
    guest: Guest | None = None
    init: InitResult | None = None
    exit_code: int | None = None
    """Of an entrypoint that could not be executed."""


class Hook(Protocol):
    """One thing that must be true for a sandbox to run.

    `prepare` makes it so; it may fail or be cancelled at any step. `cleanup` undoes it, wholly and any number of
    times, and may be called without `prepare`, or after half of it; it is called in the reverse order of the list.
    `recover` is called instead of `prepare` for a sandbox that an earlier node agent started.

    `make_ready` is called instead of `prepare` for a sandbox of the ready pool, which is nobody's yet; `claim` later
    makes true what is left of `prepare` for the one it becomes. Whichever failed or was cut off, `cleanup` undoes it.
    """

    @property
    def name(self) -> str:
        """The hook's name, unique in its list."""
        ...

    @property
    def steps(self) -> tuple[str, ...]:
        """Every step that `prepare` and `cleanup` reach, in order."""
        ...

    @property
    def ready_steps(self) -> tuple[str, ...]:
        """Every step that `make_ready` and then `claim` reach, in order."""
        ...

    @property
    def safe_after(self) -> frozenset[str]:
        """Hooks whose cleanup must have succeeded before this one's may run.

        What this one holds would else be pulled from under a live sandbox, or handed to another one.
        """
        ...

    @property
    def claims_after(self) -> frozenset[str]:
        """Hooks whose claim must be done before this one's begins; without any, it runs beside the others."""
        ...

    async def prepare(self, parts: Parts) -> None:
        """Make it true."""
        ...

    async def make_ready(self, parts: Parts) -> None:
        """Make true what does not depend on whose it will be; nothing may be reached from it."""
        ...

    async def claim(self, parts: Parts) -> None:
        """Make it this sandbox's: quick, because a create waits for it."""
        ...

    async def recover(self, parts: Parts) -> None:
        """Take over what is there already; raises when it is not whole."""
        ...

    async def cleanup(self, parts: Parts) -> None:
        """Undo it."""
        ...


NOTHING: Final[frozenset[str]] = frozenset()


def guest_token(node_key: bytes, sandbox_id: str, nonce: str) -> str:
    """Return the token of one start of one sandbox's guest. Derived, so that it is nowhere at rest."""
    return hmac.new(node_key, f"{sandbox_id}:{nonce}".encode(), hashlib.sha256).hexdigest()


def token_digest(token: str) -> str:
    """Return what the bundle may hold of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


async def unless_dead(runtime: Runtime, sandbox_id: str, work: Coroutine[Any, Any, T]) -> T:
    """Do `work` unless the sandbox's host processes end first: SandboxDiedError."""

    async def watch() -> None:
        end = await runtime.wait(sandbox_id)
        raise SandboxDiedError(f"its host processes ended ({end})")

    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch())
            result = await work
            watcher.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return result
