"""What a gateway itself has to say when it does not pass a request on. Pure.

Codes, statuses and titles are those of the api; what the node answers is passed on with its own.
"""

import html
import json
from dataclasses import dataclass, field
from typing import Any, Final

MEDIA_TYPE: Final = "application/problem+json"
ERROR_HEADER: Final = "Sandlot-Error"
CODES: Final[dict[str, tuple[int, str, bool]]] = {
    "malformed_request": (400, "The request cannot be read", False),
    "unauthenticated": (401, "No valid credential", False),
    "sandbox_not_found": (404, "No such sandbox", False),
    "tunnel_not_found": (404, "No such tunnel", False),
    "route_not_found": (404, "No such route", False),
    "method_not_allowed": (405, "Method not allowed", False),
    "internal": (500, "Internal error", False),
    "port_not_listening": (502, "Nothing listens on the port", True),
    "node_unreachable": (503, "The sandbox's node is out of reach", True),
}
_HINTS: Final = {
    "malformed_request": "Correct the request; it is the same whenever it is sent.",
    "unauthenticated": "Get a token by POST /v1/sandboxes/{id}/tokens.",
    "sandbox_not_found": "List the sandboxes: GET /v1/sandboxes.",
    "tunnel_not_found": 'Open one: POST /v1/sandboxes/{id}/tunnels with {"port": N, "kind": "http"}.',
    "route_not_found": "Ask the api.",
    "method_not_allowed": "Use another method.",
    "internal": "Report it with the request id.",
    "port_not_listening": "Start a server on that port inside, or wait for it: GET /v1/sandboxes/{id}/ports.",
    "node_unreachable": "Send the same request again.",
}
_PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>body{{font:16px/1.5 sans-serif;max-width:40em;
margin:15vh auto;padding:0 1em}}code{{background:#eee}}</style><h1>{title}</h1><p>{detail}</p><p>{hint}</p>
<p><small><code>{status} {code}</code></small></p></html>"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One problem, as it is answered."""

    status: int
    code: str
    body: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, code: str, detail: str, request_id: str, *, reason: str | None = None) -> "Refusal":
        """Return one of our own."""
        status, title, retryable = CODES[code]
        body = {
            "type": f"/errors/{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
            "reason": reason,
            "hint": _HINTS[code],
            "retryable": retryable,
            "request_id": request_id,
        }
        return cls(status, code, body)

    @classmethod
    def passed_on(cls, body: dict[str, Any]) -> "Refusal":
        """Return the node's."""
        status, code = body.get("status"), body.get("code")
        return cls(status if isinstance(status, int) and 400 <= status < 600 else 502, str(code), body)

    def as_json(self) -> bytes:
        return json.dumps(self.body, separators=(",", ":")).encode()

    def as_page(self) -> bytes:
        """Return it for a person with a browser."""
        words = {name: html.escape(str(self.body.get(name) or "")) for name in ("title", "detail", "hint", "code")}
        return _PAGE.format(status=self.status, **words).encode()
