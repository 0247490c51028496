"""The outermost layer of every answer: request id, CORS, counting, and a problem for what nobody foresaw."""

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.routes.answers import problem_answer
from api.routes.passage import SWITCH
from api.services.metrics import Metrics
from sandboxd.contract.ids import RandomBytes, new_id
from sandboxd.contract.problems import ProblemError

_log = structlog.get_logger()
_EXPOSED: Final = (
    "ETag, Retry-After, RateLimit, RateLimit-Policy, Sandlot-Request-Id, Sandlot-Error, Idempotency-Replayed"
)
_PREFLIGHT: Final = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (
        b"access-control-allow-headers",
        (
            b"Authorization, X-API-Key, Content-Type, Accept, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, "
            b"Range, Sandlot-Project, Sandlot-Token, traceparent, tracestate"
        ),
    ),
    (b"access-control-max-age", b"86400"),
]
_ALWAYS: Final = [
    (b"cache-control", b"no-store"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", _EXPOSED.encode()),
]
_REPLACED: Final = frozenset(
    {b"sandlot-request-id", b"cache-control", b"access-control-allow-origin", b"access-control-expose-headers"}
)
_MEASURE: Final = time.perf_counter


class Edge:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, metrics: Metrics, random_bytes: RandomBytes) -> None:
        self._app = app
        self._metrics = metrics
        self._random_bytes = random_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req", self._random_bytes)
        scope["sandlot.request_id"] = request_id
        answer = _Answer(send, [*_ALWAYS, (b"sandlot-request-id", request_id.encode())], self._observe(scope))
        if scope["method"] == "OPTIONS" and _is_preflight(scope):
            await answer({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
            await answer({"type": "http.response.body", "body": b""})
            return
        try:
            await self._app(scope, receive, answer)
        except Exception:  # noqa: BLE001 - the last resort: logged here, and answered as a fault of ours
            _log.exception("request failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if not answer.begun:
                problem = ProblemError("internal", "This is a fault of the service.")
                await problem_answer(Request(scope), problem)(scope, receive, answer)

    def _observe(self, scope: Scope) -> Callable[[int], None]:
        started = _MEASURE()

        def observe(status: int) -> None:
            endpoint: Any = scope.get("endpoint")
            operation = getattr(endpoint, "__name__", "none")
            self._metrics.requests.labels(operation, status).inc()
            self._metrics.request_seconds.labels(operation).observe(_MEASURE() - started)

        return observe


class _Answer:
    """A `send` that adds headers to the start of an answer."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], observe: Callable[[int], None]) -> None:
        self._send = send
        self._headers = headers
        self._observe = observe
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == SWITCH:
            self.begun = True
            self._observe(message["status"])
            return
        if message["type"] == "http.response.start":
            self.begun = True
            own = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _REPLACED]
            message = {**message, "headers": [*own, *self._headers]}
            self._observe(message["status"])
        await self._send(message)


def _is_preflight(scope: Scope) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])
