"""The heartbeat: reports to the api, whole ones at intervals and changes at once, and what it answers."""

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

import aiohttp
import structlog
from pydantic import ValidationError

from sandboxd.clock import Clock
from sandboxd.contract.messages import NodeReport, ReportAnswer
from sandboxd.contract.problems import ProblemError
from sandboxd.manager.manager import Manager
from sandboxd.manager.reports import Reporter
from sandboxd.trust import TrustStore

_log = structlog.get_logger(__name__)

_ANSWER_SECONDS: Final = 10.0
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_FIRST_PAUSE_SECONDS: Final = 0.1
_GATHER_SECONDS: Final = 0.005
"""Changes that come together go in one report."""


class ApiUnreachableError(Exception):
    """The api did not take a report; the next one says everything again."""


class ApiLink(Protocol):
    """Takes reports to the api."""

    async def send(self, report: NodeReport) -> ReportAnswer:
        """Deliver one report. ApiUnreachableError."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class SocketLink:
    """The api's internal listener on a unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None

    async def send(self, report: NodeReport) -> ReportAnswer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(self._path)),
                timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
                # The api may have been taken over: it is given no way to make this program hold or ask for more.
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        try:
            async with self._session.post(
                "http://api/internal/v1/node-reports",
                data=report.model_dump_json(),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    raise ApiUnreachableError(f"the api answered {answer.status}")
                return ReportAnswer.model_validate_json(await _whole(answer.content))
        except ValidationError as error:
            raise ApiUnreachableError("the api's answer is not understood") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiUnreachableError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """Read a body to its end, or to where it is too long. ApiUnreachableError."""
    parts: list[bytes] = []
    size = 0
    while data := await content.readany():
        parts.append(data)
        size += len(data)
        if size > _MAX_ANSWER_BYTES:
            raise ApiUnreachableError(f"the api's answer is longer than {_MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


class Heartbeat:
    """Sends for ever; sandboxes do not depend on it."""

    def __init__(
        self,
        manager: Manager,
        reporter: Reporter,
        link: ApiLink,
        clock: Clock,
        trust: TrustStore,
        *,
        every_seconds: float,
    ) -> None:
        self._manager = manager
        self._reporter = reporter
        self._link = link
        self._clock = clock
        self._trust = trust
        self._every_seconds = every_seconds
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._reachable: bool | None = None

    async def run(self) -> None:
        """Report everything at start, after each silence of the api, and every interval; changes as they happen."""
        while True:
            try:
                await self._beat_until_unreachable()
            except ApiUnreachableError as error:
                self._note(reachable=False, error=str(error))
            await self._clock.sleep_until(self._clock.boottime() + self._pause_seconds)
            self._pause_seconds = min(self._pause_seconds * 2, self._every_seconds)

    async def _beat_until_unreachable(self) -> None:
        while True:
            self._manager.changes.take()
            await self._send(await self._reporter.full())
            self._note(reachable=True)
            self._pause_seconds = _FIRST_PAUSE_SECONDS
            full_at = self._clock.boottime() + self._every_seconds
            while await self._change_before(full_at):
                await self._send(self._reporter.partial(self._manager.changes.take()))

    async def _change_before(self, boottime: float) -> bool:
        """Wait for a change; False when the time has come before."""
        if self._clock.boottime() >= boottime:
            return False
        async with asyncio.TaskGroup() as group:
            change = group.create_task(self._manager.changes.wait())
            time = group.create_task(self._clock.sleep_until(boottime))
            change.add_done_callback(lambda _: time.cancel())
            time.add_done_callback(lambda _: change.cancel())
        if change.cancelled():
            return False
        await asyncio.sleep(_GATHER_SECONDS)
        return True

    async def _send(self, report: NodeReport) -> None:
        answer = await self._link.send(report)
        if answer.trust is not None:
            self._trust.learn(answer.trust)
        else:
            self._trust.heard()
        try:
            await self._manager.meet_epoch(answer.epoch)
        except ProblemError as error:
            _log.error("epoch not written", error=str(error))
        self._manager.bury(answer.bury)
        await self._manager.acknowledge(answer.acknowledged)

    def _note(self, *, reachable: bool, error: str | None = None) -> None:
        """Log changes only: an api that is away is away for many beats."""
        self._manager.tools.counts.api_reachable = reachable
        if reachable is not self._reachable:
            self._reachable = reachable
            _log.info("api reached" if reachable else "api out of reach", error=error)
