"""Images, their logs, and the names projects gave them."""

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response
from yarl import URL

from api.routes.answers import REPLAYED, json_answer
from api.routes.calls import LARGE_BODY_BYTES, MERGE_PATCH, Call, scoped
from api.routes.following import accepted, goes_on
from api.routes.image_log import as_lines, as_server_events
from api.routes.operations import IDEMPOTENCY, IF_MATCH, WAIT, json_body, json_of, operation, query
from api.routes.relay import EVENT_STREAM, NDJSON, Relay
from api.services import image_builds, image_following, image_making, images
from api.services.image_nodes import member_of
from api.services.image_requests import NAME, TAG, ImageSpec, PatchImage, PutTag, split_tag
from api.services.image_views import Image, ImageList, Tag, TagList, tag_view
from api.services.node_client import NodeUnreachableError
from api.store import images as store
from api.store.image_tables import VISIBILITIES
from api.store.images import ImageFilter
from sandboxd.contract.images import SETTLED, ImageState
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field

router = APIRouter()

Read = Annotated[Call, Depends(scoped("images", write=False))]
Write = Annotated[Call, Depends(scoped("images", write=True))]
ImagePath = Annotated[str, Path(json_schema_extra={"pattern": "^img[a-z2-7]{20}$"})]
TagPath = Annotated[str, Path(json_schema_extra={"pattern": f"^{NAME}:{TAG}$"})]
_TAGS: Final = ("images",)
_STATES: Final = tuple(state.value for state in ImageState)
_SETTLED: Final = frozenset(state.value for state in SETTLED)
_STATE_SCHEMA: Final = {"type": "string", "enum": list(_STATES)}
_TAGGED: Final = re.compile(rf"{NAME}:{TAG}")
_IMAGE: Final = json_of(Image)
_HEADERS: Final = {"ETag": {"schema": {"type": "string"}, "description": "The generation, quoted."}}
_POSITION: Final = r"[0-9]{1,9}"
_TEXT: Final = {"schema": {"type": "string"}}
_MAKE_CODES: Final = (
    "image_not_found",
    "upload_not_found",
    "quota_exceeded",
    "idempotency_in_flight",
    "idempotency_mismatch",
    "body_too_large",
    "unsupported_media_type",
    "no_capacity",
    "node_unreachable",
    "disk_full",
    "sandbox_not_found",
    "invalid_state",
    "operation_in_progress",
    "registry_unavailable",
    "image_refused",
    "image_unauthorized",
)


def _answer(image: Image, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return json_answer(image, status, {"ETag": f'"{image.generation}"', **(headers or {})})


@router.post(
    "/v1/images",
    **operation(
        answers={202: ("It is being made.", _IMAGE), 200: ("It is ready.", _IMAGE)},
        codes=_MAKE_CODES,
        body=json_body(ImageSpec),
        parameters=[IDEMPOTENCY],
        headers=_HEADERS,
        tags=_TAGS,
    ),
)
async def create_image(call: Write) -> Response:
    """Make an image of what a registry, an upload or a build gives.

    The answer does not wait unless `wait_seconds` says so; GET it with `wait_seconds`, or follow its log. An image that
    fails keeps its `reason`. 200: it is ready already.
    """
    call.no_query()
    spec, raw = await call.body(ImageSpec, limit=LARGE_BODY_BYTES)
    key = call.idempotency_key("create_image", raw)
    bases = await image_builds.bases(call.platform, call.caller, spec)
    record, replayed = await image_making.make(call.platform, call.caller, spec, key, bases)
    found = await image_following.wait_until(
        call.platform, record, lambda row: row.state in _SETTLED, seconds=spec.wait_seconds
    )
    shown = await images.view(call.platform, call.caller, found or record)
    headers = {REPLAYED: "true"} if replayed else {}
    return _answer(shown, 200 if shown.state == ImageState.READY else 202, headers)


@router.get(
    "/v1/images",
    **operation(
        answers={200: ("A page.", json_of(ImageList))},
        codes=["invalid_cursor"],
        parameters=[
            query("state", {"type": "array", "items": _STATE_SCHEMA}),
            query("tag", {"type": "string", "pattern": f"^{NAME}(:{TAG})?$"}, "One of the project's names."),
            query("visibility", {"type": "string", "enum": list(VISIBILITIES)}),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            query("cursor", {"type": "string"}, "`next_cursor` of the page before."),
            query("order", {"type": "string", "enum": ["desc", "asc"], "default": "desc"}),
        ],
        tags=_TAGS,
    ),
)
async def list_images(call: Read) -> Response:
    """List the images the project may start from, in order of creation; the platform's own come last."""
    asked = call.query
    tag = asked.text("tag", rf"{NAME}(:{TAG})?")
    visibility = asked.choice("visibility", "", VISIBILITIES)
    wanted = ImageFilter(
        states=asked.choices("state", _STATES),
        visibility=visibility or None,
        tag=None if tag is None else split_tag(tag),
    )
    limit = asked.integer("limit", 100, 1, 1000)
    cursor = asked.text("cursor", r".{0,512}")
    order = asked.choice("order", "desc", ("desc", "asc"))
    asked.check()
    page = await images.list_page(
        call.platform, call.caller, wanted, cursor=cursor, descending=order == "desc", limit=limit
    )
    return json_answer(ImageList.model_construct(items=page.items, next_cursor=page.next_cursor))


@router.get(
    "/v1/images/{image_id}",
    **operation(
        answers={200: ("The image.", _IMAGE)},
        codes=["image_not_found"],
        parameters=[
            WAIT,
            query(
                "wait_for",
                {"type": "array", "items": _STATE_SCHEMA, "minItems": 1},
                "States to wait for, comma-separated; default: ready or failed.",
            )
            | {"style": "form", "explode": False},
        ],
        headers=_HEADERS,
        tags=_TAGS,
    ),
)
async def get_image(call: Read, image_id: ImagePath) -> Response:
    """Get an image. Elapsed waiting is not an error."""
    asked = call.query
    wait_for = frozenset(asked.comma_choices("wait_for", _STATES)) or _SETTLED
    wait_seconds = asked.number("wait_seconds", 0, 0, 60)
    asked.check()
    return _answer(await images.get(call.platform, call.caller, image_id, wait_for=wait_for, wait_seconds=wait_seconds))


@router.patch(
    "/v1/images/{image_id}",
    **operation(
        answers={200: ("The image as changed.", _IMAGE)},
        codes=["image_not_found", "generation_mismatch", "body_too_large", "unsupported_media_type"],
        body=json_body(PatchImage, "application/json", "application/merge-patch+json"),
        parameters=[IF_MATCH],
        headers=_HEADERS,
        tags=_TAGS,
    ),
)
async def patch_image(call: Write, image_id: ImagePath) -> Response:
    """Change who may see an image, and its metadata, by JSON merge patch."""
    call.no_query()
    body, _ = await call.body(PatchImage, kinds=MERGE_PATCH)
    return _answer(await images.patch(call.platform, call.caller, image_id, body, call.if_match()))


@router.delete(
    "/v1/images/{image_id}",
    **operation(
        answers={204: ("It is gone.", None)},
        codes=["image_not_found", "generation_mismatch"],
        parameters=[IF_MATCH],
        tags=_TAGS,
    ),
)
async def delete_image(call: Write, image_id: ImagePath) -> Response:
    """Remove an image and its tags; one that is being made is given up. Sandboxes on it live on."""
    call.no_query()
    await images.remove(call.platform, call.caller, image_id, call.if_match())
    return Response(status_code=204)


@router.get(
    "/v1/images/{image_id}/log",
    **operation(
        answers={
            200: ("What was said while it was made.", {NDJSON: _TEXT, EVENT_STREAM: _TEXT}),
            204: ("The stream of events was read to its end.", None),
        },
        codes=["image_not_found", "node_unreachable", "not_acceptable"],
        parameters=[
            query("after", {"type": "integer", "minimum": 0, "default": 0}, "`next` of the last line seen."),
            query("follow", {"type": "boolean", "default": False}, "Go on until the image is settled."),
        ],
        tags=_TAGS,
    ),
)
async def read_image_log(call: Read, image_id: ImagePath) -> Response:
    """Read the log of an image as NDJSON or server-sent events; one that was followed ends with `exit`. 30 days."""
    asked = call.query
    after = asked.integer("after", 0, 0, 10**9 - 1)
    follow = asked.choice("follow", "false", ("true", "false")) == "true"
    asked.check()
    kind = accepted(call.request, NDJSON, EVENT_STREAM)
    last, was_read = goes_on(call.request, kind, str(after), _POSITION)
    if was_read:
        return Response(status_code=204)
    after = int(last or "0")
    platform = call.platform
    record = await platform.database.read(store.get_own, call.caller.project_id, image_id)
    problem = ProblemError("node_unreachable", "The node of the image does not answer.", retry_after_seconds=1)
    try:
        address = member_of(platform, record.node_id).address
    except NodeUnreachableError:
        raise problem from None

    async def explain() -> ProblemError:
        return problem

    target = URL(f"http://node/node/v1/image-jobs/{image_id}/log").with_query(
        {"after": str(after), "follow": "true" if follow else "false"}
    )
    render = as_server_events(after) if kind == EVENT_STREAM else as_lines
    return Relay(call, platform.nodes.session(address), explain, target, (kind, render))


@router.get(
    "/v1/tags",
    **operation(
        answers={200: ("A page.", json_of(TagList))},
        codes=["invalid_cursor"],
        parameters=[
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            query("cursor", {"type": "string"}, "`next_cursor` of the page before."),
        ],
        tags=_TAGS,
    ),
)
async def list_tags(call: Read) -> Response:
    """List the project's tags by name."""
    asked = call.query
    limit = asked.integer("limit", 100, 1, 1000)
    cursor = asked.text("cursor", rf"{NAME}:{TAG}")
    asked.check()
    after = None if cursor is None else split_tag(cursor)
    page = await images.list_tags(call.platform, call.caller, after=after, limit=limit)
    return json_answer(
        TagList.model_construct(items=[tag_view(row) for row in page.items], next_cursor=page.next_cursor)
    )


_ONE_TAG: Final[dict[str, Any]] = {"codes": ["tag_not_found"], "tags": _TAGS}


@router.get("/v1/tags/{tag_name}", **operation(answers={200: ("The tag.", json_of(Tag))}, **_ONE_TAG))
async def get_tag(call: Read, tag_name: TagPath) -> Response:
    """Get a tag, `name:tag`."""
    call.no_query()
    name, tag = _split(tag_name)
    return json_answer(tag_view(await call.platform.database.read(store.get_tag, call.caller.project_id, name, tag)))


@router.put(
    "/v1/tags/{tag_name}",
    **operation(
        answers={200: ("It points elsewhere now.", json_of(Tag)), 201: ("It is new.", json_of(Tag))},
        codes=["image_not_found", "body_too_large", "unsupported_media_type"],
        body=json_body(PutTag),
        tags=_TAGS,
    ),
)
async def put_tag(call: Write, tag_name: TagPath) -> Response:
    """Give an image a name. What was started from the name before stays on what it was."""
    call.no_query()
    body, _ = await call.body(PutTag)
    name, tag = _split(tag_name)
    made, is_new = await call.platform.database.write(
        store.set_tag, call.caller.project_id, name, tag, body.image_id, now_us=call.platform.sources.now_us()
    )
    return json_answer(tag_view(made), 201 if is_new else 200)


@router.delete("/v1/tags/{tag_name}", **operation(answers={204: ("It is gone.", None)}, **_ONE_TAG))
async def delete_tag(call: Write, tag_name: TagPath) -> Response:
    """Remove a name; the image stays."""
    call.no_query()
    name, tag = _split(tag_name)
    await call.platform.database.write(store.remove_tag, call.caller.project_id, name, tag)
    return Response(status_code=204)


def _split(text: str) -> tuple[str, str]:
    if _TAGGED.fullmatch(text) is None:
        raise invalid_field("", "tag", f"must be name:tag, matching {NAME}:{TAG}")
    return split_tag(text)
