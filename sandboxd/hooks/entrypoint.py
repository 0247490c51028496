"""The entrypoint: the command a sandbox is there for, started once its guest knows who it is."""

from sandboxd.contract.ids import entrypoint_process_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Process, ProcessSpec
from sandboxd.contract.reasons import ProcessReason, SandboxReason
from sandboxd.contract.validation import invalid_field
from sandboxd.guest_client.base import Guest, GuestUnreachableError
from sandboxd.hooks.base import NOTHING, FailPoints, Parts, unless_dead
from sandboxd.processes.specs import guest_spec
from sandboxd.processes.trust import check_process
from sandboxd.runtime.base import Runtime


class EntrypointHook:
    """Starts the entrypoint, if there is one. It ends with the sandbox, so there is nothing to clean up.

    A command that cannot be executed fails the start; one that ends later ends the sandbox.
    """

    name = "entrypoint"
    steps = ("entrypoint.start", "entrypoint.started")
    ready_steps = steps
    safe_after = NOTHING
    claims_after = frozenset({"egress", "launch", "guest", "trust"})

    def __init__(self, runtime: Runtime, points: FailPoints) -> None:
        self._runtime = runtime
        self._points = points

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("entrypoint.start")
        argv = _argv(parts)
        if argv is not None:
            if parts.guest is None:
                raise GuestUnreachableError("no guest to start an entrypoint")
            parts.spec = parts.spec.model_copy(update={"entrypoint": argv})
            await unless_dead(self._runtime, parts.handle, _start(parts, parts.guest, argv))
        await self._points.reach("entrypoint.started")

    async def make_ready(self, parts: Parts) -> None:
        """Whose it will be says what it is there for."""

    async def claim(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def recover(self, parts: Parts) -> None:
        """Leave it running: whoever watches for its end finds it by its id."""

    async def cleanup(self, parts: Parts) -> None:
        """Leave it to the guest's end."""


def _argv(parts: Parts) -> list[str] | None:
    spec = parts.spec
    if not spec.use_image_entrypoint:
        return spec.entrypoint
    config = parts.image.config if parts.image else None
    argv = [*config.entrypoint, *config.cmd] if config else []
    if not argv:
        raise invalid_field(
            "/use_image_entrypoint", "no_entrypoint", f"image {spec.image.reference} has neither entrypoint nor cmd"
        )
    return argv


async def _start(parts: Parts, guest: Guest, argv: list[str]) -> None:
    process_id = entrypoint_process_id(parts.sandbox_id)
    command = guest_spec(ProcessSpec(argv=argv), process_id, None)
    started = await guest.start(command)
    process = check_process(started.process, parts.sandbox_id, process_id)
    if process.reason is ProcessReason.NOT_STARTED:
        parts.exit_code = process.exit_code
        raise _not_executed(process, argv)


def _not_executed(process: Process, argv: list[str]) -> ProblemError:
    why = process.start_error
    return ProblemError(
        "start_failed",
        f"The entrypoint {argv[0][:256]!r} could not be executed: {why.code if why else 'unknown'}.",
        hint="Look for the command in the image, for its path and its mode.",
        reason=SandboxReason.START_FAILED,
        exit_code=process.exit_code,
        start_error=why.code if why else None,
    )
