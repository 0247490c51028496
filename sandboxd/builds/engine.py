"""Builds carried out: what is cached is taken, what is not is run; stages nobody needs are left alone."""

import asyncio
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sandboxd.builds.board import Board
from sandboxd.builds.cache import StepCache
from sandboxd.builds.making import Change, Difference, Maker
from sandboxd.builds.plan import DirectoryStep, FileStep, PlannedStage, Planner, RunStep, Step, first_key, next_key
from sandboxd.builds.running import StepFailedError, run_step
from sandboxd.builds.sandbox import House, build_sandbox
from sandboxd.contract.dockerfile import DockerfileError
from sandboxd.contract.images import BuildSource, ImageReason
from sandboxd.contract.messages import EgressSpec, ImageRef, SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.images.base import ImageConfig, ImageDamagedError, ImageMissingError, LocalImage, Origin
from sandboxd.images.runners import JobError, Made, Watch
from sandboxd.images.store import ImageStore
from sandboxd.runtime.base import RuntimeFailedError

_MARGIN_SECONDS: Final = 120
"""How much longer than the build its sandboxes may live, should nobody be there to end them."""
_UPPER_FACTOR: Final = 4
"""A sparse file counts with its holes: how many times its disk a sandbox's difference may have."""
_MIB: Final = 1024 * 1024
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def platform_text() -> str:
    """Return what this node's images are for."""
    return f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"


def upper_bytes(disk_mib: int) -> int:
    """Return how much a difference may hold, holes counted."""
    return _UPPER_FACTOR * disk_mib * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What builds work with."""

    store: ImageStore
    maker: Maker
    house: House
    cache: StepCache
    turns: asyncio.Semaphore
    """How many steps run at once on this node."""
    egress: EgressSpec
    """Of a build that does not say."""


@dataclass(slots=True)
class _Stage:
    """A stage, planned."""

    plan: PlannedStage
    start: ImageConfig
    """What its base says."""
    first: int
    """The number of its first step among all."""
    keys: list[str]
    """Of its base, and after each step."""

    @property
    def config(self) -> ImageConfig:
        return self.plan.steps[-1].config if self.plan.steps else self.start


class BuildRun:
    """One build, once."""

    def __init__(
        self,
        means: Means,
        source: BuildSource,
        project_id: str,
        context: Path | None,
        watch: Watch,
        finish: Callable[[ImageConfig], ImageConfig],
    ) -> None:
        """`finish`: what is asked of the config beside what the build says."""
        self._means = means
        self._source = source
        self._build = source.build
        self._project_id = project_id
        self._context = context
        self._finish = finish
        self._board = Board(watch)
        self._held = AsyncExitStack()
        self._bases: dict[str, LocalImage] = {}
        self._stages: dict[int, _Stage] = {}
        self._digests: dict[tuple[int, int], str | None] = {}
        self._results: dict[int, LocalImage | None] = {}
        self._dropped: Counter[str] = Counter()
        self._ends_at = 0.0

    async def run(self) -> Made:
        """Build. JobError."""
        self._ends_at = asyncio.get_running_loop().time() + self._build.timeout_seconds
        try:
            async with asyncio.timeout(self._build.timeout_seconds), self._held:
                return await self._run()
        except TimeoutError:
            raise JobError(
                ImageReason.TIMED_OUT, f"It was not built within {self._build.timeout_seconds} seconds."
            ) from None
        except DockerfileError as error:
            raise JobError(ImageReason.STEP_FAILED, str(error)) from error

    async def _run(self) -> Made:
        await self._plan()
        last = max(self._stages)
        stage = self._stages[last]
        self._board.begin()
        image = await self._result(last)
        config = self._finish(stage.config)
        if image is None or image.config != config:
            # The same files with another config are another image.
            image = await self._make(image, [], config, stage.keys[-1])
        self._board.end()
        held = next((each for each in self._means.store.held() if each.id == image.id), None)
        if held is None:
            raise JobError(ImageReason.CORRUPT, "The image was removed while it was built.")
        return Made(image=held, platform=platform_text(), config=config, dropped=dict(self._dropped))

    async def _plan(self) -> None:
        """Read it all before anything is done: what is wrong with the last line is said at once."""
        planner = Planner(self._build)
        for number, base in planner.stages():
            start = ImageConfig()
            if isinstance(base, int):
                start = self._stages[base].config
            elif base is not None:
                start = (await self._base(base)).config
            plan = planner.plan(number, start)
            for step in plan.steps:
                if isinstance(step, FileStep) and step.image is not None:
                    await self._base(step.image)
            self._stages[number] = _Stage(plan, start, self._board.add(plan.steps), [])
        await self._ask_digests()
        for stage in self._stages.values():
            self._set_keys(stage)

    async def _ask_digests(self) -> None:
        """Ask once what all copies from the context take."""
        asked = {
            (number, index): _copy(step, None)
            for number, stage in self._stages.items()
            for index, step in enumerate(stage.plan.steps)
            if isinstance(step, FileStep) and step.stage is None and step.image is None
        }
        found = await self._means.maker.digests(list(asked.values()), self._context)
        self._digests = dict(zip(asked, found, strict=True))

    def _set_keys(self, stage: _Stage) -> None:
        base = stage.plan.base
        if isinstance(base, int):
            stage.keys.append(self._stages[base].keys[-1])
        else:
            stage.keys.append(first_key(self._project_id, None if base is None else self._bases[base].id))
        for index, step in enumerate(stage.plan.steps):
            inputs: list[str] = []
            if isinstance(step, FileStep):
                inputs.append(self._input(stage.plan.number, index, step))
            stage.keys.append(next_key(stage.keys[-1], step, inputs))

    def _input(self, number: int, index: int, step: FileStep) -> str:
        if step.stage is not None:
            return self._stages[step.stage].keys[-1]
        if step.image is not None:
            return self._bases[step.image].id
        return self._digests.get((number, index)) or "nothing"

    async def _base(self, name: str) -> LocalImage:
        if name not in self._bases:
            ref = self._source.images.get(name)
            if ref is None:
                raise JobError(ImageReason.NOT_FOUND, f"There is no image {name!r} that this project may use.")
            self._bases[name] = await self._lease(ref.id, ref.digest)
        return self._bases[name]

    async def _lease(self, image_id: str, digest: str | None = None) -> LocalImage:
        """Hold an image until the build is over; by its digest it comes from the store to a node without it."""
        try:
            return await self._held.enter_async_context(self._means.store.lease(image_id, digest))
        except (ImageMissingError, ImageDamagedError) as error:
            raise JobError(ImageReason.NOT_FOUND, f"An image cannot be used: {error}.") from error

    async def _result(self, number: int) -> LocalImage | None:
        """Return what a stage comes to, made now if it was not before; None: nothing at all."""
        if number not in self._results:
            self._results[number] = await self._carry_out(self._stages[number])
        return self._results[number]

    async def _carry_out(self, stage: _Stage) -> LocalImage | None:
        done, image = await self._cached(stage)
        for index in range(done):
            self._board.done(stage.first + index, cached=True)
        if not done:
            image = await self._from(stage.plan.base)
        work = _Work(image)
        for index in range(done, len(stage.plan.steps)):
            step, number = stage.plan.steps[index], stage.first + index
            if isinstance(step, FileStep) and step.stage is not None:
                await self._result(step.stage)
            self._board.start(number)
            try:
                await self._step(stage, index, work)
            except StepFailedError as error:
                self._board.failed(number, error.exit_code)
                raise JobError(ImageReason.STEP_FAILED, f"{self._board.name(number)} {error}") from error
            except (JobError, ProblemError, RuntimeFailedError) as error:
                self._board.failed(number, None)
                reason = error.reason if isinstance(error, JobError) else ImageReason.STEP_FAILED
                raise JobError(reason, f"{self._board.name(number)} failed: {_said(error)}") from error
            self._board.done(number)
        return work.image

    async def _step(self, stage: _Stage, index: int, work: "_Work") -> None:
        """Do a step. What only changes files waits until something needs them."""
        step = stage.plan.steps[index]
        if isinstance(step, RunStep):
            if work.pending:
                work.image = await self._make(work.image, work.take(), step.config, stage.keys[index])
            config, key = _end_config(stage, index), stage.keys[index + 1]
            work.image = await self._run_step(work.image, step, stage.first + index, config, key)
        elif (change := await self._change(stage, index, step)) is not None:
            work.pending.append(change)
            if _is_last(stage, index):
                work.image = await self._make(work.image, work.take(), stage.config, stage.keys[index + 1])

    async def _cached(self, stage: _Stage) -> tuple[int, LocalImage | None]:
        """Return how many steps need not be done, and what they came to."""
        if self._build.no_cache:
            return 0, None
        for index in range(len(stage.plan.steps), 0, -1):
            if stage.keys[index] == stage.keys[0]:
                break
            image_id = self._means.cache.find(stage.keys[index])
            if image_id is not None:
                try:
                    return index, await self._held.enter_async_context(self._means.store.lease(image_id))
                except (ImageMissingError, ImageDamagedError):
                    continue
        return 0, None

    async def _from(self, base: str | int | None) -> LocalImage | None:
        if isinstance(base, int):
            return await self._result(base)
        return None if base is None else self._bases[base]

    async def _change(self, stage: _Stage, index: int, step: Step) -> Change | None:
        if isinstance(step, DirectoryStep):
            return Change(kind="directory", path=step.path)
        if not isinstance(step, FileStep):
            return None
        if step.stage is not None:
            source = await self._result(step.stage)
            if source is None:
                raise JobError(ImageReason.STEP_FAILED, "there is nothing in the stage it copies from")
            return _copy(step, source.path)
        if step.image is not None:
            return _copy(step, self._bases[step.image].path)
        if self._digests.get((stage.plan.number, index)) is None:
            where = "the context has no such file" if self._context else "the build has no context"
            raise JobError(ImageReason.STEP_FAILED, f"there is nothing to copy at {' '.join(step.sources)}: {where}")
        return _copy(step, None)

    async def _run_step(
        self, image: LocalImage | None, step: RunStep, number: int, config: ImageConfig, key: str
    ) -> LocalImage:
        if image is None:
            raise JobError(ImageReason.STEP_FAILED, "there is nothing yet that could run")
        left = max(1, int(self._ends_at - asyncio.get_running_loop().time()))
        spec = SandboxSpec(
            image=ImageRef(id=image.id, reference=image.id, digest=image.digest),
            hostname="build",
            resources=self._build.resources,
            egress=self._build.egress or self._means.egress,
            timeout_seconds=left + _MARGIN_SECONDS,
        )
        inside = ImageConfig(env=dict(step.env), user=step.user, cwd=step.cwd)
        async with self._means.turns, build_sandbox(self._means.house, spec, inside) as sandbox:
            secrets = self._build.secret_env
            await run_step(sandbox, step, secrets, lambda kind, text: self._board.say(number, kind, text))
            await sandbox.quieten()
            changes = [Change(kind="upper")]
            return await self._make(image, changes, config, key, sandbox.difference)

    async def _make(
        self,
        parent: LocalImage | None,
        changes: Sequence[Change],
        config: ImageConfig,
        key: str,
        difference: Difference | None = None,
    ) -> LocalImage:
        """Make an image, and remember it as what comes of `key`."""
        origin = Origin(
            kind="build",
            reference=f"step {key[:12]}",
            digest=f"sha256:{key}",
            platform=platform_text(),
            at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        product = await self._means.maker.make(
            None if parent is None else parent.path,
            changes,
            config,
            origin,
            context=self._context,
            difference=difference,
            upper_bytes=upper_bytes(self._build.resources.disk_mib),
        )
        self._dropped.update(product.dropped)
        made = await self._lease(product.image.id)
        if changes:
            await asyncio.to_thread(self._means.cache.put, key, product.image.id)
        return made


@dataclass(slots=True)
class _Work:
    """A stage on its way."""

    image: LocalImage | None
    pending: list[Change] = field(default_factory=list[Change])
    """What is to be laid over it."""

    def take(self) -> list[Change]:
        taken, self.pending = self.pending, []
        return taken


def _said(error: JobError | ProblemError | RuntimeFailedError) -> str:
    """A runtime's own words are for operators."""
    if isinstance(error, ProblemError):
        return error.detail
    return str(error) if isinstance(error, JobError) else "its sandbox failed"


def _copy(step: FileStep, image: Path | None) -> Change:
    return Change(kind="copy", image=image, sources=step.sources, to=step.to, mode=step.mode, owner=step.owner)


def _is_last(stage: _Stage, index: int) -> bool:
    """Whether no step behind this one changes files: then what there is is the stage's image."""
    return stage.keys[index + 1] == stage.keys[-1]


def _end_config(stage: _Stage, index: int) -> ImageConfig:
    """The config of an image made here: the stage's, where it is the stage's image."""
    return stage.config if _is_last(stage, index) else stage.plan.steps[index].config
