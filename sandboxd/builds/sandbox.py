"""Sandboxes that builds run their steps in: nobody's, without a row in the ledger, gone when the step is over.

What a crash leaves of one is a stranger to the next start of the agent, which removes it.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol, cast

import structlog

from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.hooks.base import Parts
from sandboxd.images.base import ImageConfig
from sandboxd.processes.live import Ending
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

START_SECONDS: Final = 60.0
"""How long one may take to be ready."""
_ASK_SECONDS: Final = 1.0
_SHUTDOWN_SECONDS: Final = 5.0


class House(Protocol):
    """The node as builds need it."""

    @property
    def tools(self) -> Tools: ...

    def nobody(self, spec: SandboxSpec) -> Parts:
        """Promise the resources of a sandbox that is nobody's; `no_capacity`, `impossible_resources`."""
        ...

    def bury_nobody(self, parts: Parts, done: asyncio.Event) -> None:
        """Undo it, whatever there is of it, also when nobody waits any more."""
        ...


@dataclass(slots=True)
class BuildSandbox:
    """One of them, running: the `LiveSandbox` of the processes package."""

    parts: Parts
    tools: Tools
    ended: Ending
    id: str
    """Nobody knows it by this; what is said of its processes needs one."""

    @property
    def guest(self) -> Guest:
        if self.parts.guest is None:
            raise ProblemError("guest_failed", "The sandbox of the build has no guest.")
        return self.parts.guest

    @property
    def shell(self) -> str | None:
        return self.parts.init.shell if self.parts.init else None

    def process_started(self) -> None:
        """Nothing is kept of it but the build's own log."""

    def denied(self, begin: datetime, end: datetime) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return none: refusals are listed by sandboxes that have an id."""
        return []

    def end_problem(self) -> ProblemError:
        usage = self.tools.runtime.usage(self.parts.handle)
        why = "It had too little memory." if usage is not None and usage.oom_kills else "It ended by itself."
        return ProblemError("sandbox_ended", why, state=SandboxState.FAILED)

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        _log.warning("guest of a build failed a call", handle=self.parts.handle, error=f"{error}")

    async def quieten(self) -> None:
        """End what the step has left running; best effort."""
        with suppress(GuestError, GuestUnreachableError, ProblemError, TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_SECONDS):
                await self.guest.shutdown(0)

    async def difference(self, into: int) -> None:
        """Write what it has changed as a tar into a descriptor."""
        await self.tools.runtime.difference(self.parts.handle, into)


@asynccontextmanager
async def build_sandbox(house: House, spec: SandboxSpec, config: ImageConfig) -> AsyncGenerator[BuildSandbox]:
    """Have one while inside, started from the image of `spec` as if that had this config.

    Waits until there is room. Raises what a start raises. Nothing of it is left afterwards, whatever happens.
    """
    parts = await _admitted(house, spec)
    ended = Ending()
    try:
        await _start(house.tools, parts, config)
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_watch(house.tools, parts, ended))
            yield BuildSandbox(parts, house.tools, ended, new_id("sbx", os.urandom))
            watcher.cancel()
    except ExceptionGroup as errors:
        raise cast("Exception", errors.exceptions[0]) from None
    finally:
        done = asyncio.Event()
        house.bury_nobody(parts, done)
        await done.wait()


async def _start(tools: Tools, parts: Parts, config: ImageConfig) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            for hook in tools.hooks:
                await hook.prepare(parts)
                if (image := parts.image) is not None:
                    parts.image = replace(image, config=config)
    except TimeoutError as error:
        raise ProblemError("deadline_exceeded", f"The sandbox was not ready in {START_SECONDS:g} s.") from error
    except ProblemError:
        raise
    except Exception as error:
        _log.warning("sandbox of a build not started", handle=parts.handle, error=f"{type(error).__name__}: {error}")
        raise ProblemError("start_failed", "The sandbox of the step could not be started.") from error


async def _admitted(house: House, spec: SandboxSpec) -> Parts:
    while True:
        try:
            return house.nobody(spec)
        except ProblemError as error:
            if error.code != "no_capacity":
                raise
        clock = house.tools.clock
        await clock.sleep_until(clock.boottime() + _ASK_SECONDS)


async def _watch(tools: Tools, parts: Parts, ended: Ending) -> None:
    await tools.runtime.wait(parts.handle)
    ended.set()
