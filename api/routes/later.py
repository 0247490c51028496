"""Calls of later versions: known by path, answered `not_implemented` with the name of the feature."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Response

from api.errors import NotImplementedProblem
from api.routes.calls import Call, authenticated

router = APIRouter()

_BELOW_SANDBOX: Final = (
    "access",
    "events",
    "fork",
    "pause",
    "resume",
    "snapshot",
)
_COLLECTIONS: Final = (
    "audit",
    "events",
    "keys",
    "nodes",
    "prices",
    "projects",
    "quotas",
    "snapshots",
    "usage",
    "webhooks",
)
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def _answer(feature: str) -> Any:
    async def refuse(_: Annotated[Call, Depends(authenticated)]) -> Response:
        raise NotImplementedProblem(feature)

    return refuse


def _add(path: str, feature: str, methods: list[str]) -> None:
    router.add_api_route(
        path, _answer(feature), methods=methods, include_in_schema=False, response_class=Response, response_model=None
    )


for _name in _BELOW_SANDBOX:
    _add("/v1/sandboxes/{sandbox_id}/" + _name, _name, _METHODS)
    _add("/v1/sandboxes/{sandbox_id}/" + _name + "/{rest:path}", _name, _METHODS)
for _name in _COLLECTIONS:
    _add(f"/v1/{_name}", _name, _METHODS)
    _add(f"/v1/{_name}/{{rest:path}}", _name, _METHODS)
