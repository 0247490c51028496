"""Answers of the gateway itself, and headers that go with every one."""

import base64
import os
from typing import Final

from aiohttp import web

from tunnels.problems import ERROR_HEADER, MEDIA_TYPE, Refusal

REQUEST_ID: Final = "Sandlot-Request-Id"
_ID_BYTES: Final = 13
_PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": (
        "ETag, Retry-After, RateLimit, RateLimit-Policy, Sandlot-Request-Id, Sandlot-Error, Idempotency-Replayed"
    ),
}
"""Of calls of the data plane: they take no cookies, so any page may make them."""
PREFLIGHT: Final = {
    **CORS,
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, X-API-Key, Content-Type, Accept, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, "
        "Range, Sandlot-Project, Sandlot-Token, traceparent, tracestate"
    ),
    "Access-Control-Max-Age": "86400",
}


def new_request_id() -> str:
    """Draw an id as the api gives each request."""
    return "req" + base64.b32encode(os.urandom(_ID_BYTES)).decode().lower()[:20]


def refuse(refusal: Refusal, *, as_page: bool, cors: bool = False) -> web.Response:
    """Render a problem, for a program or a person."""
    headers = {
        ERROR_HEADER: refusal.code,
        REQUEST_ID: str(refusal.body.get("request_id", "")),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Content-Type": "text/html; charset=utf-8" if as_page else MEDIA_TYPE,
    } | (CORS if cors else {})
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if as_page:
        headers["Content-Security-Policy"] = _PAGE_POLICY
    retry = refusal.body.get("retry_after_seconds")
    if isinstance(retry, int | float):
        headers["Retry-After"] = str(max(1, round(retry)))
    body = refusal.as_page() if as_page else refusal.as_json()
    return web.Response(status=refusal.status, body=body, headers=headers)
