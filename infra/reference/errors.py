"""The page of error codes: each with its status and what a caller does about it."""

from typing import Final

from sandboxd.contract.problems import CODES

NEXT_STEPS: Final = {
    "malformed_request": "Send a body that is valid JSON in UTF-8, with its Content-Type.",
    "invalid_cursor": "Start the list again without `cursor`, with the same filters.",
    "invalid_path": "Use a path without NUL, of at most 4,096 bytes and 255 a component.",
    "unauthenticated": "Send `Authorization: Bearer <key>`; `reason` says what is wrong with the one that came.",
    "scope_required": "Use a key that has the scope named in `required_scope`.",
    "permission_denied": "Act as a user who may do this inside the sandbox.",
    "sandbox_not_found": "Check the id; a sandbox of another project looks the same.",
    "process_not_found": "Check the id; list the sandbox's processes.",
    "image_not_found": "Check the name; an operator adds images with `sandlotd image import`.",
    "snapshot_not_found": "Check the id.",
    "project_not_found": "Check the id.",
    "key_not_found": "Check the id.",
    "secret_not_found": "Check the name.",
    "node_not_found": "Check the id.",
    "file_not_found": "Check the path.",
    "route_not_found": "Check the path against `/openapi.json`.",
    "method_not_allowed": "Use a method named in the `Allow` header.",
    "not_acceptable": "Accept one of the media types the call can answer with.",
    "unsupported_media_type": "Send `application/json`, or raw bytes where the call takes them.",
    "invalid_state": "Wait for a state named in `allowed`, or give up: `state` says which it is in.",
    "sandbox_not_ready": "GET the sandbox with `wait_seconds`, then send the same request again.",
    "sandbox_paused": "Resume it first.",
    "name_taken": "Use another name, or `if_exists: return` to get the one named in `sandbox_id`.",
    "idempotency_in_flight": "Send the same request again a little later.",
    "operation_in_progress": "Send the same request again a little later.",
    "already_exists": "Use another name, or take what is there.",
    "in_use": "Remove what uses it first.",
    "is_directory": "Name a file.",
    "not_a_directory": "Name a directory.",
    "directory_not_empty": "Empty it, or remove it recursively.",
    "process_ended": "Read its `result`; `exit_code` and `reason` say how it ended.",
    "stdin_closed": "Start the process with `stdin: true`; what was closed stays closed.",
    "stdin_gap": "Send again from `offset`.",
    "stale_generation": "Nothing: somebody newer has decided. Between the programs only.",
    "sandbox_ended": "Create another; `reason` says why this one ended.",
    "generation_mismatch": "GET it again, decide again, send the new `ETag`.",
    "body_too_large": "Use the streaming call named in the hint.",
    "seq_out_of_range": "Read from `next_seq` or below.",
    "range_not_satisfiable": "Read below `size_bytes`.",
    "moved": "Ask the api instead of the node.",
    "invalid_request": "Correct the fields named in `errors`; nothing is ignored or clamped.",
    "idempotency_mismatch": "Use a new key, or a new process id, for a new request.",
    "impossible_resources": "Ask for at most `limit`.",
    "no_such_gpu": "Ask for one of `available`.",
    "argument_too_long": "Pass long data by standard input.",
    "user_not_found": "Use a user of the image, or `uid[:gid]`.",
    "cwd_not_found": "Create the directory first, or name another.",
    "no_shell": "Use `argv` instead of `shell`.",
    "invalid_policy": "Correct the rules named in `errors`.",
    "rate_limited": "Wait as long as `Retry-After` says.",
    "too_many_streams": "Close a stream first.",
    "internal": "Report it with its `request_id`.",
    "not_implemented": "Leave out what `reason` names.",
    "guest_failed": "Delete the sandbox and create another.",
    "deadline_exceeded": "Send the same request again, or wait longer for its effect.",
    "no_capacity": "Send the same request again later, or end sandboxes that are not needed.",
    "node_unreachable": "Send the same request again.",
    "sandbox_lost": "Send the same request again; it may come back, or end with `node_lost`.",
    "store_unavailable": "Send the same request again.",
    "egress_not_applied": "Send the same request again; until it succeeds the sandbox reaches nothing.",
    "shutting_down": "Send the same request again.",
    "image_unavailable": "Send the same request again; if it stays, an operator imports the image anew.",
    "start_failed": "Create again; if it stays, `sandlotd doctor` on the node says more.",
    "disk_full": "Remove files inside the sandbox, or ask for more `disk_mib`; `scope` says whose disk it is.",
}

_HEAD: Final = """\
# Errors

Drawn from `sandboxd/contract/problems.py` by `python -m infra.reference`; a test holds it to the code.

Every error is `application/problem+json`: `type`, `title`, `status`, `detail` (what happened, with values), `code`
(stable), `reason` where one applies, `hint` (the next call to make), `retryable`, `retry_after_seconds` where known,
`request_id`, and members of its own. `retryable: true` means: send the same request again, unchanged, after
`Retry-After` if given; it had no lasting effect.

A command that fails, is not found, is killed or runs out of time is **not** an error: it is a result with `exit_code`
and `reason` (see [lifecycle](lifecycle.md)). A sandbox or node that cannot serve is always an error.

| code | status | title | retryable | what to do |
|---|---|---|---|---|"""


def page() -> str:
    """Return the page. KeyError names a code that has no next step yet."""
    rows = [
        f"| `{code}` | {row.status} | {row.title} | {'yes' if row.retryable else 'no'} | {NEXT_STEPS[code]} |"
        for code, row in sorted(CODES.items(), key=lambda item: (item[1].status, item[0]))
    ]
    unknown = sorted(set(NEXT_STEPS) - set(CODES))
    if unknown:
        raise KeyError(f"no such codes any more: {', '.join(unknown)}")
    return "\n".join([_HEAD, *rows]) + "\n"
