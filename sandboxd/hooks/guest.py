"""The guest: it answers, it has been told who it is, and it has acknowledged that."""

from collections.abc import Callable
from typing import Final

from sandboxd.clock import Clock
from sandboxd.contract.ids import RandomBytes, new_id
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError, Init, InitResult
from sandboxd.hooks.base import NOTHING, FailPoints, Parts, unless_dead
from sandboxd.hooks.trust import VARIABLES
from sandboxd.network.base import Slot
from sandboxd.runtime.base import Runtime
from sandboxd.runtime.bundle import GUEST_MOUNT

_SEED_BYTES: Final = 32
_MAX_TEXT: Final = 4096
SANDBOX_ID_VARIABLE: Final = "SANDLOT_SANDBOX_ID"
"""Where a program inside finds out which sandbox it is in."""


class GuestHook:
    """Waits for the guest to listen and initialises it. From then on the sandbox is one that a restart adopts."""

    name = "guest"
    steps = ("guest.connect", "guest.init", "guest.initialized", "guest.close")
    ready_steps = ("guest.connect", "guest.ready", "guest.init", "guest.initialized")
    safe_after = NOTHING
    claims_after = NOTHING

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
        guest = await self._listening(parts)
        await self._tell(parts, guest, token=None)

    async def make_ready(self, parts: Parts) -> None:
        guest = await self._listening(parts)
        await unless_dead(self._runtime, parts.handle, self._warm(parts, guest))
        await self._points.reach("guest.ready")

    async def claim(self, parts: Parts) -> None:
        if parts.guest is None:
            raise GuestUnreachableError("no guest was made ready")
        await self._tell(parts, parts.guest, token=parts.token)

    async def _warm(self, parts: Parts, guest: Guest) -> None:
        """Have everything done once that a create and a first process do, because each costs more the first time.

        As root, in the root directory, by the guest's own program: nothing of the image has a say. The init of the
        claim makes the guest forget it.
        """
        await guest.init(self._init(parts, None))
        spec = {
            "id": new_id("prc", self._random_bytes), "argv": [f"{GUEST_MOUNT}/guest", "--version"], "env": {},
            "cwd": "/", "user": "0", "tty": None, "stdin": False, "merge_stderr": False, "timeout_seconds": 30,
            "kill_grace_seconds": 0, "tag": None,
            "output": {"mode": "ring", "ring_bytes": 65536, "limit_bytes": None},
        }  # fmt: skip
        async with guest.start_followed(spec) as followed:
            async for _ in followed.batches():
                pass

    async def _listening(self, parts: Parts) -> Guest:
        await self._points.reach("guest.connect")
        guest = self._connect(parts)
        await unless_dead(self._runtime, parts.handle, guest.listening())
        return guest

    async def _tell(self, parts: Parts, guest: Guest, *, token: str | None) -> None:
        await self._points.reach("guest.init")
        result = await unless_dead(self._runtime, parts.handle, guest.init(self._init(parts, token)))
        parts.init = _believable(result)
        parts.env, parts.secret_env = {}, {}
        await self._points.reach("guest.initialized")

    async def recover(self, parts: Parts) -> None:
        # It is not asked anything: the first call will tell, and a restart of the agent must be quick.
        self._connect(parts)

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("guest.close")
        if parts.guest is not None:
            await parts.guest.close()

    def _connect(self, parts: Parts) -> Guest:
        slot = _slot(parts)
        parts.guest = self._runtime.guest(parts.handle, slot.address, parts.token)
        return parts.guest

    def _init(self, parts: Parts, token: str | None) -> Init:
        slot = _slot(parts)
        config = parts.image.config if parts.image else None
        backstop = None
        if parts.spec.timeout_seconds is not None:
            # Its time begins now; until here the deadline was an estimate that a slow start could not cut short.
            parts.wall_deadline = self._clock.boottime() + parts.spec.timeout_seconds
            backstop = parts.spec.timeout_seconds + self._margin_seconds
        return Init(
            hostname=parts.spec.hostname,
            env={SANDBOX_ID_VARIABLE: parts.sandbox_id} | parts.env,
            secret_env=parts.secret_env,
            image_env=_trusting(parts) | (config.env if config else {}),
            user=parts.spec.user,
            cwd=parts.spec.cwd,
            image_user=config.user if config else None,
            image_cwd=config.cwd if config else None,
            address=slot.address,
            gateway=slot.peer,
            # Whatever the policy is now, a later one may allow names; where they are not, the question is refused.
            resolvers=self._resolvers or (slot.peer,),
            max_processes=parts.spec.resources.max_processes,
            memory_bytes=parts.spec.resources.memory_mib * 1024 * 1024,
            cpus=parts.spec.resources.cpus,
            now_us=int(self._clock.now().timestamp() * 1_000_000),
            seed=self._random_bytes(_SEED_BYTES),
            backstop_seconds=backstop,
            token=token,
        )


def _trusting(parts: Parts) -> dict[str, str]:
    """Return what tells programs of the project's authority; the image's own variables come before."""
    return VARIABLES if parts.credentials is not None and parts.spec.egress.inject else {}


def _slot(parts: Parts) -> Slot:
    if parts.slot is None:
        raise GuestUnreachableError("the sandbox has no slot")
    return parts.slot


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
