"""Problems: every error code of the public surface with its status, title and whether to try again.

Both programs raise ProblemError (or a subclass from their own `errors`) and render it with `body`;
what a node answers is passed on to the client unchanged.
"""

import re
from typing import Any, Final, NamedTuple

from sandboxd.contract.next_steps import NEXT_STEPS

MEDIA_TYPE: Final = "application/problem+json"
_TRACE: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class CodeRow(NamedTuple):
    """One stable code."""

    status: int
    title: str
    retryable: bool = False


CODES: Final[dict[str, CodeRow]] = {
    "malformed_request": CodeRow(400, "The request cannot be read"),
    "invalid_cursor": CodeRow(400, "The cursor is not valid here"),
    "invalid_path": CodeRow(400, "The path is not usable"),
    "unauthenticated": CodeRow(401, "No valid credential"),
    "scope_required": CodeRow(403, "The credential lacks a scope"),
    "quota_exceeded": CodeRow(403, "A quota is used up"),
    "permission_denied": CodeRow(403, "Not permitted inside the sandbox"),
    "sandbox_not_found": CodeRow(404, "No such sandbox"),
    "process_not_found": CodeRow(404, "No such process"),
    "tunnel_not_found": CodeRow(404, "No such tunnel"),
    "image_not_found": CodeRow(404, "No such image"),
    "tag_not_found": CodeRow(404, "No such tag"),
    "upload_not_found": CodeRow(404, "No such upload"),
    "snapshot_not_found": CodeRow(404, "No such snapshot"),
    "project_not_found": CodeRow(404, "No such project"),
    "key_not_found": CodeRow(404, "No such key"),
    "secret_not_found": CodeRow(404, "No such secret"),
    "node_not_found": CodeRow(404, "No such node"),
    "file_not_found": CodeRow(404, "No such file"),
    "route_not_found": CodeRow(404, "No such route"),
    "method_not_allowed": CodeRow(405, "Method not allowed"),
    "not_acceptable": CodeRow(406, "No acceptable representation"),
    "unsupported_media_type": CodeRow(415, "Unsupported media type"),
    "invalid_state": CodeRow(409, "Not possible in this state"),
    "sandbox_not_ready": CodeRow(409, "The sandbox is not ready yet", retryable=True),
    "sandbox_paused": CodeRow(409, "The sandbox is paused"),
    "name_taken": CodeRow(409, "The name is in use"),
    "idempotency_in_flight": CodeRow(409, "The first request is still running", retryable=True),
    "operation_in_progress": CodeRow(409, "Another operation is in progress", retryable=True),
    "already_exists": CodeRow(409, "It exists already"),
    "in_use": CodeRow(409, "It is in use"),
    "is_directory": CodeRow(409, "It is a directory"),
    "not_a_directory": CodeRow(409, "It is not a directory"),
    "directory_not_empty": CodeRow(409, "The directory is not empty"),
    "process_ended": CodeRow(409, "The process has ended"),
    "stdin_closed": CodeRow(409, "Standard input is closed"),
    "stdin_gap": CodeRow(409, "Bytes of standard input are missing"),
    "stale_generation": CodeRow(409, "An older request than one already carried out"),
    "sandbox_ended": CodeRow(410, "The sandbox has ended"),
    "generation_mismatch": CodeRow(412, "It has changed since"),
    "body_too_large": CodeRow(413, "The body is too large"),
    "seq_out_of_range": CodeRow(416, "The position is beyond the end"),
    "range_not_satisfiable": CodeRow(416, "The range is beyond the end"),
    "moved": CodeRow(421, "Not on this node", retryable=True),
    "invalid_request": CodeRow(422, "The request is not valid"),
    "idempotency_mismatch": CodeRow(422, "The key was used for another request"),
    "impossible_resources": CodeRow(422, "No node could ever provide this"),
    "no_such_gpu": CodeRow(422, "No node has such a GPU"),
    "image_refused": CodeRow(422, "The image cannot be used"),
    "image_unauthorized": CodeRow(422, "The registry does not let us in"),
    "argument_too_long": CodeRow(422, "An argument is too long"),
    "user_not_found": CodeRow(422, "No such user in the sandbox"),
    "cwd_not_found": CodeRow(422, "No such working directory"),
    "no_shell": CodeRow(422, "The image has no shell"),
    "unsafe_archive": CodeRow(422, "The archive is not safe to extract"),
    "filter_required": CodeRow(422, "A filter is required"),
    "invalid_policy": CodeRow(422, "The egress policy is not valid"),
    "rate_limited": CodeRow(429, "Too many requests", retryable=True),
    "too_many_streams": CodeRow(429, "Too many open streams", retryable=True),
    "internal": CodeRow(500, "Internal error"),
    "not_implemented": CodeRow(501, "Not available in this version"),
    "guest_failed": CodeRow(502, "The sandbox's guest agent failed"),
    "registry_unavailable": CodeRow(502, "The registry did not answer", retryable=True),
    "port_not_listening": CodeRow(502, "Nothing listens on the port", retryable=True),
    "deadline_exceeded": CodeRow(504, "It took too long", retryable=True),
    "no_capacity": CodeRow(503, "No node has room now", retryable=True),
    "node_unreachable": CodeRow(503, "The sandbox's node is out of reach", retryable=True),
    "sandbox_lost": CodeRow(503, "The sandbox's node is silent", retryable=True),
    "store_unavailable": CodeRow(503, "The database is not available", retryable=True),
    "egress_not_applied": CodeRow(503, "The egress policy could not be applied", retryable=True),
    "shutting_down": CodeRow(503, "The service is shutting down", retryable=True),
    "image_unavailable": CodeRow(503, "The image cannot be read on the node", retryable=True),
    "start_failed": CodeRow(503, "The sandbox could not be started", retryable=True),
    "disk_full": CodeRow(507, "No space left"),
}


class ProblemError(Exception):
    """An expected failure with a stable code. Anything else that escapes is a bug and answers `internal`."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        reason: str | None = None,
        retry_after_seconds: float | None = None,
        **members: object,
    ) -> None:
        """`detail` says what happened, with values; `hint` names the next call to make; no secrets, no host paths.

        Without a hint it is the next step of its code.
        """
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.row = CODES[code]
        self.detail = detail
        self.hint = hint
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.members = members

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.row.status

    def body(self, request_id: str, traceparent: str = "") -> dict[str, Any]:
        """Return the problem+json object; with the `trace_id` of a W3C `traceparent`, if there is a good one."""
        value: dict[str, Any] = {
            "type": f"/errors/{self.code}",
            "title": self.row.title,
            "status": self.row.status,
            "detail": self.detail,
            "code": self.code,
            "reason": self.reason,
            "hint": self.hint or NEXT_STEPS[self.code],
            "retryable": self.row.retryable,
            "request_id": request_id,
        }
        if self.retry_after_seconds is not None:
            value["retry_after_seconds"] = self.retry_after_seconds
        if trace := _TRACE.fullmatch(traceparent):
            value["trace_id"] = trace[1]
        return value | self.members
