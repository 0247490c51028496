# Derived from _async by unasync.py: change it there.
"""The connection to an API: sends requests, tries again what may be tried again, raises typed errors.

Knows nothing of sandboxes; `sandbox` and `process` build their calls on it.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx

from sandlot import settings
from sandlot._clock import sleep
from sandlot._requests import Request, error_from, is_success, json_from
from sandlot._version import __version__
from sandlot.errors import ApiError, UnreachableError
from sandlot.retries import Patience, RetryPolicy


class Client:
    """A connection pool to one API with one key. May be shared by any number of sandboxes and tasks.

    `url` and `api_key` default to `SANDLOT_URL` and `SANDLOT_API_KEY`, then to the configuration file. `http` is for
    special transports; it is not closed with the client.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: RetryPolicy | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self.settings = settings.load(url, api_key)
        self.retries = retries or RetryPolicy()
        self._own_http = http is None
        # Every stream holds a connection, so a limit on connections would be a limit on processes.
        self._http = http or httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=20))
        self._headers = {
            "Authorization": f"Bearer {self.settings.api_key}",
            "User-Agent": f"sandlot-python/{__version__}",
        }

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Nothing on the server ends by it."""
        if self._own_http:
            self._http.close()

    def me(self) -> dict[str, Any]:
        """Return who the key belongs to, and the limits of this server."""
        return self.call(Request("GET", "/v1/me"))

    def call(self, request: Request) -> Any:
        """Return the JSON of a successful answer, None if it has no body.

        Raises ApiError when the API says no, UnreachableError when no whole answer came, ProtocolError when the
        answer is not of a Sandlot API; each only after what was safe to try again has been.
        """
        patience = Patience(self.retries)
        while True:
            try:
                return self._attempt(request)
            except (ApiError, UnreachableError) as error:
                delay = patience.next_delay(error, repeatable=request.repeatable)
                if delay is None:
                    raise
            sleep(delay)

    @contextmanager
    def stream(self, request: Request) -> Generator[httpx.Response, None]:
        """Open a streamed answer, once: who reads it knows from where to go on.

        Raises ApiError, or UnreachableError also while the answer is read inside the block.
        """
        try:
            with self._open(request) as response:
                if not is_success(response.status_code):
                    body = response.read()
                    raise error_from(response.status_code, response.headers, body)
                yield response
        except httpx.TransportError as error:
            raise _unreachable(error, alive=False) from error

    def _attempt(self, request: Request) -> Any:
        alive = False
        parts: list[bytes] = []
        try:
            with self._open(request) as response:
                for part in response.iter_bytes():
                    parts.append(part)
                    # A server at work on a long answer sends a space now and then before the body.
                    alive = part.isspace() if len(parts) == 1 else alive and part.isspace()
        except httpx.TransportError as error:
            raise _unreachable(error, alive=alive) from error
        body = b"".join(parts)
        if not is_success(response.status_code):
            raise error_from(response.status_code, response.headers, body)
        return json_from(body)

    def _open(self, request: Request) -> AbstractContextManager[httpx.Response]:
        return self._http.stream(
            request.method,
            self.settings.url + request.path,
            params=request.query,
            headers=self._headers | request.headers(),
            content=request.payload(),
            timeout=request.timeout(),
            follow_redirects=False,
        )


def _unreachable(error: httpx.TransportError, *, alive: bool) -> UnreachableError:
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    what = str(error) or type(error).__name__
    if not sent:
        return UnreachableError(
            f"cannot connect: {what}", sent=False, hint="Check SANDLOT_URL and that the server is up."
        )
    return UnreachableError(f"the connection broke: {what}", alive=alive)
