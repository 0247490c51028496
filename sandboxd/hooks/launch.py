"""The launch: the runtime makes the sandbox's host processes and lets the guest run."""

from pathlib import Path

from sandboxd.clock import Clock
from sandboxd.errors import SandboxDiedError
from sandboxd.hooks.base import NOTHING, FailPoints, Parts, token_digest
from sandboxd.runtime.base import Launch, Runtime, RuntimeFailedError


class LaunchHook:
    """Creates and starts; removes everything the runtime has of the sandbox."""

    name = "launch"
    steps = (
        "launch.create",
        "launch.start",
        "launch.started",
        "launch.kill",
        "launch.remove",
        "launch.removed",
    )
    ready_steps = ("launch.create", "launch.start", "launch.started", "launch.limit", "launch.limited")
    safe_after = NOTHING
    claims_after = NOTHING

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        points: FailPoints,
        *,
        upper_dir: Path,
        guest_dir: Path,
        backstop_margin_seconds: float,
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._points = points
        self._upper_dir = upper_dir
        self._guest_dir = guest_dir
        self._margin_seconds = backstop_margin_seconds

    async def prepare(self, parts: Parts) -> None:
        await self._begin(parts, background=False)

    async def make_ready(self, parts: Parts) -> None:
        await self._begin(parts, background=True)

    async def claim(self, parts: Parts) -> None:
        await self._points.reach("launch.limit")
        await self._runtime.update(parts.handle, parts.spec.resources)
        await self._points.reach("launch.limited")

    async def _begin(self, parts: Parts, *, background: bool) -> None:
        await self._points.reach("launch.create")
        await self._runtime.create(self._launch(parts, background=background))
        await self._points.reach("launch.start")
        parts.incarnation = await self._runtime.start(parts.handle)
        await self._points.reach("launch.started")

    async def recover(self, parts: Parts) -> None:
        """Take over the host processes. SandboxDiedError when they are gone."""
        if parts.incarnation is None or not await self._runtime.recover(parts.handle, parts.incarnation):
            raise SandboxDiedError("its host processes are gone")

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("launch.kill")
        await self._runtime.kill(parts.handle)
        await self._points.reach("launch.remove")
        await self._runtime.remove(parts.handle)
        await self._points.reach("launch.removed")

    def _launch(self, parts: Parts, *, background: bool) -> Launch:
        if parts.image is None or parts.slot is None:
            raise RuntimeFailedError("no image or no slot to launch with")
        backstop = None
        if parts.wall_deadline is not None:
            backstop = max(1.0, parts.wall_deadline - self._clock.boottime()) + self._margin_seconds
        return Launch(
            sandbox_id=parts.handle,
            image_path=parts.image.path,
            hostname=parts.spec.hostname,
            resources=parts.spec.resources,
            netns_path=parts.slot.netns_path,
            address=parts.slot.address,
            peer=parts.slot.peer,
            upper_dir=self._upper_dir / parts.handle,
            guest_dir=self._guest_dir,
            token_sha256=token_digest(parts.token),
            backstop_seconds=backstop,
            background=background,
        )
