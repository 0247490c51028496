"""The api's calls to nodes about images."""

import asyncio
from collections.abc import Collection
from typing import Any, Final, TypeVar, cast

import aiohttp
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from yarl import URL

from api.services.fleet import Member
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from sandboxd.contract.images import ImageJob, StartImageJob, StoredImage, StoredImages, UploadState
from sandboxd.contract.problems import CODES, MEDIA_TYPE, ProblemError

_SECONDS: Final = 20.0
_OK: Final = frozenset({200, 201, 204})
_M = TypeVar("_M", bound=BaseModel)


def any_node(platform: Platform, content: Collection[str] = ()) -> str:
    """Return a node that can make images, one with this content where there is one. Raises `no_capacity`.

    A node without it has it from the store.
    """
    views = [view for view in platform.fleet.views() if view.ready]
    ready = sorted(view.id for view in views if all(each in view.images for each in content))
    ready = ready or sorted(view.id for view in views)
    if not ready:
        raise ProblemError("no_capacity", "No node has reported yet.", retry_after_seconds=1)
    return ready[platform.sources.draw(len(ready))]


def member_of(platform: Platform, node_id: str) -> Member:
    """Return a node that can be asked. NodeUnreachableError."""
    member = platform.fleet.members.get(node_id)
    if member is None or member.silent:
        raise NodeUnreachableError("silent", sent=False)
    return member


async def start_job(platform: Platform, node_id: str, image_id: str, asked: StartImageJob) -> ImageJob:
    """Begin a job, once however often it is asked. NodeProblemError, NodeUnreachableError."""
    data = asked.model_dump_json(by_alias=True).encode()
    return _model(ImageJob, await _call(platform, node_id, "PUT", f"image-jobs/{image_id}", data=data))


async def wait_job(platform: Platform, node_id: str, image_id: str, *, beyond: int, seconds: float) -> ImageJob:
    """Return a job once it is further than `beyond`, or as it is when the time is up."""
    query = {"beyond": str(beyond), "wait_seconds": f"{seconds:g}"}
    answer = await _call(platform, node_id, "GET", f"image-jobs/{image_id}", query=query, seconds=seconds + _SECONDS)
    return _model(ImageJob, answer)


async def remove_job(platform: Platform, node_id: str, image_id: str) -> None:
    """End a job that runs, and forget it."""
    await _call(platform, node_id, "DELETE", f"image-jobs/{image_id}")


async def remove_content(platform: Platform, node_id: str, content_id: str) -> None:
    """Remove an image's file. `in_use` while a sandbox lives on it."""
    await _call(platform, node_id, "DELETE", f"images/{content_id}")


async def stored(platform: Platform, node_id: str, project_id: str) -> list[StoredImage]:
    """Return what images take in the store, as far as the project may know. Takes a while."""
    return _model(StoredImages, await _call(platform, node_id, "GET", f"stored-images/{project_id}")).items


async def upload_state(platform: Platform, node_id: str, project_id: str, sha256: str) -> UploadState:
    """Return how much of an upload is there."""
    return _model(UploadState, await _call(platform, node_id, "GET", f"uploads/{project_id}/{sha256}"))


async def _call(
    platform: Platform,
    node_id: str,
    method: str,
    path: str,
    *,
    data: bytes | None = None,
    query: dict[str, str] | None = None,
    seconds: float = _SECONDS,
) -> bytes:
    session = platform.nodes.session(member_of(platform, node_id).address)
    headers = {} if data is None else {"Content-Type": "application/json"}
    try:
        async with (
            asyncio.timeout(seconds),
            session.request(
                method,
                URL(f"http://node/node/v1/{path}"),
                data=data,
                params=query,
                headers=headers,
                allow_redirects=False,
            ) as answer,
        ):
            payload = await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise NodeUnreachableError(type(error).__name__, sent=True) from error
    if answer.status in _OK:
        return payload
    if answer.content_type == MEDIA_TYPE:
        body = cast("dict[str, Any]", from_json(payload))
        if body.get("code") in CODES:
            raise NodeProblemError(body)
    raise NodeUnreachableError(f"answered {answer.status}", sent=True)


def _model(of: type[_M], payload: bytes) -> _M:
    try:
        return of.model_validate_json(payload)
    except ValidationError as error:
        raise NodeUnreachableError("not understood", sent=True) from error
