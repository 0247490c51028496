"""Reads the files of images again, one after the other, for ever: damage is to be found before sandboxes find it."""

from typing import Final, Protocol

import structlog

from sandboxd.clock import Clock
from sandboxd.contract.messages import NodeImage
from sandboxd.contract.reasons import SandboxReason
from sandboxd.images.base import ImageDamagedError, ImageMissingError
from sandboxd.manager.manager import Manager

_log = structlog.get_logger(__name__)

_SHORTEST_SECONDS: Final = 60.0
"""Between two images, however many there are: reading must not be what the disk does."""
_REPUBLISH_SECONDS: Final = 3600.0


class Verified(Protocol):
    """Images that can be looked at closely."""

    def held(self) -> list[NodeImage]: ...

    async def verify(self, image_id: str) -> bool: ...

    async def republish(self) -> None: ...

    async def pay(self) -> None: ...


class Scrub:
    """One image at a time."""

    def __init__(self, images: Verified, *, every_seconds: float) -> None:
        """`every_seconds`: how often each image; 0: never."""
        self._images = images
        self._every = every_seconds
        self._last = ""

    async def run(self, manager: Manager, clock: Clock) -> None:
        """Go round for ever."""
        told = clock.boottime()
        while True:
            count = max(len(self._images.held()), 1)
            pause = max(self._every / count, _SHORTEST_SECONDS) if self._every else _REPUBLISH_SECONDS
            await clock.sleep_until(clock.boottime() + min(pause, _REPUBLISH_SECONDS))
            try:
                if clock.boottime() - told >= _REPUBLISH_SECONDS:
                    told = clock.boottime()
                    await self._images.republish()
                if self._every:
                    await self.once(manager)
            except Exception:  # noqa: BLE001 - the next round tries again
                _log.exception("images cannot be verified")

    async def pay(self, clock: Clock, every_seconds: float) -> None:
        """Put into the store what is owed to it, for ever."""
        while True:
            await clock.sleep_until(clock.boottime() + every_seconds)
            try:
                await self._images.pay()
            except Exception:  # noqa: BLE001 - the next round tries again
                _log.exception("images cannot be stored")

    async def once(self, manager: Manager) -> None:
        """Verify the next image; sandboxes that live on a damaged file are ended: what they read may be anything."""
        ids = sorted(image.id for image in self._images.held())
        if not ids:
            return
        self._last = next((each for each in ids if each > self._last), ids[0])
        try:
            if await self._images.verify(self._last):
                return
            _log.error("an image was damaged, and was fetched again", image_id=self._last)
        except ImageMissingError:
            return
        except ImageDamagedError as error:
            _log.error("an image is damaged, and cannot be had again", image_id=self._last, error=str(error))
        for runner in list(manager.runners.values()):
            if runner.life.record.spec.image.id == self._last and runner.life.cause is None:
                runner.stop(
                    SandboxReason.IMAGE_UNAVAILABLE, grace_seconds=0, message="Its image was damaged on the node."
                )
