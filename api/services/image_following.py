"""Following images while they are made: what their nodes tell is written down, and wakes who waits."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from api.services import image_nodes, image_secrets
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.store import images as store
from api.store.image_tables import Image
from sandboxd.contract.images import SETTLED, ImageJob, ImageReason, ImageState
from sandboxd.contract.problems import ProblemError

_log = structlog.get_logger()
_POLL_SECONDS: Final = 25.0
_AGAIN_SECONDS: Final = 1.0


async def take_up(platform: Platform) -> None:
    """Follow what an earlier start of the api left unsettled."""
    for image in await platform.database.read(store.unsettled_any_project):
        follow(platform, image, None)


def follow(platform: Platform, image: Image, job: ImageJob | None) -> None:
    """Follow an image in the background until it is settled; once, however often it is asked."""
    if image.id in platform.images.following:
        return
    if job is not None:
        platform.images.jobs[image.id] = job
    task = platform.background.start(_follow(platform, image))
    platform.images.following[image.id] = task
    task.add_done_callback(lambda _: _followed(platform, image.id))


def _followed(platform: Platform, image_id: str) -> None:
    platform.images.following.pop(image_id, None)
    platform.images.jobs.pop(image_id, None)
    platform.changes.notify(image_id)


async def _follow(platform: Platform, image: Image) -> None:
    try:
        asked = await image_secrets.asked_of(platform, image)
    except ProblemError as problem:
        await _fail(platform, image, ImageReason.UNAUTHORIZED, problem.detail)
        return
    silent_since: float | None = None
    while True:
        try:
            job = await image_nodes.start_job(platform, image.node_id, image.id, asked)
            while await _note(platform, image, job):
                job = await image_nodes.wait_job(
                    platform, image.node_id, image.id, beyond=job.sequence, seconds=_POLL_SECONDS
                )
        except NodeProblemError as error:
            if error.code not in {"image_not_found", "no_capacity", "shutting_down"}:
                await _fail(platform, image, ImageReason.INTERRUPTED, str(error.body.get("detail", error.code)))
                return
        except NodeUnreachableError:
            now = platform.sources.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since > platform.settings.lost_grace_seconds:
                await _fail(platform, image, ImageReason.INTERRUPTED, "Its node is silent.")
                return
        else:
            return
        if await platform.database.read(store.get_any_project, image.id) is None:
            return
        await asyncio.sleep(_AGAIN_SECONDS)


async def _note(platform: Platform, image: Image, job: ImageJob) -> bool:
    """Take in what a node tells; False once there is nothing more to follow."""
    before = platform.images.jobs.get(image.id)
    platform.images.jobs[image.id] = job
    if job.state in SETTLED:
        await _settle(platform, image, job)
        return False
    if before is None or before.state != job.state:
        changes = {"state": job.state.value, "updated_at": platform.sources.now_us()}
        if await platform.database.write(store.note_any_project, image.id, changes) is None:
            return False
    platform.changes.notify(image.id)
    return True


async def _settle(platform: Platform, image: Image, job: ImageJob) -> None:
    now_us = platform.sources.now_us()
    changes: dict[str, Any] = {"updated_at": now_us}
    if job.steps is not None:
        changes["steps"] = [step.model_dump(mode="json") for step in job.steps]
    made = job.image
    if made is None:
        reason = job.reason or ImageReason.INTERRUPTED
        changes |= {"state": ImageState.FAILED.value, "reason": reason.value, "message": job.message}
    else:
        changes |= {
            "state": ImageState.READY.value,
            "ready_at": now_us,
            "content_id": made.id,
            "digest": made.digest,
            "origin_digest": made.origin_digest,
            "platform": made.platform,
            "config": made.config.model_dump(),
            "dropped": made.dropped,
            "size_bytes": made.size_bytes,
        }
        # Before the record says so: who sees it ready can start from it.
        platform.fleet.holds(image.node_id, made.id)
    await platform.database.write(store.note_any_project, image.id, changes)


async def _fail(platform: Platform, image: Image, reason: ImageReason, message: str) -> None:
    _log.warning("image given up", image=image.id, why=message)
    changes = {
        "state": ImageState.FAILED.value,
        "reason": reason.value,
        "message": message[:1000],
        "updated_at": platform.sources.now_us(),
    }
    await platform.database.write(store.note_any_project, image.id, changes)


async def wait_until(
    platform: Platform, image: Image, reached: Callable[[Image], bool], *, seconds: float | None
) -> Image | None:
    """Return the image once `reached` says so, or as it is when the time is up; None once it is gone."""
    if reached(image) or (seconds is not None and seconds <= 0):
        return image
    found: Image | None = image
    with platform.changes.subscribe(image.id) as changed:
        try:
            async with asyncio.timeout(seconds):
                while found is not None and not reached(found):
                    changed.clear()
                    found = await platform.database.read(store.get_any_project, image.id)
                    if found is not None and not reached(found):
                        await changed.wait()
        except TimeoutError:
            return await platform.database.read(store.get_any_project, image.id)
    return found
