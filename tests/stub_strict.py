"""What the API would refuse: calls that are not in its document, and fields that their calls do not have."""

import re
from functools import cache

from sandlot.operations import OPERATIONS, Operation
from stub_wire import Request

# Fields of a create that the reference has and this version of the server has not.
_PLANNED_FIELDS = {
    "snapshot",
    "auto_resume",
}


@cache
def _operations() -> list[tuple[re.Pattern[str], str, Operation]]:
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", one.path)), name, one) for name, one in OPERATIONS.items()]


def violations(request: Request) -> list[str]:
    """Return what is wrong with a request, in words; nothing for one the API would take."""
    for pattern, name, operation in _operations():
        if operation.method == request.method and pattern.fullmatch(request.raw_path):
            return _against(name, operation, request)
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
