"""Secrets that images are made with: their names are recorded, their values go to the node with the job."""

from typing import Any, Final, cast

from api.services import secrets
from api.services.identity import Caller
from api.services.image_requests import ImageSpec
from api.services.platform import Platform
from api.store.image_tables import Image
from sandboxd.contract.images import MAX_PASSWORD, RegistrySource, StartImageJob
from sandboxd.contract.references import parse
from sandboxd.contract.validation import invalid_field

_NAME: Final = "password_secret"
_AT: Final = "/registry/password_secret"


def stored(source: RegistrySource, password_secret: str | None) -> dict[str, Any]:
    """Return what is recorded of a registry's image: the password by the name of its secret."""
    kept = source.model_dump(mode="json", exclude={"password"})
    return kept if password_secret is None else kept | {_NAME: password_secret}


async def require(platform: Platform, caller: Caller, spec: ImageSpec, source: dict[str, Any]) -> None:
    """Raise where the caller may not have an image made with these secrets."""
    if spec.build is not None:
        await secrets.env_values(platform, caller, spec.build.secret_env, ("build", "secret_env"))
    if _NAME in source:
        caller.require("secrets", write=False)
        await _password(platform, caller.project_id, source)


async def asked_of(platform: Platform, image: Image) -> StartImageJob:
    """Return what a node is asked for, with values. ProblemError where a secret is gone or may not be used any more."""
    source = dict(image.source)
    if _NAME in source:
        password = await _password(platform, image.project_id, source)
        source = {name: value for name, value in source.items() if name != _NAME} | {"password": password}
    if image.kind == "build":
        build = cast("dict[str, Any]", source["build"])
        values = await secrets.stored_env(platform, image.project_id, build.get("secret_env") or {})
        source["build"] = build | {"secret_env": values}
    body = {"project_id": image.project_id, "source": {image.kind: source}, "config": image.overrides}
    return StartImageJob.model_validate(body, by_alias=True)


async def _password(platform: Platform, project_id: str, source: dict[str, Any]) -> str:
    host = parse(source["reference"]).registry.partition(":")[0]
    password = await secrets.value_for_host(platform, project_id, source[_NAME], host.lower(), _AT)
    if len(password) > MAX_PASSWORD:
        raise invalid_field(_AT, "too_long", f"a password has at most {MAX_PASSWORD} characters")
    return password
