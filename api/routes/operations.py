"""How operations are described in the OpenAPI document: bodies, parameters, answers and every expected error."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, cast

from fastapi import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sandboxd.contract.problems import CODES, MEDIA_TYPE
from sandboxd.contract.processes import Open

Mode = Literal["validation", "serialization"]
Schema = dict[str, Any]
_PLACEHOLDER: Final = "#/models/"
_used: dict[str, tuple[type[BaseModel], Mode]] = {}

_ALWAYS: Final = ("malformed_request", "unauthenticated", "scope_required", "project_not_found", "invalid_request")
_ALWAYS_LAST: Final = ("internal", "not_implemented", "store_unavailable", "shutting_down")
SANDBOX_HEADERS: Final[Schema] = {"ETag": {"schema": {"type": "string"}, "description": "The generation, quoted."}}


class FieldError(Open):
    """One thing that is wrong with a request: `path` is a JSON pointer, `query:name` or `header:name`."""

    path: str
    code: str
    message: str


class Problem(Open):
    """An error (RFC 9457). Codes may add members of their own."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    reason: str | None
    hint: str | None
    retryable: bool
    request_id: str
    retry_after_seconds: float | None = None
    trace_id: str | None = None
    errors: list[FieldError] | None = None


def model(of: type[BaseModel], mode: Mode = "serialization") -> Schema:
    """Return a reference to a model's schema, resolved when the document is made."""
    name = f"{mode}:{of.__module__}.{of.__qualname__}"
    _used[name] = (of, mode)
    return {"$ref": _PLACEHOLDER + name}


def json_of(of: type[BaseModel]) -> Schema:
    """Return the content of a JSON answer."""
    return {"application/json": {"schema": model(of)}}


def query(name: str, schema: Schema, description: str = "") -> Schema:
    """Return a query parameter."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def header(name: str, schema: Schema, description: str = "") -> Schema:
    """Return a header parameter."""
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


IDEMPOTENCY: Final = header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!-~]([ -~]*[!-~])?$"},
    "A repeat within 24 hours answers the first one's result.",
)
IF_MATCH: Final = header("If-Match", {"type": "string"}, "Refuse with 412 unless the ETag is one of these.")
WAIT: Final = query("wait_seconds", {"type": "number", "minimum": 0, "maximum": 60, "default": 0})


def problems(codes: Iterable[str]) -> dict[int | str, Schema]:
    """Return the answers of error codes, by status."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code].status, []).append(code)
    content = {MEDIA_TYPE: {"schema": model(Problem)}}
    return {
        status: {"description": ", ".join(f"`{code}`" for code in names), "content": content}
        for status, names in sorted(by_status.items(), key=lambda item: int(item[0]))
    }


def operation(
    *,
    answers: Mapping[int, tuple[str, Schema | None]],
    codes: Iterable[str] = (),
    body: Schema | None = None,
    parameters: Iterable[Schema] = (),
    headers: Schema | None = None,
    tags: Iterable[str] = (),
    public: bool = False,
) -> dict[str, Any]:
    """Return the arguments of a route decorator: `answers` maps a status to its description and content."""
    responses: dict[int | str, Schema] = {}
    for status, (description, content) in answers.items():
        responses[status] = {"description": description}
        if content is not None:
            responses[status]["content"] = content
        if headers is not None:
            responses[status]["headers"] = headers
    always = (() if public else _ALWAYS, codes, () if public else _ALWAYS_LAST)
    merged = responses | problems(code for group in always for code in group)
    extra: Schema = {"parameters": list(parameters)}
    extra["security"] = [] if public else [{"bearer": []}, {"api_key": []}]
    if body is not None:
        extra["requestBody"] = body
    return {
        "responses": {status: merged[status] for status in sorted(merged, key=int)},
        "status_code": next(iter(answers)),
        "response_class": Response,
        "response_model": None,
        "openapi_extra": extra,
        "tags": list(tags),
    }


def json_body(of: type[BaseModel], *kinds: str) -> Schema:
    """Return a request body."""
    required = any(field.is_required() for field in of.model_fields.values())
    schema = {"schema": model(of, "validation")}
    return {"required": required, "content": dict.fromkeys(kinds or ("application/json",), schema)}


def bytes_body() -> Schema:
    """Return a raw request body."""
    return {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }


def complete(document: Schema) -> Schema:
    """Fill in the models that operations refer to, and the ways to authenticate."""
    references, definitions = models_json_schema(
        list(dict.fromkeys(_used.values())), ref_template="#/components/schemas/{model}"
    )
    resolved = {_PLACEHOLDER + name: references[key]["$ref"] for name, key in _used.items()}
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted(definitions.get("$defs", {}).items()))
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    }
    return _resolve(document, resolved)


def _resolve(value: Any, references: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        return {
            key: references.get(part, part) if key == "$ref" else _resolve(part, references)
            for key, part in mapping.items()
        }
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        return [_resolve(part, references) for part in parts]
    return value
