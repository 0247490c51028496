"""Making images: a promise in the database, one job on one node, followed until it is settled."""

from collections.abc import Mapping
from typing import Any, Final

import structlog
from pydantic import BaseModel

from api.errors import NotImplementedProblem
from api.services import idempotency, image_following, image_nodes, image_secrets
from api.services.identity import Caller
from api.services.image_requests import ImageSpec, split_tag
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.store import idempotency as key_store
from api.store import images as store
from api.store import sandboxes
from api.store.db import Connection
from api.store.idempotency import Claim, Key
from api.store.image_tables import Image
from sandboxd.contract.ids import new_id
from sandboxd.contract.images import (
    SETTLED,
    BuildSource,
    ImageOverrides,
    ImageState,
    RegistrySource,
)
from sandboxd.contract.messages import EgressSpec, ImageRef
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.references import InvalidReferenceError, Naming, Reference, parse
from sandboxd.contract.states import SandboxState
from sandboxd.contract.validation import invalid_field

_log = structlog.get_logger()
_KINDS_HERE: Final = frozenset({"registry", "archive"})


async def make(
    platform: Platform, caller: Caller, spec: ImageSpec, key: Key | None, bases: Mapping[str, ImageRef]
) -> tuple[Image, bool]:
    """Promise an image and begin it; returns it, and whether this was a replay. `bases`: what a build is from."""
    if feature := spec.later_feature():
        raise NotImplementedProblem(feature)
    if spec.visibility == "public":
        require_operator(caller)
    source, reference = _source(platform, caller, spec, bases)
    await image_secrets.require(platform, caller, spec, source)
    node_id = await _node_for(platform, caller, spec)
    image = _row(platform, caller, spec.kind, source, reference, node_id, spec.config)
    image.visibility, image.labels = spec.visibility, spec.metadata
    known = await platform.database.write(_promise, caller.project_id, image, _names(spec), key, platform)
    if isinstance(known, Claim):
        if known.outcome != "done":
            idempotency.refuse(known)
        return await platform.database.read(store.get_own, caller.project_id, known.resource_id), True
    if known.id == image.id:
        try:
            await _begin(platform, image)
        except ProblemError:
            await platform.database.write(_take_back, caller.project_id, image.id, key)
            raise
    return known, False


async def imported(platform: Platform, caller: Caller, reference: Reference) -> Image:
    """Return the project's image of a reference: the newest there is, one on its way, or one that begins now."""
    source = RegistrySource(reference=str(reference)).model_dump(mode="json", exclude={"password"})
    same = await platform.database.read(
        store.same_source, caller.project_id, kind="registry", reference=str(reference), source=source
    )
    ready = next((image for image in same if image.state == ImageState.READY), None)
    if ready is not None and _is_held(platform, ready):
        return ready
    if (coming := next((image for image in same if image.state not in SETTLED), None)) is not None:
        return coming
    node_id = image_nodes.any_node(platform)
    image = _row(platform, caller, "registry", source, str(reference), node_id, None)
    image = await platform.database.write(_promise_import, caller.project_id, image)
    if image.id not in platform.images.following:
        image_following.follow(platform, image, None)
    return image


def _is_held(platform: Platform, image: Image) -> bool:
    return any(image.content_id in view.images for view in platform.fleet.views())


def _promise_import(connection: Connection, project_id: str, image: Image) -> Image:
    """Insert, unless the same has been begun since it was looked for: one import however many ask at once."""
    same = store.same_source(connection, project_id, kind=image.kind, reference=image.reference, source=image.source)
    if (coming := next((each for each in same if each.state not in SETTLED), None)) is not None:
        return coming
    store.insert_new(connection, project_id, image)
    return image


def require_operator(caller: Caller) -> None:
    """Raise `scope_required`."""
    if caller.kind != "operator" and "operator" not in caller.scopes:
        raise ProblemError("scope_required", "Only operators make images public.", required_scope="operator")


def _source(
    platform: Platform, caller: Caller, spec: ImageSpec, bases: Mapping[str, ImageRef]
) -> tuple[dict[str, Any], str | None]:
    """Return what a node is asked for, and the canonical reference of a registry's image."""
    given: BaseModel | None = getattr(spec, spec.kind)
    if (registry := spec.registry) is not None:
        settings = platform.settings
        naming = Naming(settings.default_registry, frozenset(settings.library_registries))
        try:
            reference = str(parse(registry.reference, naming))
        except InvalidReferenceError as error:
            raise invalid_field("/registry/reference", "reference", str(error)) from error
        source = RegistrySource(reference=reference, platform=registry.platform, username=registry.username)
        return image_secrets.stored(source, registry.password_secret), reference
    if (build := spec.build) is not None:
        mode = caller.defaults.get("egress", {}).get("mode")
        egress = build.egress or EgressSpec(mode="open" if mode == "open" else "blocked")
        build = build.model_copy(update={"egress": egress})
        return BuildSource(build=build, images=dict(bases)).model_dump(mode="json", by_alias=True), None
    return given.model_dump(mode="json", by_alias=True) if given is not None else {}, None


async def _node_for(platform: Platform, caller: Caller, spec: ImageSpec) -> str:
    """Return the node that shall make it: where the upload lies, else any."""
    if spec.sandbox is not None:
        return await _node_of_sandbox(platform, caller, spec.sandbox.sandbox_id)
    build = spec.build
    sha256 = spec.archive.upload if spec.archive is not None else build.context if build is not None else None
    if sha256 is None:
        return image_nodes.any_node(platform)
    upload = await platform.database.read(store.find_upload, caller.project_id, sha256)
    if upload is None:
        raise upload_not_found(sha256)
    try:
        state = await image_nodes.upload_state(platform, upload.node_id, caller.project_id, sha256)
    except NodeProblemError:
        raise upload_not_found(sha256) from None
    except NodeUnreachableError as error:
        raise ProblemError("node_unreachable", "The node of the upload does not answer.") from error
    if not state.complete:
        raise ProblemError(
            "upload_not_found", f"Of the upload {sha256} only {state.offset} bytes are here.", offset=state.offset
        )
    return upload.node_id


async def _node_of_sandbox(platform: Platform, caller: Caller, sandbox_id: str) -> str:
    """Return where a running sandbox of the caller's is. `sandbox_not_found`, `invalid_state`."""
    sandbox = await platform.database.read(sandboxes.get, caller.project_id, sandbox_id)
    if sandbox.state != SandboxState.RUNNING:
        raise ProblemError(
            "invalid_state",
            f"Sandbox {sandbox_id} is {sandbox.state}; only of a running one an image can be made.",
            state=sandbox.state,
            allowed=[SandboxState.RUNNING],
        )
    return sandbox.node_id


def upload_not_found(sha256: str) -> ProblemError:
    return ProblemError("upload_not_found", f"There is no upload {sha256[:64]!r}.")


def _row(
    platform: Platform,
    caller: Caller,
    kind: str,
    source: dict[str, Any],
    reference: str | None,
    node_id: str,
    config: ImageOverrides | None,
) -> Image:
    now_us = platform.sources.now_us()
    return Image(
        id=new_id("img", platform.sources.random_bytes),
        project_id=caller.project_id,
        key_id=caller.key_id,
        node_id=node_id,
        state=ImageState.PENDING.value,
        kind=kind,
        source=source,
        overrides=None if config is None else config.model_dump(mode="json"),
        reference=reference,
        created_at=now_us,
        updated_at=now_us,
    )


def _names(spec: ImageSpec) -> list[tuple[str, str]]:
    return [split_tag(text) for text in spec.tags]


def _promise(
    connection: Connection,
    project_id: str,
    image: Image,
    names: list[tuple[str, str]],
    key: Key | None,
    platform: Platform,
) -> Image | Claim:
    """Write key, image and names in one transaction. What is ready already of the same content is returned instead."""
    known = _same_content(connection, project_id, image)
    resource_id = image.id if known is None else known.id
    if key is not None:
        claim = key_store.claim(
            connection,
            project_id,
            key,
            resource_id=resource_id,
            incarnation=platform.incarnation,
            now_us=image.created_at,
        )
        if claim.outcome != "fresh":
            return claim
        key_store.finish(connection, project_id, key, status=202)
    if known is None:
        store.insert_new(connection, project_id, image)
    for name, tag in names:
        store.set_tag(connection, project_id, name, tag, resource_id, now_us=image.created_at)
    return known or image


def _same_content(connection: Connection, project_id: str, image: Image) -> Image | None:
    """Return a ready image of the project's that can be nothing else: of the same upload, or of the same digest."""
    if image.overrides is not None or image.kind not in _KINDS_HERE:
        return None
    if image.kind == "registry" and "@" not in (image.reference or ""):
        return None
    same = store.same_source(connection, project_id, kind=image.kind, reference=image.reference, source=image.source)
    return next((each for each in same if each.state == ImageState.READY and each.visibility == image.visibility), None)


def _take_back(connection: Connection, project_id: str, image_id: str, key: Key | None) -> None:
    store.remove(connection, project_id, image_id)
    if key is not None:
        key_store.release(connection, project_id, key)


async def _begin(platform: Platform, image: Image) -> None:
    """Ask the node. Raises its refusal; a node that does not answer is asked again in the background."""
    job = None
    try:
        asked = await image_secrets.asked_of(platform, image)
        job = await image_nodes.start_job(platform, image.node_id, image.id, asked)
    except NodeProblemError as error:
        raise error.problem() from error
    except NodeUnreachableError as error:
        _log.warning("image job not confirmed", image=image.id, why=str(error))
    image_following.follow(platform, image, job)
