"""The calls of the api about images: jobs and their logs, what the node has, uploads."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from sandboxd.app.answers import json_answer
from sandboxd.app.call import body_chunks, streamed
from sandboxd.app.query import Query
from sandboxd.contract.ids import is_id
from sandboxd.contract.images import HeldImages, ImageJobs, StartImageJob, StoredImages
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid
from sandboxd.images.base import Images
from sandboxd.images.jobs import Jobs
from sandboxd.images.store import ImageInUseError, ImageStore
from sandboxd.images.stored_sizes import StoredSizes
from sandboxd.images.uploads import Uploads

_BODY_BYTES: Final = 9 * 1024 * 1024
_MOST: Final = 2**53
_NDJSON: Final = "application/x-ndjson"
_KEEPALIVE: Final = b'{"kind":"keepalive"}\n'


def routes(jobs: Jobs, uploads: Uploads, images: Images) -> list[web.AbstractRouteDef]:
    """Return the routes about images below `/node/v1`."""
    calls = _ImageCalls(jobs, uploads, images)
    job, upload = "/node/v1/image-jobs/{job_id}", "/node/v1/uploads/{project_id}/{sha256}"
    return [
        web.get("/node/v1/image-jobs", calls.jobs, allow_head=False),
        web.put(job, calls.start),
        web.get(job, calls.get, allow_head=False),
        web.delete(job, calls.remove_job),
        web.get(job + "/log", calls.log, allow_head=False),
        web.get("/node/v1/images", calls.held, allow_head=False),
        web.get("/node/v1/stored-images/{project_id}", calls.stored, allow_head=False),
        web.delete("/node/v1/images/{image_id}", calls.remove_image),
        web.get(upload, calls.upload, allow_head=False),
        web.put(upload, calls.put_upload),
    ]


class _ImageCalls:
    def __init__(self, jobs: Jobs, uploads: Uploads, images: Images) -> None:
        self._jobs = jobs
        self._uploads = uploads
        self._images = images
        self._sizes = StoredSizes(images) if isinstance(images, ImageStore) else None

    async def jobs(self, request: web.Request) -> web.Response:
        Query(request).check()
        return json_answer(ImageJobs(items=self._jobs.list()))

    async def start(self, request: web.Request) -> web.Response:
        Query(request).check()
        job_id = _job_id(request.match_info)
        return json_answer(self._jobs.start(job_id, await _body(request)))

    async def get(self, request: web.Request) -> web.Response:
        query = Query(request)
        beyond = query.optional_integer("beyond", 0, _MOST)
        seconds = query.number("wait_seconds", 0, 0, 60)
        query.check()
        job_id = _job_id(request.match_info)
        if beyond is None:
            return json_answer(self._jobs.get(job_id))
        return json_answer(await self._jobs.wait(job_id, beyond=beyond, seconds=seconds))

    async def remove_job(self, request: web.Request) -> web.Response:
        Query(request).check()
        await self._jobs.remove(_job_id(request.match_info))
        return web.Response(status=204)

    async def log(self, request: web.Request) -> web.StreamResponse:
        query = Query(request)
        after = query.integer("after", 0, 0, _MOST)
        follow = query.boolean("follow", default=False)
        seconds = query.number("keepalive_seconds", 15, 1, 60)
        query.check()
        job_id = _job_id(request.match_info)
        self._jobs.get(job_id)
        async with streamed(request, _NDJSON) as response:
            async for piece in self._jobs.log(job_id, after, follow=follow, alive_seconds=seconds):
                await response.write(piece or _KEEPALIVE)
        return response

    async def held(self, request: web.Request) -> web.Response:
        Query(request).check()
        return json_answer(HeldImages(items=self._images.held()))

    async def stored(self, request: web.Request) -> web.Response:
        Query(request).check()
        counted = [] if self._sizes is None else await self._sizes.of(request.match_info["project_id"])
        return json_answer(StoredImages(items=counted))

    async def remove_image(self, request: web.Request) -> web.Response:
        """Remove an image that has no name; one with a name is the operator's."""
        Query(request).check()
        image_id = request.match_info["image_id"]
        if not is_id("img", image_id):
            raise ProblemError("image_not_found", f"There is no image {image_id[:64]!r}.")
        if isinstance(self._images, ImageStore) and not any(
            image.names for image in self._images.held() if image.id == image_id
        ):
            try:
                await self._images.remove(image_id)
            except ImageInUseError as error:
                raise ProblemError("in_use", "Sandboxes live on it.") from error
        return web.Response(status=204)

    async def upload(self, request: web.Request) -> web.Response:
        Query(request).check()
        where = request.match_info
        return json_answer(self._uploads.state(where["project_id"], where["sha256"]))

    async def put_upload(self, request: web.Request) -> web.Response:
        query = Query(request)
        offset = query.integer("offset", 0, 0, _MOST)
        total_bytes = query.integer("total_bytes", 0, 0, _MOST)
        query.check()
        where = request.match_info
        state = await self._uploads.put(
            where["project_id"], where["sha256"], offset=offset, total_bytes=total_bytes, body=body_chunks(request)
        )
        return json_answer(state, 201 if state.complete else 200)


def _job_id(where: Mapping[str, str]) -> str:
    job_id = where["job_id"]
    if not is_id("img", job_id):
        raise ProblemError("image_not_found", f"There is no image job {job_id[:64]!r}.")
    return job_id


async def _body(request: web.Request) -> StartImageJob:
    data = bytearray()
    async for piece in body_chunks(request):
        data += piece
        if len(data) > _BODY_BYTES:
            raise ProblemError("body_too_large", f"The body is larger than {_BODY_BYTES} bytes.")
    try:
        return StartImageJob.model_validate_json(bytes(data))
    except ValidationError as error:
        raise invalid(error) from None
