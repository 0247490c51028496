"""Uploads: content by its SHA-256, in parts, private to the project. The bytes pass through to a node."""

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response
from starlette.types import Scope, Send

from api.routes.calls import Call, scoped
from api.routes.operations import bytes_body, json_of, operation, query
from api.routes.passthrough import PassThrough
from api.services import image_nodes
from api.services.image_making import upload_not_found
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.store import images as store
from sandboxd.contract.images import MAX_UPLOAD_BYTES, UploadState
from sandboxd.contract.problems import ProblemError

router = APIRouter()

Sha256Path = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TAGS: Final = ("images",)
_OFFSET: Final = {"Upload-Offset": {"schema": {"type": "integer"}, "description": "How many bytes are here."}}


class _ToUpload(PassThrough):
    """Passes a body through to the node's own call."""

    def __init__(self, call: Call, session: Any, explain: Any, target: str, query_string: bytes) -> None:
        super().__init__(call, session, explain)
        self._target = target.encode()
        self._question = query_string

    async def _pass(self, data: Any, scope: Scope, send: Send) -> None:
        await super()._pass(data, {**scope, "raw_path": self._target, "query_string": self._question}, send)


@router.head(
    "/v1/uploads/{sha256}",
    **operation(
        answers={200: ("It is here, wholly or in part.", None)},
        codes=["upload_not_found", "node_unreachable"],
        headers=_OFFSET,
        tags=_TAGS,
    ),
)
async def head_upload(call: Annotated[Call, Depends(scoped("images", write=False))], sha256: Sha256Path) -> Response:
    """Ask how much of an upload is here."""
    call.no_query()
    upload = await call.platform.database.read(store.find_upload, call.caller.project_id, _checked(sha256))
    if upload is None:
        raise upload_not_found(sha256)
    try:
        state = await image_nodes.upload_state(call.platform, upload.node_id, call.caller.project_id, sha256)
    except NodeProblemError as error:
        raise error.problem() from error
    except NodeUnreachableError as error:
        raise _unreachable() from error
    return Response(headers={"Upload-Offset": str(state.offset), "Upload-Length": str(state.total_bytes)})


@router.put(
    "/v1/uploads/{sha256}",
    **operation(
        answers={
            200: ("The part is here.", json_of(UploadState)),
            201: ("The whole is here, and is what it is called.", json_of(UploadState)),
        },
        codes=[
            "quota_exceeded",
            "operation_in_progress",
            "range_not_satisfiable",
            "no_capacity",
            "node_unreachable",
            "deadline_exceeded",
            "disk_full",
        ],
        body=bytes_body(),
        parameters=[
            query("offset", {"type": "integer", "minimum": 0, "default": 0}, "Where this part begins."),
            query("total_bytes", {"type": "integer", "minimum": 1, "maximum": MAX_UPLOAD_BYTES}) | {"required": True},
        ],
        tags=_TAGS,
    ),
)
async def put_upload(call: Annotated[Call, Depends(scoped("images", write=True))], sha256: Sha256Path) -> Response:
    """Send a part of an upload. After a break go on at `offset`; 201 once the whole is what its SHA-256 says.

    It is the project's alone and kept for a day after it was last sent to or used.
    """
    asked = call.query
    offset = asked.text("offset", r"[0-9]{1,15}")
    total_bytes = asked.text("total_bytes", r"[0-9]{1,15}")
    asked.check()
    platform, project_id = call.platform, call.caller.project_id
    known = await platform.database.read(store.find_upload, project_id, _checked(sha256))
    node_id = image_nodes.any_node(platform) if known is None else known.node_id
    upload = await platform.database.write(store.use_upload, project_id, sha256, node_id, platform.sources.now_us())
    try:
        session = platform.nodes.session(image_nodes.member_of(platform, upload.node_id).address)
    except NodeUnreachableError:
        raise _unreachable() from None

    async def explain() -> ProblemError:
        return _unreachable()

    question = f"offset={offset or 0}&total_bytes={total_bytes or 0}".encode()
    return _ToUpload(call, session, explain, f"/node/v1/uploads/{project_id}/{sha256}", question)


def _checked(sha256: str) -> str:
    if _SHA256.fullmatch(sha256) is None:
        raise upload_not_found(sha256)
    return sha256


def _unreachable() -> ProblemError:
    return ProblemError("node_unreachable", "The node of the upload does not answer.", retry_after_seconds=1)
