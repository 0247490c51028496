"""How the node answers: JSON, problems, and which representation a caller asked for."""

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from aiohttp import web
from pydantic import BaseModel
from pydantic_core import to_json

from sandboxd.contract.ids import is_id, new_id
from sandboxd.contract.problems import MEDIA_TYPE, ProblemError

REQUEST_ID_HEADER: Final = "Sandlot-Request-Id"
_HTTP_CODES: Final = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}
_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_answer(value: BaseModel | dict[str, Any], status: int = 200) -> web.Response:
    """Render a model or an object."""
    return web.Response(status=status, body=json_bytes(value), content_type="application/json")


def json_bytes(value: BaseModel | dict[str, Any]) -> bytes:
    """Render a model or an object as JSON in UTF-8."""
    return value.__pydantic_serializer__.to_json(value) if isinstance(value, BaseModel) else to_json(value)


_CLIENT_GONE: Final = 499


def request_id(request: web.Request) -> str:
    """Return the id the api gave this request, or a fresh one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if is_id("req", given) else new_id("req", os.urandom)


def problem_answer(error: ProblemError, request: web.Request) -> web.Response:
    """Render a problem."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    body = to_json(error.body(request_id(request), request.headers.get("traceparent", "")))
    return web.Response(status=error.status, body=body, content_type=MEDIA_TYPE, headers=headers)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem. What is raised after an answer began breaks the connection."""
    try:
        return await handler(request)
    except ProblemError as error:
        return problem_answer(error, request)
    except web.HTTPException as error:
        code = _HTTP_CODES.get(error.status, "malformed_request")
        answer = problem_answer(ProblemError(code, f"{request.method} {request.path[:200]}: {error.reason}"), request)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionError:
        # The client has gone: nothing to say, and nobody to say it to. Raised on, the server would log it as a fault.
        return web.Response(status=_CLIENT_GONE)
    except Exception:  # noqa: BLE001 - the last resort: logged, and answered as a fault of ours
        _log.exception("request failed", method=request.method, path=request.path)
        return problem_answer(ProblemError("internal", "This is a fault of the service."), request)


def negotiate(request: web.Request, offers: Sequence[str]) -> str:
    """Return the offer a caller's `Accept` likes best, the first of equals; `not_acceptable` if none."""
    accept = ",".join(request.headers.getall("Accept", []))
    if not accept.strip():
        return offers[0]
    ranges = [_media_range(part) for part in accept.split(",")[:64]]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise ProblemError("not_acceptable", "None of the types in Accept is available.", available=list(offers))
    return best


def _media_range(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                quality = 0.0
    return media, quality if 0 <= quality <= 1 else 0.0


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    kind = offer.split("/", 1)[0]
    for pattern in (offer, f"{kind}/*", "*/*"):
        found = [quality for media, quality in ranges if media == pattern]
        if found:
            return max(found)
    return 0.0
