"""The connection to an API: sends requests, tries again what may be tried again, raises typed errors.

Knows nothing of sandboxes; `sandbox` and `process` build their calls on it.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from sandlot import settings
from sandlot._access import NodeAccess, Target
from sandlot._async.images import AsyncImages
from sandlot._async.secrets import AsyncSecrets
from sandlot._async.websocket import AsyncWebSocket
from sandlot._clock import async_sleep
from sandlot._messages import Handshake, Messages
from sandlot._requests import Request, connect_hint, error_from, innermost, is_success, json_from
from sandlot._version import __version__
from sandlot.errors import ApiError, NotFoundError, ProtocolError, SandlotError, UnreachableError
from sandlot.ids import new_idempotency_key
from sandlot.models import as_object
from sandlot.retries import Patience, RetryPolicy

_SWITCHING_PROTOCOLS: Final = 101
_CREATED: Final = 201


class AsyncClient:
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
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.settings = settings.load(url, api_key)
        self.retries = retries or RetryPolicy()
        self._own_http = http is None
        # Every stream holds a connection, so a limit on connections would be a limit on processes.
        self._http = http or httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=20))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Nothing on the server ends by it."""
        if self._own_http:
            await self._http.aclose()

    @property
    def images(self) -> AsyncImages:
        """The images of the key's project."""
        return AsyncImages(self)

    @property
    def secrets(self) -> AsyncSecrets:
        """The secrets of the key's project."""
        return AsyncSecrets(self)

    async def me(self) -> dict[str, Any]:
        """Return who the key belongs to, and the limits of this server."""
        return await self.call(Request("GET", "/v1/me"))

    async def call(self, request: Request, access: NodeAccess | None = None) -> Any:
        """Return the JSON of a successful answer, None if it has no body.

        With `access` the sandbox's node is asked first, the api when that fails. Raises ApiError when the API says no,
        UnreachableError when no whole answer came, ProtocolError when the answer is not of a Sandlot API; each only
        after what was safe to try again has been.
        """
        answer, _ = await self._call(request, access)
        return answer

    async def _call(self, request: Request, access: NodeAccess | None) -> tuple[Any, bool]:
        patience = Patience(self.retries)
        lost = False
        while True:
            node = await self._node(access)
            try:
                return await self._attempt(request, node, patience.left_seconds())
            except (ApiError, UnreachableError) as error:
                sent = isinstance(error, UnreachableError) and error.sent
                if lost and request.absence_is_success and isinstance(error, NotFoundError):
                    return None, False
                lost = lost or sent
                if self._goes_round(node, access, error) and (request.repeatable or not sent):
                    continue
                delay = patience.next_delay(error, repeatable=request.repeatable)
                if delay is None:
                    raise
            await async_sleep(delay)

    async def create(self, request: Request) -> tuple[Any, bool]:
        """Do the same for a call that makes something, and tell whether it was made, not found."""
        return await self._call(request, None)

    @asynccontextmanager
    async def stream(self, request: Request, access: NodeAccess | None = None) -> AsyncGenerator[httpx.Response, None]:
        """Open a streamed answer, once: who reads it knows from where to go on.

        Raises ApiError, or UnreachableError also while the answer is read inside the block.
        """
        while True:
            node = await self._node(access)
            given = False
            try:
                async with self._open(request, node) as response:
                    if not is_success(response.status_code):
                        body = await response.aread()
                        raise error_from(response.status_code, response.headers, body)
                    given = True
                    yield response
                    return
            except httpx.TransportError as broken:
                error = _unreachable(broken, alive=False)
                if not self._goes_round(node, access, error) or given:
                    raise error from broken
            except ApiError as refused:
                if given or not self._goes_round(node, access, refused):
                    raise

    async def socket(self, request: Request, subprotocol: str, access: NodeAccess | None = None) -> AsyncWebSocket:
        """Open a WebSocket, once. Raises ApiError when it is refused, UnreachableError when nobody answers."""
        while True:
            node = await self._node(access)
            try:
                return await self._upgrade(request, Handshake(subprotocol), node)
            except (ApiError, UnreachableError) as error:
                if not self._goes_round(node, access, error):
                    raise

    async def _upgrade(self, request: Request, handshake: Handshake, node: Target | None) -> AsyncWebSocket:
        try:
            response = await self._http.send(self._build(request, node, handshake.headers()), stream=True)
            try:
                if response.status_code != _SWITCHING_PROTOCOLS:
                    raise _no_socket(response, await response.aread())  # noqa: TRY301 - the response is closed below
                handshake.check(response.headers)
            except BaseException:
                await response.aclose()
                raise
        except httpx.TransportError as error:
            raise _unreachable(error, alive=False) from error
        return AsyncWebSocket(response, Messages())

    async def _node(self, access: NodeAccess | None) -> Target | None:
        """Return the node to ask directly, its token fresh; None to ask the api."""
        now = time.time()
        if access is None or not access.is_open(now):
            return None
        if access.needs_token(now):
            request = Request(
                "POST",
                f"/v1/sandboxes/{access.sandbox_id}/tokens",
                body={"scopes": access.scopes},
                idempotency_key=new_idempotency_key(),
            )
            try:
                access.renew(as_object(await self.call(request)))
            except (ApiError, ProtocolError):
                access.close()
            except UnreachableError:
                return None
            if not access.is_open(now):
                return None
        return access.target

    def _goes_round(self, node: Target | None, access: NodeAccess | None, error: SandlotError) -> bool:
        """Tell whether the node failed us in a way that the api does not share."""
        return node is not None and access is not None and access.turns_back(error, time.time())

    async def _attempt(self, request: Request, node: Target | None, left_seconds: float | None) -> tuple[Any, bool]:
        alive = False
        parts: list[bytes] = []
        try:
            async with self._open(request, node, left_seconds) as response:
                async for part in response.aiter_bytes():
                    parts.append(part)
                    # A server at work on a long answer sends a space now and then before the body.
                    alive = part.isspace() if len(parts) == 1 else alive and part.isspace()
        except httpx.TransportError as error:
            raise _unreachable(error, alive=alive) from error
        body = b"".join(parts)
        if not is_success(response.status_code):
            raise error_from(response.status_code, response.headers, body)
        return json_from(body), response.status_code == _CREATED

    @asynccontextmanager
    async def _open(
        self, request: Request, node: Target | None, left_seconds: float | None = None
    ) -> AsyncGenerator[httpx.Response, None]:
        response = await self._http.send(self._build(request, node, {}, left_seconds), stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    def _build(
        self, request: Request, node: Target | None, headers: dict[str, str], left_seconds: float | None = None
    ) -> httpx.Request:
        target = node or Target(self.settings.url, self.settings.api_key)
        own = {"Authorization": f"Bearer {target.token}", "User-Agent": f"sandlot-python/{__version__}"}
        return self._http.build_request(
            request.method,
            target.url + request.path,
            params=request.query,
            headers=own | request.headers() | headers,
            content=request.payload(),
            timeout=request.timeout(left_seconds),
        )


def _no_socket(response: httpx.Response, body: bytes) -> SandlotError:
    if is_success(response.status_code):
        return ProtocolError("the answer to a WebSocket handshake is not one", hint="Let the proxy pass WebSockets.")
    return error_from(response.status_code, response.headers, body)


def _unreachable(error: httpx.TransportError, *, alive: bool) -> UnreachableError:
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    what = innermost(error)
    if not sent:
        return UnreachableError(f"cannot connect: {what}", sent=False, hint=connect_hint(what))
    return UnreachableError(f"the connection broke: {what}", alive=alive)
