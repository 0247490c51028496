"""What the API would refuse: calls that are not in its document, and fields that their calls do not have."""

import re
from functools import cache

from sandlot.operations import OPERATIONS, Operation
from stub_wire import Request

# Calls of the reference that the document does not have yet: the names they take.
_PLANNED: dict[tuple[str, str], set[str]] = {
    ("POST", "tokens"): {"scopes", "expires_in_seconds", "port", "path", "identity"},
}

# Fields of a create that the reference has and this version of the server has not.
_PLANNED_FIELDS = {
    "snapshot",
    "secret_env",
    "auto_resume",
    "tunnels",
}


@cache
def _operations() -> list[tuple[re.Pattern[str], str, Operation]]:
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", one.path)), name, one) for name, one in OPERATIONS.items()]


def violations(request: Request) -> list[str]:
    """Return what is wrong with a request, in words; nothing for one the API would take."""
    for pattern, name, operation in _operations():
        if operation.method == request.method and pattern.fullmatch(request.raw_path):
            return _against(name, operation, request)
    tail = request.raw_path.split("/", 4)[-1].split("/")
    for name in ("/".join(tail), tail[-1]):
        allowed = _PLANNED.get((request.method, name))
        if allowed is not None:
            return _unknown({*request.query, *_fields(request)} - allowed, name)
    return [f"there is no {request.method} {request.path}"]


def _against(name: str, operation: Operation, request: Request) -> list[str]:
    asked = {one for one in request.query if not one.startswith("metadata.")}
    wrong = _unknown(asked - set(operation.query), name)
    if operation.body:
        fields = _fields(request)
        wrong += _unknown(fields - set(operation.body) - _PLANNED_FIELDS, name)
        wrong += [f"{one} is missing" for one in operation.required if one not in fields]
    return wrong


def _fields(request: Request) -> set[str]:
    if request.headers.get("content-type") != "application/json" or not request.body:
        return set()
    return set(request.json)


def _unknown(names: set[str], call: str) -> list[str]:
    return [f"{call} takes no {name!r}" for name in sorted(names)]
