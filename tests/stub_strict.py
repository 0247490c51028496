"""What the API would refuse: calls that are not in its document, and fields that their calls do not have."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from stub_wire import Request

_DOCUMENT = Path(__file__).resolve().parents[1] / "openapi" / "api.json"
_FILE = {"path", "path_base64", "user"}
# Calls of the reference that the document does not have yet: the names they take.
_PLANNED: dict[tuple[str, str], set[str]] = {
    ("GET", "files"): _FILE,
    ("PUT", "files"): _FILE | {"mode", "parents", "append"},
    ("PATCH", "files"): _FILE | {"mode", "owner", "group", "modified_at", "recursive"},
    ("DELETE", "files"): _FILE | {"recursive", "missing_ok"},
    ("GET", "files/stat"): _FILE | {"follow"},
    ("POST", "files/move"): {"from", "to", "overwrite", "user"},
    ("GET", "directories"): _FILE | {"depth", "limit", "cursor"},
    ("PUT", "directories"): _FILE | {"mode", "parents"},
    ("GET", "archive"): _FILE | {"format", "exclude"},
    ("PUT", "archive"): _FILE | {"format", "strip_components", "overwrite"},
    ("GET", "watch"): _FILE | {"recursive"},
    ("GET", "ports"): {"port", "wait_seconds"},
    ("GET", "dial"): {"port"},
    ("GET", "logs"): {"after", "process_id", "follow"},
    ("GET", "metrics"): {"start", "end", "step_seconds"},
    ("POST", "tokens"): {"scopes", "expires_in_seconds", "port", "path", "identity"},
    ("GET", "attach"): {"after", "tail_bytes"},
}


@cache
def _operations() -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
    document = json.loads(_DOCUMENT.read_text())
    found: list[tuple[str, re.Pattern[str], dict[str, Any]]] = []
    for path, methods in document["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        found += [(method.upper(), pattern, operation) for method, operation in methods.items()]
    return found


@cache
def _schemas() -> dict[str, Any]:
    return json.loads(_DOCUMENT.read_text())["components"]["schemas"]


def violations(request: Request) -> list[str]:
    """Return what is wrong with a request, in words; nothing for one the API would take."""
    for method, pattern, operation in _operations():
        if method == request.method and pattern.fullmatch(request.raw_path):
            return _against(operation, request)
    tail = request.raw_path.split("/", 4)[-1].split("/")
    for name in ("/".join(tail), tail[-1]):
        allowed = _PLANNED.get((request.method, name))
        if allowed is not None:
            return _unknown({*request.query, *_fields(request)} - allowed, name)
    return [f"there is no {request.method} {request.path}"]


def _against(operation: dict[str, Any], request: Request) -> list[str]:
    known = {one["name"] for one in operation.get("parameters", []) if one["in"] == "query"}
    asked = {name for name in request.query if not name.startswith("metadata.")}
    wrong = _unknown(asked - known, operation["operationId"])
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        schema = _schemas()[body["schema"]["$ref"].rpartition("/")[2]]
        fields = _fields(request)
        wrong += _unknown(fields - set(schema["properties"]), operation["operationId"])
        wrong += [f"{name} is missing" for name in schema.get("required", []) if name not in fields]
    return wrong


def _fields(request: Request) -> set[str]:
    if request.headers.get("content-type") != "application/json" or not request.body:
        return set()
    return set(request.json)


def _unknown(names: set[str], call: str) -> list[str]:
    return [f"{call} takes no {name!r}" for name in sorted(names)]
