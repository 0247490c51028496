"""Frames of one answer: whole ones only, each within a time."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.frames import Batch, Decoder, FrameError, FrameKind
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import BROKEN, let_go
from sandboxd.guest_client.pace import STEP_FRAMES, Pace
from sandboxd.guest_client.wire import parse_object


class FrameStream:
    """Frames of one response: whole ones only, each within a time."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        pace: Pace,
        *,
        silence_seconds: float,
        settle_seconds: float,
        follow: bool,
    ) -> None:
        self._response = response
        self._pace = pace
        self._more_held = False
        self._silence_seconds = silence_seconds
        self._settle_seconds = settle_seconds
        self._follow = follow
        self._decoder = Decoder()
        self._over = False
        self._first: Batch | None = None
        if response.content_type != FRAMES:
            response.close()
            raise GuestError("the guest sent something else than frames")

    async def attached(self) -> dict[str, Any]:
        """Read the first frame and return the process in it."""
        batch = await self._read()
        head = batch.heads[0]
        if head.kind != FrameKind.ATTACHED or head.skip:
            raise GuestError("the stream does not begin with the process")
        self._first = Decoder().cut(bytes(batch.data[head.end :]))
        return parse_object(bytes(batch.payload(head)))

    async def batches(self) -> AsyncGenerator[Batch]:
        """Yield whole frames to the end."""
        if self._first is not None and self._first.heads:
            yield self._first
            self._look_for_end(self._first)
        while not self._over:
            batch = await self._read()
            self._look_for_end(batch)
            yield batch

    def _look_for_end(self, batch: Batch) -> None:
        last = batch.heads[-1].kind
        self._over = last == FrameKind.EXIT or (last == FrameKind.KEEPALIVE and not self._follow)

    async def _read(self) -> Batch:
        """Read until there is a whole frame. A frame that trickles in counts as silence."""
        batch = await self._cut()
        if pause := self._pace.take(len(batch.heads), asyncio.get_running_loop().time()):
            await asyncio.sleep(pause)
        elif self._more_held:
            await asyncio.sleep(0)
        return batch

    async def _cut(self) -> Batch:
        content = self._response.content
        try:
            async with asyncio.timeout(self._silence_seconds):
                while True:
                    data = b"" if self._more_held else await content.readany()
                    if not data and not self._more_held:
                        raise GuestUnreachableError("the stream broke off before its end")
                    batch = self._decoder.cut(data, STEP_FRAMES)
                    self._more_held = len(batch.heads) == STEP_FRAMES
                    if batch.heads:
                        return batch
        except FrameError as error:
            raise GuestError(str(error)) from error
        except HttpProcessingError as error:
            raise GuestError("the guest does not speak HTTP") from error
        except BROKEN as error:
            raise GuestUnreachableError(f"the stream broke off: {type(error).__name__}") from error

    async def close(self) -> None:
        """Keep the connection if the body ends right behind the last frame, else drop it."""
        content = self._response.content
        if self._over and not content.at_eof():
            try:
                async with asyncio.timeout(self._settle_seconds):
                    await content.readany()
            except (*BROKEN, HttpProcessingError):
                pass
        let_go(self._response)
