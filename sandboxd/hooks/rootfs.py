"""The root file system: a lease on the image and a directory for what the sandbox writes."""

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from sandboxd.hooks.base import NOTHING, FailPoints, Parts
from sandboxd.images.base import ImageDamagedError, ImageMissingError, Images

_log = structlog.get_logger(__name__)


class RootfsHook:
    """Keeps the image's file in place and the upper directory for this sandbox alone."""

    name = "rootfs"
    steps = ("rootfs.lease", "rootfs.upper", "rootfs.prepared", "rootfs.remove", "rootfs.unlease", "rootfs.removed")
    ready_steps = ("rootfs.lease", "rootfs.upper", "rootfs.prepared")
    safe_after = frozenset({"launch"})
    claims_after = NOTHING

    def __init__(self, images: Images, upper_dir: Path, points: FailPoints) -> None:
        self._images = images
        self._upper_dir = upper_dir
        self._points = points

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("rootfs.lease")
        image = parts.spec.image
        parts.image = await parts.leases.enter_async_context(self._images.lease(image.id, image.digest))
        await self._points.reach("rootfs.upper")
        self.upper(parts.handle).mkdir(mode=0o700, exist_ok=True)
        await self._points.reach("rootfs.prepared")

    async def make_ready(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def claim(self, parts: Parts) -> None:
        """Nothing was written into it by anybody."""

    async def recover(self, parts: Parts) -> None:
        try:
            parts.image = await parts.leases.enter_async_context(self._images.lease(parts.spec.image.id))
        except (ImageMissingError, ImageDamagedError) as error:
            # The sentry holds the file open: the sandbox goes on without the lease.
            _log.warning("image of a live sandbox cannot be leased", sandbox_id=parts.sandbox_id, error=str(error))

    async def cleanup(self, parts: Parts) -> None:
        await self._points.reach("rootfs.remove")
        upper = self.upper(parts.handle)
        if upper.exists():
            await _settled(functools.partial(_remove_tree, upper))
        await self._points.reach("rootfs.unlease")
        await parts.leases.aclose()
        parts.image = None
        await self._points.reach("rootfs.removed")

    def upper(self, handle: str) -> Path:
        """Return the directory for what a sandbox writes."""
        return self._upper_dir / handle


async def _settled(work: Callable[[], None]) -> None:
    """Do blocking work in a thread; a cancellation waits for it, so that no undo runs beside another."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _remove_tree(path: Path) -> None:
    """Remove a directory; one that is not there, or vanishes meanwhile, is as good as removed."""
    while path.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
