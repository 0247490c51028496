"""The image jobs of a node: begun once each, a few at a time, written down before they begin, readable afterwards."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from sandboxd.contract.ids import is_id
from sandboxd.contract.images import (
    SETTLED,
    ImageDefaults,
    ImageJob,
    ImageProgress,
    ImageReason,
    ImageState,
    LineKind,
    MadeImage,
    StartImageJob,
    StepRecord,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.images.base import ImageConfig
from sandboxd.images.job_log import JobLog
from sandboxd.images.runners import JobError, Made, Runner

_log = structlog.get_logger(__name__)

_MOST_JOBS: Final = 5000
_MOST_WAITING: Final = 500
_MESSAGE: Final = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRules:
    """How many and how long."""

    at_once: int = 4
    """Further ones wait for their turn."""
    kept_days: float = 30


@dataclass(slots=True)
class _Job:
    asked: StartImageJob
    record: ImageJob
    log: JobLog
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    unwanted: bool = False


class Jobs:
    """All jobs of the node."""

    def __init__(
        self,
        home: Path,
        runners: Mapping[str, Runner],
        rules: JobRules | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._home = home
        self._runners = runners
        self._rules = rules or JobRules()
        self._now = now
        self._jobs: dict[str, _Job] = {}
        self._turns = asyncio.Semaphore(self._rules.at_once)
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Have jobs run while inside. Those an earlier agent was cut off from go on, or have failed with a reason."""
        await asyncio.to_thread(self._load)
        try:
            async with asyncio.TaskGroup() as self._group:
                for job_id, job in list(self._jobs.items()):
                    if job.record.state not in SETTLED:
                        self._take_up(job_id, job)
                try:
                    yield
                finally:
                    for job in self._jobs.values():
                        if job.task is not None:
                            job.task.cancel()
        finally:
            self._group = None

    def start(self, job_id: str, asked: StartImageJob) -> ImageJob:
        """Begin a job, or return it if it was begun with the same words. ProblemError."""
        known = self._jobs.get(job_id)
        if known is not None:
            if _kept(known.asked) != _kept(asked):
                raise ProblemError("already_exists", f"Job {job_id} makes another image.")
            return known.record
        kind = asked.source.kind
        if kind not in self._runners:
            raise ProblemError("not_implemented", f"This node makes no images of {kind}.", reason=f"images.{kind}")
        if sum(job.record.state not in SETTLED for job in self._jobs.values()) >= _MOST_WAITING:
            raise ProblemError("no_capacity", "Too many images are waiting.", retry_after_seconds=5)
        record = ImageJob(
            id=job_id,
            project_id=asked.project_id,
            kind=kind,
            state=ImageState.PENDING,
            sequence=1,
            created_at=self._now(),
        )
        job = _Job(asked, record, JobLog(self._home / job_id / "log"))
        self._sweep()
        self._write(job)
        self._jobs[job_id] = job
        self._launch(job_id, job)
        return job.record

    def get(self, job_id: str) -> ImageJob:
        """Raises `image_not_found`."""
        return self._job(job_id).record

    def list(self) -> list[ImageJob]:
        return [job.record for job in self._jobs.values()]

    async def wait(self, job_id: str, *, beyond: int, seconds: float) -> ImageJob:
        """Return a job once it is further than a sequence, or as it is when the time is up."""
        job = self._job(job_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while job.record.sequence <= beyond and job.record.state not in SETTLED:
                    await job.changed.wait()
        return job.record

    async def remove(self, job_id: str) -> None:
        """Cancel a job that runs, and forget it. The image it made stays. Nothing happens when there is none."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.unwanted = True
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait({job.task})
        self._jobs.pop(job_id, None)
        await asyncio.to_thread(shutil.rmtree, self._home / job_id, ignore_errors=True)

    async def log(self, job_id: str, after: int, *, follow: bool, alive_seconds: float) -> AsyncIterator[bytes]:
        """Yield lines beyond a position; to the job's end if `follow`, with an empty piece for each silence."""
        job = self._job(job_id)
        position = after
        while True:
            over = job.record.state in SETTLED
            size = job.log.size
            for piece in await asyncio.to_thread(_read_log, job.log, position, size):
                yield piece
            position = max(position, size)
            if over or not follow:
                return
            try:
                async with asyncio.timeout(alive_seconds):
                    while job.log.size <= position and job.record.state not in SETTLED:
                        await job.changed.wait()
            except TimeoutError:
                yield b""

    def _job(self, job_id: str) -> _Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise ProblemError("image_not_found", f"There is no image job {job_id[:64]!r}.")
        return job

    def _launch(self, job_id: str, job: _Job) -> None:
        if self._group is None:
            raise ProblemError("shutting_down", "The node is shutting down.", retry_after_seconds=1)
        job.task = self._group.create_task(self._run(job_id, job))

    def _take_up(self, job_id: str, job: _Job) -> None:
        """Go on with a job of an earlier agent."""
        runner = self._runners.get(job.record.kind)
        if runner is not None and runner.resumes and not _had_secrets(job.asked):
            self._say(job, "progress", "the node has started again; going on", None)
            self._launch(job_id, job)
            return
        if runner is not None:
            runner.clean(job_id)
        self._settle(job, ImageReason.INTERRUPTED, "The node started again meanwhile.")

    async def _run(self, job_id: str, job: _Job) -> None:
        runner = self._runners[job.record.kind]
        try:
            async with self._turns:
                made = await self._made(runner, job_id, job)
        except asyncio.CancelledError:
            if job.unwanted:
                await asyncio.shield(asyncio.to_thread(runner.clean, job_id))
                self._settle(job, ImageReason.CANCELED, "It was deleted.")
            raise
        await asyncio.to_thread(runner.clean, job_id)
        if isinstance(made, JobError):
            self._settle(job, made.reason, str(made))
            return
        self._change(job, state=ImageState.READY, image=_shown(made), ended_at=self._now())
        self._end(job)

    async def _made(self, runner: Runner, job_id: str, job: _Job) -> Made | JobError:
        try:
            return await runner.run(job_id, job.asked, _Watch(self, job))
        except JobError as error:
            return error
        except ProblemError as error:
            return JobError(ImageReason.NOT_FOUND, error.detail)
        except Exception:  # noqa: BLE001 - a bug in one job must not end the others
            _log.exception("image job failed", job=job_id)
            return JobError(ImageReason.INTERRUPTED, "This is a fault of the node; its log says more.")

    def _settle(self, job: _Job, reason: ImageReason, message: str) -> None:
        text = "".join(each if each.isprintable() else "?" for each in message[:_MESSAGE])
        self._change(job, state=ImageState.FAILED, reason=reason, message=text, ended_at=self._now())
        self._end(job)

    def _end(self, job: _Job) -> None:
        record = job.record
        with suppress(OSError):
            job.log.end(self._now(), record.state, record.reason, record.message)
        self._wake(job)
        try:
            self._write(job)
        except OSError as error:
            _log.warning("image job not written down", job=record.id, error=str(error))

    def _change(self, job: _Job, **changes: Any) -> None:
        job.record = job.record.model_copy(update={**changes, "sequence": job.record.sequence + 1})
        self._wake(job)

    def _say(self, job: _Job, kind: LineKind, text: str, step: int | None) -> None:
        with suppress(OSError):
            job.log.add(self._now(), kind, text, step)
        self._wake(job)

    @staticmethod
    def _wake(job: _Job) -> None:
        """Wake who waits now; who comes later waits for what comes later."""
        changed, job.changed = job.changed, asyncio.Event()
        changed.set()

    def _write(self, job: _Job) -> None:
        """Write it down whole. What is secret in it stays in memory."""
        directory = self._home / job.record.id
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            document = {"asked": _kept(job.asked), "record": job.record.model_dump(mode="json")}
            aside = directory / "job.new"
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(directory / "job.json")
        except OSError as error:
            if job.record.id not in self._jobs:
                shutil.rmtree(directory, ignore_errors=True)
                raise ProblemError("disk_full", f"The node cannot write the job down: {error.strerror}.") from error
            raise

    def _load(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in self._home.iterdir():
            try:
                document = json.loads((directory / "job.json").read_bytes())
                asked = StartImageJob.model_validate_json(json.dumps(document["asked"]))
                record = ImageJob.model_validate_json(json.dumps(document["record"]))
                if not is_id("img", directory.name) or record.id != directory.name:
                    raise ValueError(directory.name)  # noqa: TRY301 - the same as any other damage
            except (OSError, ValueError, KeyError, TypeError):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            self._jobs[record.id] = _Job(asked, record, JobLog(directory / "log"))

    def _sweep(self) -> None:
        """Forget what is old, and the oldest of too many."""
        ended = sorted(
            (job.record.ended_at, job_id) for job_id, job in self._jobs.items() if job.record.ended_at is not None
        )
        before = self._now() - timedelta(days=self._rules.kept_days)
        surplus = len(self._jobs) - _MOST_JOBS
        for index, (at, job_id) in enumerate(ended):
            if at > before and index >= surplus:
                break
            del self._jobs[job_id]
            shutil.rmtree(self._home / job_id, ignore_errors=True)


class _Watch:
    """What a runner tells, put into its job's record and log."""

    def __init__(self, jobs: Jobs, job: _Job) -> None:
        self._jobs = jobs
        self._job = job

    def became(self, state: ImageState) -> None:
        self._jobs._change(self._job, state=state)  # noqa: SLF001 - two halves of one thing

    def moved(self, done_bytes: int, total_bytes: int) -> None:
        progress = ImageProgress(done_bytes=min(done_bytes, total_bytes), total_bytes=total_bytes)
        if progress != self._job.record.progress:
            self._jobs._change(self._job, progress=progress)  # noqa: SLF001 - the same

    def said(self, kind: LineKind, text: str, step: int | None = None) -> None:
        self._jobs._say(self._job, kind, text, step)  # noqa: SLF001 - the same

    def stepped(self, steps: Sequence[StepRecord]) -> None:
        self._jobs._change(self._job, steps=list(steps))  # noqa: SLF001 - the same


def _read_log(log: JobLog, after: int, until: int) -> list[bytes]:
    return list(log.read(after, until))


def _kept(asked: StartImageJob) -> dict[str, Any]:
    """Return what may be written down of a request: no password, and of secret variables their names only."""
    kept = asked.model_dump(mode="json", by_alias=True, exclude={"source": {"registry": {"password"}}})
    if asked.source.build is not None:
        kept["source"]["build"]["build"]["secret_env"] = dict.fromkeys(asked.source.build.build.secret_env, "")
    return kept


def _had_secrets(asked: StartImageJob) -> bool:
    """Tell whether a request that was read again lacks what it had."""
    registry, build = asked.source.registry, asked.source.build
    return (registry is not None and registry.username is not None) or (
        build is not None and bool(build.build.secret_env)
    )


def _shown(made: Made) -> MadeImage:
    return MadeImage(
        id=made.image.id,
        digest=made.image.digest,
        size_bytes=made.image.size_bytes,
        platform=made.platform,
        config=shown_config(made.config),
        dropped=dict(made.dropped),
        origin_digest=made.origin_digest,
    )


def shown_config(config: ImageConfig) -> ImageDefaults:
    """Return a config as the contract has it."""
    return ImageDefaults(
        env=config.env,
        entrypoint=list(config.entrypoint),
        cmd=list(config.cmd),
        user=config.user,
        cwd=config.cwd,
        labels=config.labels,
        ports=list(config.ports),
    )
