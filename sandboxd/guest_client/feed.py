"""The feed: the newest output of all of a guest's processes over one connection. Bounded; nothing in it is believed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from sandboxd.contract.frames import MEDIA_TYPE as FRAMES
from sandboxd.contract.frames import Batch, Decoder, FrameError
from sandboxd.guest_client.base import FeedRequest, GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import BROKEN, GuestConnection, let_go
from sandboxd.guest_client.pace import STEP_FRAMES, Pace

_FRAMES_PER_SECOND: Final = 20_000.0


@asynccontextmanager
async def open_feed(connection: GuestConnection, request: FeedRequest) -> AsyncGenerator[AsyncGenerator[Batch]]:
    """Open the feed: batches to its end. What breaks it is a GuestUnreachableError, what is no frame a GuestError."""
    response = await connection.send("POST", "feed", json=asdict(request))
    try:
        if response.content_type != FRAMES:
            raise GuestError("the guest sent something else than frames")
        silence = 3 * request.keepalive_seconds if request.follow else connection.limits.answer_seconds
        yield _batches(response, silence)
    finally:
        let_go(response)


async def _batches(response: aiohttp.ClientResponse, silence_seconds: float) -> AsyncGenerator[Batch]:
    decoder = Decoder()
    pace = Pace(_FRAMES_PER_SECOND, _FRAMES_PER_SECOND)
    loop = asyncio.get_running_loop()
    try:
        while True:
            async with asyncio.timeout(silence_seconds):
                data = await response.content.readany()
            if not data:
                decoder.finish()
                return
            batch = decoder.cut(data, STEP_FRAMES)
            while batch.heads:
                yield batch
                await asyncio.sleep(pace.take(len(batch.heads), loop.time()))
                batch = decoder.cut(b"", STEP_FRAMES)
    except FrameError as error:
        raise GuestError(str(error)) from error
    except HttpProcessingError as error:
        raise GuestError("the guest does not speak HTTP") from error
    except BROKEN as error:
        raise GuestUnreachableError(f"the feed broke off: {type(error).__name__}") from error
