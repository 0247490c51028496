"""One request of the API as data: what it is, whether it may be repeated, how long it may be silent."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from sandlot.errors import ApiError, ProtocolError, from_foreign, from_problem
from sandlot.models import as_object

KEEPALIVE_SECONDS: Final = 15
SILENCE_SECONDS: Final = 3.0 * KEEPALIVE_SECONDS
"""The server says something at least every 15 s on a connection it is at work on; three missed ones are a break."""
CONNECT_SECONDS: Final = 10.0
_EXCERPT_CHARACTERS: Final = 200


@dataclass(frozen=True)
class Request:
    """A call. Everything a retry needs to send the very same one again."""

    method: str
    path: str
    query: Mapping[str, str | int | float | bool | list[str]] = field(default_factory=dict[str, Any])
    body: Any = None
    """Sent as JSON unless None."""
    content: bytes | Callable[[], Any] | None = None
    """Sent raw: bytes, or what makes a fresh stream of them for each try."""
    content_bytes: int | None = None
    """How many bytes such a stream has, where that is known: then a cut is seen by the server."""
    content_type: str = "application/octet-stream"
    more_headers: Mapping[str, str] = field(default_factory=dict[str, str])
    accept: str = "application/json"
    idempotency_key: str | None = None
    repeatable: bool = True
    """Sending it twice has the effect of sending it once."""
    absence_is_success: bool = False
    """After a lost answer, "not found" says that the lost one was a success."""
    silence_seconds: float = SILENCE_SECONDS

    def headers(self) -> dict[str, str]:
        # Positions count bytes as they were written, so nobody on the way shall pack them.
        headers = {"Accept": self.accept, "Accept-Encoding": "identity"}
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        if self.content is not None:
            headers["Content-Type"] = self.content_type
            if self.content_bytes is not None:
                headers["Content-Length"] = str(self.content_bytes)
        elif self.body is not None:
            headers["Content-Type"] = "application/json"
        return headers | dict(self.more_headers)

    def payload(self) -> Any:
        """Return the body to send: bytes, or an iterator in the caller's colour."""
        if self.content is not None:
            return self.content() if callable(self.content) else self.content
        return None if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()

    def timeout(self, left_seconds: float | None = None) -> httpx.Timeout:
        """Return how long a connection may be silent, and no longer than is left of the caller's time."""
        left = float("inf") if left_seconds is None else max(left_seconds, 0.001)
        return httpx.Timeout(min(self.silence_seconds, left), connect=min(CONNECT_SECONDS, left), pool=None)


def connect_hint(what: str) -> str:
    """Return what to try when no connection came about.

    >>> connect_hint("[SSL: WRONG_VERSION_NUMBER] wrong version number")
    'The server does not speak TLS there: try http:// in SANDLOT_URL.'
    """
    if "CERTIFICATE_VERIFY_FAILED" in what:
        return "Its certificate is not trusted here: set SSL_CERT_FILE to that of its authority."
    if "WRONG_VERSION_NUMBER" in what:
        return "The server does not speak TLS there: try http:// in SANDLOT_URL."
    if "Name or service not known" in what or "nodename nor servname" in what or "getaddrinfo" in what:
        return "The host name of SANDLOT_URL is not known here: check its spelling."
    return "Check SANDLOT_URL and that the server is up."


def innermost(error: BaseException) -> str:
    """Return what an error says, or the one that caused it: some layers above say nothing."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said = said or str(cause)
        if "SSL" in str(cause) or "CERTIFICATE" in str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return said or type(error).__name__


def is_success(status: int) -> bool:
    return httpx.codes.is_success(status)


def error_from(status: int, headers: httpx.Headers, body: bytes) -> ApiError | ProtocolError:
    """Return the error for an answer that is no success."""
    if httpx.codes.is_redirect(status):
        return ProtocolError(
            f"redirected to {headers.get('location', 'nowhere')}", hint="Use the URL that answers without a redirect."
        )
    error = _problem(status, body) or from_foreign(status, body.decode(errors="replace").strip()[:_EXCERPT_CHARACTERS])
    if error.retry_after_seconds is None:
        error.retry_after_seconds = _retry_after(headers.get("retry-after"))
    if error.request_id is None:
        error.request_id = headers.get("sandlot-request-id")
    return error


def json_from(body: bytes) -> Any:
    """Read the JSON of a successful answer; spaces before it were signs of life."""
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise ProtocolError("the answer is not JSON", hint="Check that the URL is that of a Sandlot API.") from error


def _problem(status: int, body: bytes) -> ApiError | None:
    try:
        problem = as_object(json.loads(body))
    except (ValueError, ProtocolError):
        return None
    return from_problem(status, problem) if isinstance(problem.get("code"), str) else None


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        # A date: rare, and not worth trusting this machine's clock. The usual pauses apply.
        return None
