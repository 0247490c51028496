"""Everything the client raises.

    SandlotError
    ├── ConfigurationError            no URL or key is known
    ├── UnreachableError              no complete answer came, however often it was safe to ask
    ├── ProtocolError                 an answer that is not Sandlot's
    ├── ConnectionClosedError         a WebSocket was closed from the other side, with a code
    ├── FileChangedError              a file became another one while it was read
    ├── UnsafeArchiveError            an archive would write outside the directory it is for
    ├── ProcessFailedError            asked for by `RunResult.check`
    └── ApiError                      the API said no, with a stable `code`
        ├── InvalidRequestError       400, 405, 406, 412, 413, 415, 416, 422
        ├── AuthenticationError       401
        ├── NotPermittedError         403
        │   ├── ScopeRequiredError        the key lacks a scope
        │   ├── QuotaExceededError        the project has used up what it may use
        │   └── PermissionDeniedError     the user inside the sandbox may not
        ├── NotFoundError             404
        │   ├── SandboxNotFoundError
        │   ├── ProcessNotFoundError
        │   └── FileMissingError
        ├── ConflictError             409
        │   ├── NameTakenError
        │   ├── SandboxNotReadyError
        │   ├── SandboxPausedError
        │   ├── ProcessEndedError
        │   ├── StdinClosedError
        │   └── FileConflictError         there already, a directory, none, or not empty
        ├── SandboxEndedError         410; `reason` says why it ended
        ├── RateLimitedError          429
        ├── NotAvailableError         501
        └── ServerError               421, 5xx
            ├── NoCapacityError
            ├── SandboxLostError
            ├── PortNotListeningError
            └── DiskFullError

A failed command is none of these: it is a `RunResult` with an exit code.
"""

from collections.abc import Mapping
from typing import Any, Final

_KNOWN_MEMBERS: Final = frozenset(
    {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "reason",
        "hint",
        "retryable",
        "retry_after_seconds",
        "request_id",
        "trace_id",
    }
)


class SandlotError(Exception):
    """The root of all errors of this package. `hint` says what to do next, if anything can be said."""

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigurationError(SandlotError):
    """No URL or no key is known, or they are unusable."""


class UnreachableError(SandlotError):
    """The connection failed or broke before a whole answer was read."""

    def __init__(self, message: str, *, sent: bool = True, alive: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent
        """Whether the request may have reached the server. False only when that is certain."""
        self.alive = alive
        """Whether the server showed, before the break, that it was at work on the answer."""


class ProtocolError(SandlotError):
    """The answer is not one the Sandlot API gives: a wrong URL, a proxy in between, or a bug."""


class ConnectionClosedError(SandlotError):
    """The other side closed a WebSocket. `code` and `reason` are what it said; 1006 if it said nothing."""

    def __init__(self, code: int, reason: str = "", *, hint: str | None = None) -> None:
        super().__init__(f"the connection was closed with {code}" + (f": {reason}" if reason else ""), hint=hint)
        self.code = code
        self.reason = reason


class FileChangedError(SandlotError):
    """A file was replaced while it was read, so that what comes next belongs to another one."""


class UnsafeArchiveError(SandlotError):
    """An archive has an entry that would write outside the directory it is unpacked into."""


class ProcessFailedError(SandlotError):
    """A process ended with another exit code than 0, and the caller asked for an error then."""

    def __init__(self, message: str, *, exit_code: int | None, reason: str | None, stderr: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.reason = reason
        self.stderr = stderr


class ApiError(SandlotError):
    """The API refused or failed. `code` is stable; `message` is for people."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code: str = _text(problem.get("code")) or f"http_{status}"
        self.title: str = _text(problem.get("title")) or self.code
        self.detail: str = _text(problem.get("detail")) or self.title
        self.reason: str | None = _text(problem.get("reason"))
        self.retryable: bool = problem.get("retryable") is True
        self.retry_after_seconds: float | None = _number(problem.get("retry_after_seconds"))
        self.request_id: str | None = _text(problem.get("request_id"))
        self.members: dict[str, Any] = {key: value for key, value in problem.items() if key not in _KNOWN_MEMBERS}
        self.problem: dict[str, Any] = dict(problem)
        super().__init__(f"{self.code}: {self.detail}", hint=_text(problem.get("hint")))


class InvalidRequestError(ApiError):
    """The request is wrong as it stands; `members["errors"]` may name the fields."""


class AuthenticationError(ApiError):
    """The key is missing, malformed, unknown, expired or revoked; `reason` says which."""


class NotPermittedError(ApiError):
    """The key may not do this, or a quota is used up."""


class ScopeRequiredError(NotPermittedError):
    """The key lacks `members["required_scope"]`."""


class QuotaExceededError(NotPermittedError):
    """The project, or one above it, has used up `members["quota"]`."""


class PermissionDeniedError(NotPermittedError):
    """The user inside the sandbox has not the rights."""


class NotFoundError(ApiError):
    """There is no such thing, or it belongs to somebody else."""


class SandboxNotFoundError(NotFoundError):
    """There is no such sandbox."""


class ProcessNotFoundError(NotFoundError):
    """There is no such process in the sandbox."""


class FileMissingError(NotFoundError):
    """There is no such file in the sandbox."""


class ConflictError(ApiError):
    """Not possible in the present state."""


class SandboxNotReadyError(ConflictError):
    """The sandbox is still starting."""


class NameTakenError(ConflictError):
    """A live sandbox of the project has the name: `members["sandbox_id"]`."""


class SandboxPausedError(ConflictError):
    """The sandbox is paused, and this call does not wake it."""


class FileConflictError(ConflictError):
    """Something is there already, is a directory, is none, or is not empty; `code` says which."""


class ProcessEndedError(ConflictError):
    """The process has ended; `members` may have its `exit_code`."""


class StdinClosedError(ConflictError):
    """The process has no standard input, or it was closed."""


class SandboxEndedError(ApiError):
    """The sandbox has ended; `reason` says why."""


class RateLimitedError(ApiError):
    """Too many requests or streams at once."""


class NotAvailableError(ApiError):
    """The server is of a version that cannot do it."""


class ServerError(ApiError):
    """The platform could not serve, through no fault of the request."""


class NoCapacityError(ServerError):
    """No node has room now."""


class SandboxLostError(ServerError):
    """The sandbox's node is silent; it may come back."""


class PortNotListeningError(ServerError):
    """Nothing listens on the port inside the sandbox."""


class DiskFullError(ServerError):
    """The sandbox's disk is full, or the node's."""


_BY_CODE: Final[dict[str, type[ApiError]]] = {
    "sandbox_not_found": SandboxNotFoundError,
    "process_not_found": ProcessNotFoundError,
    "file_not_found": FileMissingError,
    "scope_required": ScopeRequiredError,
    "quota_exceeded": QuotaExceededError,
    "permission_denied": PermissionDeniedError,
    "name_taken": NameTakenError,
    "already_exists": FileConflictError,
    "is_directory": FileConflictError,
    "not_a_directory": FileConflictError,
    "directory_not_empty": FileConflictError,
    "sandbox_paused": SandboxPausedError,
    "sandbox_not_ready": SandboxNotReadyError,
    "process_ended": ProcessEndedError,
    "stdin_closed": StdinClosedError,
    "no_capacity": NoCapacityError,
    "sandbox_lost": SandboxLostError,
    "port_not_listening": PortNotListeningError,
    "disk_full": DiskFullError,
}

_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    401: AuthenticationError,
    403: NotPermittedError,
    404: NotFoundError,
    409: ConflictError,
    410: SandboxEndedError,
    421: ServerError,
    429: RateLimitedError,
    501: NotAvailableError,
}

_SERVER_ERROR: Final = 500
RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
"""What to try again when the answer is not a problem document: some proxy's, not the API's."""


def from_problem(status: int, problem: Mapping[str, Any]) -> ApiError:
    """Return the error for a problem document.

    >>> type(from_problem(410, {"code": "sandbox_ended", "reason": "out_of_memory"})).__name__
    'SandboxEndedError'
    """
    kind = _BY_CODE.get(_text(problem.get("code")) or "") or _BY_STATUS.get(status)
    if kind is None:
        kind = ServerError if status >= _SERVER_ERROR else InvalidRequestError
    return kind(status, problem)


def from_foreign(status: int, excerpt: str) -> ApiError:
    """Return the error for an answer that is no problem document, most likely of a proxy in between."""
    retryable = status in RETRYABLE_STATUSES
    return from_problem(
        status, {"code": f"http_{status}", "detail": excerpt or f"HTTP {status}", "retryable": retryable}
    )


_BY_CLOSE_CODE: Final = {
    4401: (401, "unauthenticated"),
    4404: (404, "process_not_found"),
    4409: (409, "sandbox_paused"),
    4410: (410, "sandbox_ended"),
    4502: (502, "port_not_listening"),
    4503: (503, "node_unreachable"),
}


def from_close(error: ConnectionClosedError) -> SandlotError:
    """Return what the close code of a WebSocket says as the API says it in an answer; itself if it says no more.

    >>> type(from_close(ConnectionClosedError(4410))).__name__
    'SandboxEndedError'
    """
    known = _BY_CLOSE_CODE.get(error.code)
    if known is None:
        return error
    status, code = known
    detail = error.reason or f"the connection was closed with {error.code}"
    return from_problem(status, {"code": code, "detail": detail, "retryable": status in RETRYABLE_STATUSES})


def sandbox_ended(sandbox_id: str, state: str, reason: str | None, message: str | None) -> SandboxEndedError:
    """Return the error for a sandbox that was seen to have ended, as the API would say it of the next call."""
    detail = f"sandbox {sandbox_id} is {state}" + (f": {message}" if message else "")
    problem = {"code": "sandbox_ended", "detail": detail, "reason": reason, "state": state, "sandbox_id": sandbox_id}
    return SandboxEndedError(410, problem)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
