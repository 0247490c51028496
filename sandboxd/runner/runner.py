"""The runner: the order in which one sandbox's phases follow each other, and what may be asked of it meanwhile."""

import asyncio
from typing import Final

import structlog

from netpolicy.credentials import Credentials
from sandboxd.contract.messages import EgressReport, EgressSpec, PatchSandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import TERMINAL, SandboxState
from sandboxd.errors import ended_problem, stale_generation, stopping
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.runner.claim import Cold
from sandboxd.runner.deadlines import watch_deadlines
from sandboxd.runner.egress import change_egress
from sandboxd.runner.entrypoint import has_entrypoint, watch_entrypoint
from sandboxd.runner.life import Cause, Life
from sandboxd.runner.line import Line
from sandboxd.runner.recover import recover
from sandboxd.runner.start import start
from sandboxd.runner.stop import end, undo
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

_BACKSTOP_TRIES: Final = 3


class Runner:
    """Owns one sandbox. Exactly one of the `run_` methods is called, once, as a task.

    They return when the sandbox's terminal state is reached. Cancelling one abandons the sandbox as it is.
    """

    def __init__(self, life: Life, tools: Tools) -> None:
        self.life = life
        self._tools = tools

    async def run_new(self, line: Line, deadline_seconds: float, cold: Cold | None = None) -> None:
        """Start it, run it, end it. With `cold`, it has the parts of a ready sandbox."""
        cause = await start(self.life, self._tools, line, deadline_seconds, cold)
        if cause is None:
            self._tools.keeper.born(self.life)
        await self._run(cause)

    async def run_recovered(self) -> None:
        """Take it over from an earlier agent, run it, end it."""
        cause = await recover(self.life, self._tools)
        if cause is None:
            self._tools.keeper.born(self.life, adopted=True)
        self.life.adopted.set()
        await self._run(cause)

    async def run_burial(self, cause: Cause, *, same_boot: bool) -> None:
        """End what cannot be taken over."""
        self.life.adopted.set()
        await end(self.life, self._tools, cause, same_boot=same_boot)

    async def undo_leftovers(self) -> bool:
        """Try again what could not be undone; tells whether nothing is left now."""
        errors = await undo(self.life.parts, self._tools)
        self.life.leftover = bool(errors)
        return not errors

    async def _run(self, cause: Cause | None) -> None:
        if cause is None:
            cause = await self._live()
        await end(self.life, self._tools, cause)

    async def _live(self) -> Cause:
        """Wait for what ends it: a request, a deadline, its death. The first one counts."""
        life = self.life
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(self._watch_death()), group.create_task(self._watch_deadlines())]
                if has_entrypoint(life):
                    self._tools.keeper.started(life)
                    watchers.append(group.create_task(self._watch_entrypoint()))
                await life.caused.wait()
                for watcher in watchers:
                    watcher.cancel()
        except* Exception as errors:  # noqa: BLE001 - a fault of ours must not leave a sandbox without a runner
            _log.exception("runner failed", sandbox_id=life.id, errors=repr(errors.exceptions))
            life.begin_end(Cause(message="The node agent failed to watch over it.", grace_seconds=0))
        return life.cause or Cause()

    async def _watch_death(self) -> None:
        seen = await self._tools.runtime.wait(self.life.handle)
        self.life.begin_end(Cause(end=seen))

    async def _watch_deadlines(self) -> None:
        self.life.begin_end(await watch_deadlines(self.life, self._tools))

    async def _watch_entrypoint(self) -> None:
        self.life.begin_end(await watch_entrypoint(self.life))

    def stop(self, reason: SandboxReason, *, grace_seconds: float, message: str | None = None) -> None:
        """Ask for its end. The first one to ask decides the reason; what is under way is joined."""
        self.life.begin_end(Cause(intent=reason, grace_seconds=grace_seconds, message=message))

    def renew(self, generation: int) -> None:
        """Take note of a newer generation; `stale_generation` for an older one."""
        known = self.life.record.generation
        if generation < known:
            raise stale_generation(self.life.id, given=generation, known=known)
        if generation > known:
            record = self.life.write(generation=generation)
            if record.report is not None:
                record = self.life.write(report=record.report.model_copy(update={"generation": generation}))
            self._tools.ledger.put_soon(record)

    async def patch(self, change: PatchSandbox) -> None:
        """Move its deadlines: written first, then told to the guest's backstop. Repeating it is harmless.

        Raises `stale_generation`, `sandbox_ended`, `invalid_state` while stopping, `guest_failed` when the backstop
        cannot be moved: the node's own deadline is moved all the same.
        """
        life = self.life
        self.renew(change.generation)
        self._require_live()
        given = change.model_fields_set
        wall = self._wall_deadline(change)
        spec = life.record.spec
        if "timeout_seconds" in given:
            spec = spec.model_copy(update={"timeout_seconds": change.timeout_seconds})
        if "idle_timeout_seconds" in given:
            spec = spec.model_copy(update={"idle_timeout_seconds": change.idle_timeout_seconds})
        moved = wall != life.record.wall_deadline
        life.parts.spec = spec
        await self._tools.ledger.put(life.write(spec=spec, wall_deadline=wall))
        life.rescheduled.set()
        self._tools.changed(life.id)
        if moved:
            await self._move_backstop(wall)

    async def change_egress(self, egress: EgressSpec, credentials: Credentials | None = None) -> EgressReport:
        """Change what it may reach. Raises what `patch` raises, and `egress_not_applied`."""
        self._require_live()
        return await change_egress(self.life, self._tools, egress, credentials)

    def _require_live(self) -> None:
        life = self.life
        if life.state in TERMINAL or life.verdict is not None:
            raise ended_problem(life.report(None), life.record.spec.resources)
        if life.cause is not None or life.state is SandboxState.STOPPING:
            raise stopping(life.id)

    def _wall_deadline(self, change: PatchSandbox) -> float | None:
        now = self._tools.clock.boottime()
        wall = self.life.record.wall_deadline
        if "timeout_seconds" in change.model_fields_set:
            wall = None if change.timeout_seconds is None else now + change.timeout_seconds
        if change.extend_seconds is not None and wall is not None:
            wall = max(wall, now + change.extend_seconds)
        return wall

    async def _move_backstop(self, wall: float | None) -> None:
        guest = self.life.parts.guest
        for tried in range(1, _BACKSTOP_TRIES + 1):
            seconds = None
            if wall is not None:
                seconds = max(0.0, wall - self._tools.clock.boottime()) + self._tools.backstop_margin_seconds
            try:
                if guest is not None:
                    await guest.set_backstop(seconds)
            except (GuestError, GuestUnreachableError) as error:
                if tried == _BACKSTOP_TRIES:
                    raise ProblemError("guest_failed", "The sandbox's guest agent does not answer.") from error
            else:
                return
