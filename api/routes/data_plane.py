"""Calls of the data plane: what every one of them needs of the api before the node is asked."""

from typing import Final

from fastapi import Response

from api.routes.calls import Call
from api.routes.passthrough import PassThrough
from api.services import sandboxes
from sandboxd.contract.ids import is_id
from sandboxd.contract.problems import ProblemError

NOT_READY_SECONDS: Final = 30.0
SANDBOX_CODES: Final = (
    "sandbox_not_found",
    "invalid_state",
    "sandbox_not_ready",
    "sandbox_paused",
    "sandbox_ended",
    "guest_failed",
    "node_unreachable",
    "sandbox_lost",
    "deadline_exceeded",
    "not_acceptable",
)
"""Errors that any of these calls can come to."""


async def pass_on(call: Call, sandbox_id: str, process_id: str | None = None) -> Response:
    """Answer what the node answers, byte for byte. `process_not_found` for what is no id."""
    if process_id is not None and not is_id("prc", process_id):
        raise ProblemError("process_not_found", f"There is no process {process_id[:64]!r}.")
    platform, caller = call.platform, call.caller
    address = await sandboxes.data_plane_address(platform, caller, sandbox_id, wait_seconds=NOT_READY_SECONDS)

    async def explain() -> ProblemError:
        return await sandboxes.data_plane_problem(platform, caller, sandbox_id)

    return PassThrough(call, platform.nodes.session(address), explain)
