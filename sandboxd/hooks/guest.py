"""The guest: it answers, it has been told who it is, and it has acknowledged that."""

from collections.abc import Callable
from typing import Final

from sandboxd.clock import Clock
from sandboxd.contract.ids import RandomBytes
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError, Init, InitResult
from sandboxd.hooks.base import NOTHING, FailPoints, Parts, unless_dead
from sandboxd.network.base import Slot
from sandboxd.runtime.base import Runtime

_SEED_BYTES: Final = 32
_MAX_TEXT: Final = 4096
SANDBOX_ID_VARIABLE: Final = "SANDLOT_SANDBOX_ID"
"""Where a program inside finds out which sandbox it is in."""


class GuestHook:
    """Waits for the guest to listen and initialises it. From then on the sandbox is one that a restart adopts."""

    name = "guest"
    steps = ("guest.connect", "guest.init", "guest.initialized", "guest.close")
    safe_after = NOTHING

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        random_bytes: RandomBytes,
        points: FailPoints,
        *,
        resolvers: tuple[str, ...],
        backstop_margin_seconds: float,
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._random_bytes = random_bytes
        self._points = points
        self._resolvers = resolvers
        self._margin_seconds = backstop_margin_seconds

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("guest.connect")
        slot, guest = self._connect(parts)
        await unless_dead(self._runtime, parts.sandbox_id, guest.listening())
        await self._points.reach("guest.init")
        result = await unless_dead(self._runtime, parts.sandbox_id, guest.init(self._init(parts, slot)))
        parts.init = _believable(result)
        parts.env = {}
        await self._points.reach("guest.initialized")

    async def recover(self, parts: Parts) -> None:
        # It is not asked anything: the first call will tell, and a restart of the agent must be quick.
        self._connect(parts)

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("guest.close")
        if parts.guest is not None:
            await parts.guest.close()

    def _connect(self, parts: Parts) -> tuple[Slot, Guest]:
        if parts.slot is None:
            raise GuestUnreachableError("the sandbox has no slot")
        parts.guest = self._runtime.guest(parts.sandbox_id, parts.slot.address, parts.token)
        return parts.slot, parts.guest

    def _init(self, parts: Parts, slot: Slot) -> Init:
        config = parts.image.config if parts.image else None
        backstop = None
        if parts.spec.timeout_seconds is not None:
            # Its time begins now; until here the deadline was an estimate that a slow start could not cut short.
            parts.wall_deadline = self._clock.boottime() + parts.spec.timeout_seconds
            backstop = parts.spec.timeout_seconds + self._margin_seconds
        return Init(
            hostname=parts.spec.hostname,
            env={SANDBOX_ID_VARIABLE: parts.sandbox_id} | parts.env,
            image_env=config.env if config else {},
            user=parts.spec.user,
            cwd=parts.spec.cwd,
            image_user=config.user if config else None,
            image_cwd=config.cwd if config else None,
            address=slot.address,
            gateway=slot.peer,
            resolvers=self._resolvers if parts.spec.egress.mode == "open" else (),
            max_processes=parts.spec.resources.max_processes,
            memory_bytes=parts.spec.resources.memory_mib * 1024 * 1024,
            now_us=int(self._clock.now().timestamp() * 1_000_000),
            seed=self._random_bytes(_SEED_BYTES),
            backstop_seconds=backstop,
        )


def _believable(result: InitResult) -> InitResult:
    """Refuse what cannot be true of a user, because it is shown, logged and written to the ledger."""
    checks: tuple[tuple[str | None, Callable[[str], bool]], ...] = (
        (result.user, bool),
        (result.cwd, lambda text: text.startswith("/")),
        (result.shell, lambda text: text.startswith("/")),
    )
    for text, plausible in checks:
        if text is not None and not (len(text) <= _MAX_TEXT and text.isprintable() and plausible(text)):
            raise GuestError("the guest's answer to init is not believable")
    return result
