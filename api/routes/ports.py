"""What listens in a sandbox: served by the node, passed through unchanged."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api.routes.calls import Call, scoped
from api.routes.data_plane import SANDBOX_CODES, pass_on
from api.routes.operations import json_of, operation, query
from api.routes.sandboxes import SandboxPath
from sandboxd.contract.history import PortList

router = APIRouter()


@router.get(
    "/v1/sandboxes/{sandbox_id}/ports",
    **operation(
        answers={200: ("What listens.", json_of(PortList))},
        codes=[*SANDBOX_CODES, "too_many_streams"],
        parameters=[
            query("port", {"type": "integer", "minimum": 1, "maximum": 65535}, "Only this one."),
            query(
                "wait_seconds",
                {"type": "number", "minimum": 0, "maximum": 60, "default": 0},
                "Wait for it, or for any; an empty list if nothing listens then.",
            ),
        ],
        tags=["processes"],
    ),
)
async def list_ports(
    call: Annotated[Call, Depends(scoped("processes", write=False))], sandbox_id: SandboxPath
) -> Response:
    """List the sockets that listen in a sandbox, or wait for one."""
    return await pass_on(call, sandbox_id)
