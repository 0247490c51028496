"""Secrets: written by callers, shown to nobody."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Response

from api.routes.answers import json_answer
from api.routes.calls import Call, scoped
from api.routes.operations import json_body, json_of, operation, query
from api.services import secret_changes, secrets
from api.services.secret_requests import NAME, PutSecret, SecretList, SecretView
from api.store.secrets import secret_not_found
from sandboxd.contract.validation import invalid_field

router = APIRouter()

SecretPath = Annotated[str, Path(json_schema_extra={"pattern": f"^{NAME}$"})]
Read = Annotated[Call, Depends(scoped("secrets", write=False))]
Write = Annotated[Call, Depends(scoped("secrets", write=True))]
_TAGS: Final = ("secrets",)
_SECRET: Final = json_of(SecretView)


@router.put(
    "/v1/secrets/{secret_name}",
    **operation(
        answers={201: ("It is new.", _SECRET), 200: ("It was there before.", _SECRET)},
        codes=["operation_in_progress", "quota_exceeded", "body_too_large", "unsupported_media_type"],
        body=json_body(PutSecret),
        tags=_TAGS,
    ),
)
async def put_secret(call: Write, secret_name: SecretPath) -> Response:
    """Keep a value under a name, and say where it may go: by default nowhere. No call reads it back.

    Each change counts the version up; the same again changes nothing. Sandboxes whose policies inject it get the new
    value while they run; variables that were handed out stay as they were.
    """
    call.no_query()
    if re.fullmatch(NAME, secret_name) is None:
        raise invalid_field("path:secret_name", "pattern", "a letter or _, then up to 63 letters, digits, _ and -")
    body, _ = await call.body(PutSecret)
    row, created = await secret_changes.put(call.platform, call.caller, secret_name, body)
    return json_answer(secrets.view(row), 201 if created else 200)


@router.get(
    "/v1/secrets",
    **operation(
        answers={200: ("A page.", json_of(SecretList))},
        codes=["invalid_cursor"],
        parameters=[
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            query("cursor", {"type": "string"}, "`next_cursor` of the page before."),
        ],
        tags=_TAGS,
    ),
)
async def list_secrets(call: Read) -> Response:
    """List the project's secrets by name, without their values."""
    asked = call.query
    limit = asked.integer("limit", 100, 1, 1000)
    cursor = asked.text("cursor", NAME)
    asked.check()
    page = await secrets.list_page(call.platform, call.caller, after=cursor, limit=limit)
    items = [secrets.view(row) for row in page.items]
    return json_answer(SecretList.model_construct(items=items, next_cursor=page.next_cursor))


@router.get(
    "/v1/secrets/{secret_name}",
    **operation(answers={200: ("The secret.", _SECRET)}, codes=["secret_not_found"], tags=_TAGS),
)
async def get_secret(call: Read, secret_name: SecretPath) -> Response:
    """Say what is known of a secret: everything but its value."""
    call.no_query()
    return json_answer(secrets.view(await secrets.get(call.platform, call.caller, _checked(secret_name))))


@router.delete(
    "/v1/secrets/{secret_name}",
    **operation(answers={204: ("It is gone.", None)}, codes=["secret_not_found", "in_use"], tags=_TAGS),
)
async def delete_secret(call: Write, secret_name: SecretPath) -> Response:
    """Remove a secret. While a live sandbox was made with it, or its policy injects it, it is `in_use`."""
    call.no_query()
    await secrets.remove(call.platform, call.caller, _checked(secret_name))
    return Response(status_code=204)


def _checked(name: str) -> str:
    if re.fullmatch(NAME, name) is None:
        raise secret_not_found(name)
    return name
