"""The runners of image jobs that build: from a Dockerfile or steps, and from a sandbox that runs."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sandboxd.builds.engine import BuildRun, Means, platform_text, upper_bytes
from sandboxd.builds.making import Change
from sandboxd.builds.sandbox import House
from sandboxd.contract.images import ImageOverrides, ImageReason, ImageState, StartImageJob
from sandboxd.hooks.base import Parts
from sandboxd.images.base import ImageConfig, Origin
from sandboxd.images.runners import JobError, Made, Watch

__all__ = ["BuildRunner", "SandboxRunner"]


class LivingHouse(House, Protocol):
    """The node, with the sandboxes that are somebody's."""

    def parts_in_use(self, sandbox_id: str) -> AbstractAsyncContextManager[Parts]:
        """Enter a live sandbox's parts; being inside counts as activity. ProblemError."""
        ...


class BuildRunner:
    """Builds. Begun again after a restart of the node, it goes on behind the last step that was done."""

    resumes = True

    def __init__(self, means: Means, context: Callable[[str, str], Path]) -> None:
        """`context` finds an upload of a project; `upload_not_found`."""
        self._means = means
        self._context = context

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:  # noqa: ARG002 - as jobs call it
        source = asked.source.build
        if source is None:
            raise JobError(ImageReason.NOT_FOUND, "There is nothing to build.")
        await asyncio.to_thread(self._means.cache.sweep, time.time())
        context = source.build.context
        path = None if context is None else self._context(asked.project_id, context)

        def finish(config: ImageConfig) -> ImageConfig:
            return overridden(config, asked.config)

        return await BuildRun(self._means, source, asked.project_id, path, watch, finish).run()

    def clean(self, job_id: str) -> None:
        """Nothing is kept by job: what was cached is cached for whoever builds the same."""


class SandboxRunner:
    """Makes an image of a sandbox's files as they are; the sandbox runs on."""

    resumes = False

    def __init__(self, means: Means, house: LivingHouse) -> None:
        self._means = means
        self._house = house

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:  # noqa: ARG002 - as jobs call it
        source = asked.source.sandbox
        if source is None:
            raise JobError(ImageReason.NOT_FOUND, "There is no sandbox to make an image of.")
        watch.became(ImageState.BUILDING)
        async with self._house.parts_in_use(source.sandbox_id) as parts:
            image = parts.image
            if image is None:
                raise JobError(ImageReason.NOT_FOUND, "The image the sandbox was started from is gone.")
            config = overridden(image.config, asked.config)
            origin = Origin(
                kind="sandbox",
                reference=source.sandbox_id,
                digest=image.digest,
                platform=platform_text(),
                at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            )

            async def difference(into: int) -> None:
                await self._house.tools.runtime.difference(parts.handle, into)

            product = await self._means.maker.make(
                image.path,
                [Change(kind="upper", exclude=tuple(source.exclude))],
                config,
                origin,
                difference=difference,
                upper_bytes=upper_bytes(parts.spec.resources.disk_mib),
            )
            return Made(image=product.image, platform=platform_text(), config=config, dropped=product.dropped)

    def clean(self, job_id: str) -> None:
        """Nothing is kept."""


def overridden(config: ImageConfig, wanted: ImageOverrides | None) -> ImageConfig:
    """Return a config with what is asked for instead; `env` adds to it."""
    if wanted is None:
        return config
    return replace(
        config,
        env=config.env | (wanted.env or {}),
        entrypoint=config.entrypoint if wanted.entrypoint is None else tuple(wanted.entrypoint),
        cmd=config.cmd if wanted.cmd is None else tuple(wanted.cmd),
        user=wanted.user or config.user,
        cwd=wanted.cwd or config.cwd,
    )
