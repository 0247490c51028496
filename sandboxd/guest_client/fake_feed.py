"""The feed of the fake guest: the newest output of all its processes, batch by batch."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

from sandboxd.contract.frames import Batch, Frame, FrameKind, batch_of
from sandboxd.guest_client.base import FeedRequest
from sandboxd.guest_client.fake_process import FakeProcess

_LOOK_SECONDS = 0.005


async def feed(
    processes: dict[str, FakeProcess], request: FeedRequest, require_alive: Callable[[], None]
) -> AsyncGenerator[Batch]:
    """Yield what is new, until nothing runs any more; or once."""
    positions, ended = dict(request.positions), set(request.ended)
    loop = asyncio.get_running_loop()
    quiet_since = loop.time()
    while True:
        require_alive()
        frames: list[Frame] = []
        for process in list(processes.values()):
            if process.id not in ended:
                frames += _of(process, positions, ended, request.most_bytes, len(processes))
        if frames:
            quiet_since = loop.time()
            yield batch_of(*frames)
        running = any(process.exit is None for process in processes.values())
        if not request.follow or (not running and loop.time() - quiet_since >= request.linger_seconds):
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _of(process: FakeProcess, positions: dict[str, int], ended: set[str], most_bytes: int, count: int) -> list[Frame]:
    at = positions.get(process.id, 0)
    end = process.output.next_seq
    if at >= end and process.exit is None:
        return []
    name = json.dumps({"process_id": process.id, "processes": count}).encode()
    begin = max(at, end - most_bytes)
    frames = [Frame(FrameKind.ATTACHED, at, name, 1)]
    if begin > at:
        frames.append(Frame(FrameKind.LOST, at, b'{"lost_bytes":%d}' % (begin - at)))
    frames += process.output.read(begin)
    positions[process.id] = end
    if process.exit is not None:
        ended.add(process.id)
        payload = json.dumps(process.exit_payload()).encode()
        frames.append(Frame(FrameKind.EXIT, end, payload, int(process.exit.at.timestamp() * 1_000_000)))
    return frames
