"""Creating a sandbox: a promise in the database, one call to one node, and an answer that never lies about either."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from api.errors import NotImplementedProblem
from api.services import idempotency, image_following, image_names, placement, reports, secrets, stopping, tunnels
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.requests import CreateSandbox, SandboxRequest
from api.services.views import ended_problem
from api.store import idempotency as key_store
from api.store import images as image_store
from api.store import sandboxes as store
from api.store import tunnels as tunnel_store
from api.store.db import Connection
from api.store.idempotency import Claim, Key
from api.store.image_tables import Image
from api.store.sandboxes import Applied, Found
from api.store.tables import Sandbox
from sandboxd.contract.ids import new_id
from sandboxd.contract.images import SETTLED, ImageState
from sandboxd.contract.messages import NEVER_STORED, EgressSpec, EnsureSandbox, ImageRef, SandboxReport, SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import DesiredState, SandboxState
from sandboxd.contract.tunnels import NodeTunnel

_log = structlog.get_logger()

_REFUSALS: Final = frozenset(
    {"no_capacity", "impossible_resources", "image_not_found", "shutting_down", "disk_full", "no_such_gpu"}
)
"""Problems with which a node has taken nothing; another may be asked."""
_OVERTAKEN: Final = frozenset({"stale_generation", "sandbox_ended", "invalid_state"})
"""Problems that mean somebody has stopped it meanwhile."""
_LOOK_SECONDS: Final = 1.0
"""While an image is waited for: how often to look whether the sandbox is still wanted."""
_BACKOFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(slots=True)
class Outcome:
    """What a start came to: the sandbox as it is, or the problem to answer."""

    sandbox: Sandbox
    problem: ProblemError | None = None


@dataclass(slots=True)
class Start:
    """A start that is under way."""

    sandbox: Sandbox
    spec: SandboxSpec
    key: Key | None
    """Held until the request is answered."""
    coming: Image | None = None
    """The image it waits for; no node has been chosen until that is here."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a create began: a start, or the sandbox that was there already."""

    sandbox: Sandbox
    start: Start | None
    task: asyncio.Task[Outcome | None] | None
    status: int = 201
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to a create."""

    sandbox: Sandbox
    status: int
    replayed: bool


async def create(platform: Platform, caller: Caller, body: CreateSandbox, key: Key | None) -> Created:
    """Create a sandbox and wait for it up to `wait_seconds`. What still starts then goes on starting."""
    begun = await begin(platform, caller, body, key)
    if begun.task is None or begun.start is None:
        platform.metrics.creates.labels("replayed" if begun.replayed else "existing").inc()
        return Created(begun.sandbox, begun.status, begun.replayed)
    await asyncio.wait({begun.task}, timeout=body.wait_seconds)
    if not begun.task.done():
        platform.metrics.creates.labels("pending").inc()
        return Created(await _answer_early(platform, begun.start), begun.status, begun.replayed)
    outcome = begun.task.result()
    if outcome is None:
        raise ProblemError("internal", "The start failed in an unforeseen way.", sandbox_id=begun.sandbox.id)
    if outcome.problem is not None:
        platform.metrics.creates.labels(outcome.problem.code).inc()
        raise outcome.problem
    platform.metrics.creates.labels("running").inc()
    return Created(outcome.sandbox, begun.status, begun.replayed)


async def _answer_early(platform: Platform, start: Start) -> Sandbox:
    """Settle the key: the request is answered with a promise, and whatever follows is in the resource."""
    key, start.key = start.key, None
    if key is not None:
        await platform.database.write(key_store.finish, start.sandbox.project_id, key, status=201)
    return await platform.database.read(store.get, start.sandbox.project_id, start.sandbox.id)


async def begin(
    platform: Platform, caller: Caller, body: SandboxRequest, key: Key | None, *, one_shot: bool = False
) -> Begun:
    """Write the promise and start asking a node. Raises where nothing can be promised."""
    if feature := body.later_feature():
        raise NotImplementedProblem(feature)
    name = body.name if isinstance(body, CreateSandbox) and _or_existing(body) else None
    if key is not None or name is not None:
        known = await platform.database.read(_known, caller.project_id, key, name, platform)
        if known is not None:
            return await _known_begun(platform, caller, body, key, known)
    common = image_names.platforms_name(platform, body.image)
    if common is not None:
        image, tag = common
        begun = await _promised(platform, caller, body, key, image, one_shot=one_shot, unless_tagged=tag)
        if begun is not None:
            return begun
    image = await image_names.resolve(platform, caller, body.image)
    begun = await _promised(platform, caller, body, key, image, one_shot=one_shot)
    assert begun is not None  # noqa: S101 - no tag was asked about
    return begun


async def _promised(
    platform: Platform,
    caller: Caller,
    body: SandboxRequest,
    key: Key | None,
    image: image_names.Pinned | image_names.Coming,
    *,
    one_shot: bool,
    unless_tagged: tuple[str, str] | None = None,
) -> Begun | None:
    """Write the promise and start; None, with nothing written, where the project has, or may have, such a tag."""
    coming = image.record if isinstance(image, image_names.Coming) else None
    if isinstance(image, image_names.Coming):
        spec = _spec(platform, caller, body, ImageRef(id=image.record.id, reference=image.text, digest=""))
    else:
        spec = _spec(platform, caller, body, image.ref)
    values = await secrets.env_values(platform, caller, body.secret_env, ("secret_env",))
    spec = spec.model_copy(update={"secret_env": values})
    secrets.require_for_policy(caller, spec.egress)
    sandbox = _row(platform, caller, body, spec, one_shot=one_shot)
    sandbox.image_id = image.record.id if image.record is not None else spec.image.id
    try:
        sandbox.node_id = "" if coming is not None else _place(platform, spec, frozenset())
    except ProblemError:
        if unless_tagged is None:
            raise
        return None  # there may be a place for what the project calls by that name
    result = await platform.database.write(
        _promise,
        caller.project_id,
        sandbox,
        key,
        or_existing=_or_existing(body),
        platform=platform,
        unless_tagged=unless_tagged,
        secret_env=body.secret_env,
    )
    if result is None:
        return None
    if isinstance(result, Claim) or not result.created:
        return await _known_begun(platform, caller, body, key, result)
    # A run's key is answered with its result, not with its sandbox: it stays with the run.
    return _launch(platform, Start(result.sandbox, spec, None if one_shot else key, coming))


def _or_existing(body: SandboxRequest) -> bool:
    return isinstance(body, CreateSandbox) and body.if_exists == "return"


def _known(
    connection: Connection, project_id: str, key: Key | None, name: str | None, platform: Platform
) -> Claim | Found | None:
    """Look for what an earlier request has made, before anything is promised for this one."""
    if key is not None:
        claim = key_store.look(
            connection, project_id, key, incarnation=platform.incarnation, now_us=platform.sources.now_us()
        )
        if claim is not None:
            return claim
    if name is not None and (existing := store.find_named(connection, project_id, name)) is not None:
        return Found(existing, created=False)
    return None


def _promise(
    connection: Connection,
    project_id: str,
    sandbox: Sandbox,
    key: Key | None,
    *,
    or_existing: bool,
    platform: Platform,
    unless_tagged: tuple[str, str] | None,
    secret_env: Mapping[str, str],
) -> Claim | Found | None:
    """Write key and sandbox in one transaction; nothing, and None, where the project has such a tag."""
    if unless_tagged is not None and image_store.find_tagged(connection, project_id, *unless_tagged) is not None:
        return None
    if key is not None:
        claim = key_store.claim(
            connection,
            project_id,
            key,
            resource_id=sandbox.id,
            incarnation=platform.incarnation,
            now_us=sandbox.created_at,
        )
        if claim.outcome != "fresh":
            return claim
    found = store.insert_new(connection, project_id, sandbox, or_existing=or_existing)
    if found.created:
        tunnel_store.insert_all(connection, project_id, found.sandbox)
        secrets.use_in_env(connection, project_id, sandbox.id, secret_env)
        _use_in_policy(connection, project_id, sandbox)
    if found.created and sandbox.image_id != sandbox.spec["image"]["id"]:
        image_store.used(connection, project_id, sandbox.image_id, sandbox.created_at)
    if key is not None and not found.created:
        key_store.stand_for(connection, project_id, key, resource_id=found.sandbox.id)
        key_store.finish(connection, project_id, key, status=200)
    return found


def _use_in_policy(connection: Connection, project_id: str, sandbox: Sandbox) -> None:
    if sandbox.spec["egress"]["inject"]:
        egress = EgressSpec.model_validate(sandbox.spec["egress"])
        secrets.use_in_policy(connection, project_id, sandbox.id, egress, ("egress",))


async def _known_begun(
    platform: Platform, caller: Caller, body: SandboxRequest, key: Key | None, known: Claim | Found
) -> Begun:
    """Answer from what an earlier request has made."""
    if isinstance(known, Found):
        return Begun(known.sandbox, None, None, 200)
    if known.outcome != "done":
        idempotency.refuse(known)
    sandbox = await platform.database.read(store.get, caller.project_id, known.resource_id)
    if known.abandoned and not sandbox.one_shot and sandbox.id not in platform.starting:
        adopted = await platform.database.write(
            store.adopt,
            caller.project_id,
            sandbox.id,
            incarnation=platform.incarnation,
            start_deadline_at=_deadline(platform),
        )
        if adopted is not None:
            values = await secrets.env_values(platform, caller, body.secret_env, ("secret_env",))
            spec = SandboxSpec.model_validate({**adopted.spec, "env": body.env, "secret_env": values})
            begun = _launch(platform, Start(adopted, spec, key, await _awaited(platform, adopted)))
            return Begun(begun.sandbox, begun.start, begun.task, 201, replayed=True)
    return Begun(sandbox, None, None, known.status or 201, replayed=True)


def _spec(platform: Platform, caller: Caller, body: SandboxRequest, image: ImageRef) -> SandboxSpec:
    return SandboxSpec(
        image=image,
        env=body.env,
        user=body.user,
        cwd=body.cwd,
        entrypoint=body.entrypoint if isinstance(body, CreateSandbox) else None,
        use_image_entrypoint=body.use_image_entrypoint,
        hostname=(body.name if isinstance(body, CreateSandbox) else None) or "sandbox",
        resources=body.resources.granted(),
        egress=body.egress_spec(caller.defaults),
        tunnels=_tunnels(platform, caller, body),
        timeout_seconds=body.timeout_seconds,
        idle_timeout_seconds=body.idle_timeout_seconds,
        idle_ignores_processes=body.idle_ignores_processes,
    )


def _tunnels(platform: Platform, caller: Caller, body: SandboxRequest) -> list[NodeTunnel]:
    """Return the tunnels asked for, with their ids."""
    asked = body.tunnels if isinstance(body, CreateSandbox) else []
    if not asked:
        return []
    caller.require("tunnels", write=True)
    for spec in asked:
        tunnels.check_server_name(platform, caller, spec)
    sources = platform.sources
    at = sources.now_us()
    # A microsecond apart, so that they are listed in the order in which they were asked for.
    return [
        NodeTunnel(**spec.model_dump(), id=new_id("tun", sources.random_bytes), created_at_us=at + place)
        for place, spec in enumerate(asked)
    ]


def _place(platform: Platform, spec: SandboxSpec, tried: frozenset[str]) -> str:
    """Choose a node, or raise why there is none."""
    choice = placement.choose(
        platform.fleet.views(), spec.resources, spec.image.id, tried=tried, draw=platform.sources.draw
    )
    if isinstance(choice, placement.Choice):
        return choice.node_id
    if choice.why == "impossible":
        raise ProblemError("impossible_resources", choice.detail, hint="Ask for less.", limit=choice.limit)
    if choice.why == "image":
        raise ProblemError("image_unavailable", choice.detail, retry_after_seconds=2)
    raise ProblemError("no_capacity", choice.detail, hint="Try again, or ask for less.", retry_after_seconds=2)


def _deadline(platform: Platform) -> int:
    return platform.sources.now_us() + round(platform.settings.start_timeout_seconds * 1e6)


def _row(platform: Platform, caller: Caller, body: SandboxRequest, spec: SandboxSpec, *, one_shot: bool) -> Sandbox:
    now_us = platform.sources.now_us()
    return Sandbox.model_construct(
        id=new_id("sbx", platform.sources.random_bytes),
        project_id=caller.project_id,
        key_id=caller.key_id,
        name=body.name if isinstance(body, CreateSandbox) else None,
        state=SandboxState.PENDING.value,
        desired_state=DesiredState.RUNNING.value,
        labels=body.metadata,
        image_id=spec.image.id,
        node_id="",
        spec=spec.model_dump(exclude=set(NEVER_STORED)),
        user=body.user,
        cwd=body.cwd,
        timeout_seconds=body.timeout_seconds,
        idle_timeout_seconds=body.idle_timeout_seconds,
        on_timeout=body.on_timeout,
        on_idle=body.on_idle,
        auto_resume=body.auto_resume,
        paused_retention_seconds=body.paused_retention_seconds,
        egress_mode=spec.egress.mode,
        egress_asked_at=now_us,
        one_shot=one_shot,
        incarnation=platform.incarnation,
        start_deadline_at=_deadline(platform),
        created_at=now_us,
        updated_at=now_us,
    )


def _launch(platform: Platform, start: Start) -> Begun:
    task = platform.background.start(_start(platform, start))
    platform.starting[start.sandbox.id] = task
    task.add_done_callback(lambda _: _launched(platform, start.sandbox.id))
    return Begun(start.sandbox, start, task)


def _launched(platform: Platform, sandbox_id: str) -> None:
    platform.starting.pop(sandbox_id, None)
    platform.overtaken.discard(sandbox_id)
    platform.changes.notify(sandbox_id)


async def _awaited(platform: Platform, sandbox: Sandbox) -> Image | None:
    """Return the image that a promise of an earlier start of the api waited for, if it still did."""
    if sandbox.node_id:
        return None
    return await platform.database.read(image_store.get_any_project, sandbox.image_id)


async def _image_here(platform: Platform, start: Start, coming: Image) -> Outcome | None:
    """Wait for the image, then choose a node; the outcome where nothing can start."""
    sandbox = start.sandbox
    image_following.follow(platform, coming, None)
    image: Image | None = coming
    while image is not None and image.state not in SETTLED and sandbox.id not in platform.overtaken:
        image = await image_following.wait_until(
            platform, image, lambda row: row.state in SETTLED, seconds=_LOOK_SECONDS
        )
    if sandbox.id in platform.overtaken:
        await reports.end_all(platform, [sandbox.id], SandboxReason.REQUESTED, None)
        return await _ended(platform, start)
    if image is None or image.state != ImageState.READY:
        return await _without_image(platform, start, image)
    ref = image_names.pin(start.spec.image.reference, image).ref
    start.spec = start.spec.model_copy(update={"image": ref})
    try:
        node_id = _place(platform, start.spec, frozenset())
    except ProblemError as none_left:
        await platform.database.write(_forget, start)
        return Outcome(sandbox, none_left)
    pinned = await platform.database.write(
        store.pin_any_project,
        sandbox.id,
        node_id=node_id,
        spec=start.spec.model_dump(exclude=set(NEVER_STORED)),
        start_deadline_at=_deadline(platform),
        now_us=platform.sources.now_us(),
    )
    if pinned is None:
        await reports.end_all(platform, [sandbox.id], SandboxReason.REQUESTED, None)
        return await _ended(platform, start)
    start.sandbox = pinned
    return None


async def _without_image(platform: Platform, start: Start, image: Image | None) -> Outcome:
    """Keep the record of a start whose image could not be had."""
    text = start.spec.image.reference
    if image is None:
        problem = ProblemError("image_refused", f"The image {text[:200]!r} was deleted meanwhile.", reason="canceled")
    else:
        problem = image_names.refused(text, image)
    problem.members = {**problem.members, "sandbox_id": start.sandbox.id}
    await reports.end_all(platform, [start.sandbox.id], SandboxReason.IMAGE_UNAVAILABLE, problem.detail[:1000])
    if start.key is not None:
        await platform.database.write(key_store.release, start.sandbox.project_id, start.key)
    return Outcome(start.sandbox, problem)


async def _start(platform: Platform, start: Start) -> Outcome:
    """Ask one node after another, each until it has said yes or no."""
    if start.coming is not None and (early := await _image_here(platform, start, start.coming)) is not None:
        return early
    tried: frozenset[str] = frozenset()
    while True:
        node_id = start.sandbox.node_id
        try:
            answer = await _ask(platform, start)
        except NodeProblemError as error:
            if error.code not in _REFUSALS:
                return await _not_started(platform, start, error)
            tried |= {node_id}
            platform.fleet.withdraw(node_id, start.sandbox.id)
            moved = await _move(platform, start, tried, error)
            if moved is not None:
                return moved
            continue
        if answer is None:
            _log.warning("start not confirmed", sandbox=start.sandbox.id, node=node_id)
            return Outcome(await _current(platform, start))
        return await _started(platform, start, answer)


async def _ask(platform: Platform, start: Start) -> SandboxReport | None:
    """Ask the node until it answers; None when the deadline passes without a word. Never asks another."""
    sandbox = start.sandbox
    attempt = 0
    with platform.fleet.promise(sandbox.node_id, sandbox.id, start.spec.resources):
        while (left := (sandbox.start_deadline_at - platform.sources.now_us()) / 1e6) > 0:
            member = platform.fleet.members[sandbox.node_id]
            body = EnsureSandbox.model_construct(
                generation=sandbox.generation,
                epoch=member.epoch,
                deadline_seconds=left,
                spec=start.spec,
                credentials=await secrets.credentials_of(platform, sandbox.project_id, start.spec.egress),
            )
            try:
                return await platform.nodes.ensure(member.address, sandbox.id, body)
            except NodeUnreachableError as error:
                _log.warning("ensure not answered", sandbox=sandbox.id, node=sandbox.node_id, why=str(error))
            await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])
            attempt += 1
    return None


async def _current(platform: Platform, start: Start) -> Sandbox:
    return await platform.database.read(store.get, start.sandbox.project_id, start.sandbox.id)


async def _move(platform: Platform, start: Start, tried: frozenset[str], refusal: NodeProblemError) -> Outcome | None:
    """Promise it to another node; the outcome where there is none, or where nobody wants it any more."""
    try:
        node_id = _place(platform, start.spec, tried)
    except ProblemError as none_left:
        await platform.database.write(_forget, start)
        platform.changes.notify(start.sandbox.id)
        final = refusal.code in {"image_not_found", "impossible_resources", "no_such_gpu"}
        return Outcome(start.sandbox, refusal.problem() if final else none_left)
    moved = await platform.database.write(store.move_any_project, start.sandbox.id, node_id, platform.sources.now_us())
    if moved is None:
        await reports.end_all(platform, [start.sandbox.id], SandboxReason.START_FAILED, "No node took it.")
        return await _ended(platform, start)
    start.sandbox = moved
    return None


def _forget(connection: Connection, start: Start) -> None:
    sandbox = start.sandbox
    store.forget_any_project(connection, sandbox.id)
    if start.key is not None:
        key_store.release(connection, sandbox.project_id, start.key)


async def _started(platform: Platform, start: Start, report: SandboxReport) -> Outcome:
    """Answer what the node said.

    The promise is on record, so the answer need not wait until this is too: whoever asks the database next sees it,
    and an api that dies in between learns it from the node again.
    """
    sandbox = start.sandbox
    now_us = platform.sources.now_us()
    platform.fleet.saw([report])
    settling = platform.database.write_soon(_settle, start, report, now_us)
    running = store.as_reported(sandbox, report, now_us)
    if running is None or running.ended_at is not None or sandbox.id in platform.overtaken:
        current = await _settled(platform, start, settling)
        if current.ended_at is not None:
            return await _ended(platform, start)
        return Outcome(current, ended_problem(current) if current.desired_state == DesiredState.STOPPED else None)
    platform.fleet.note(running)
    reports.know(platform, sandbox.node_id, report)
    platform.background.start(_settled(platform, start, settling))
    return Outcome(running)


async def _settled(platform: Platform, start: Start, settling: asyncio.Future[Applied]) -> Sandbox:
    """Wait until the node's answer is on record; stop what somebody has asked to stop meanwhile."""
    applied = await settling
    reports.note(platform, applied)
    current = applied.sandbox or start.sandbox
    if current.ended_at is None and current.desired_state == DesiredState.STOPPED:
        platform.background.start(stopping.stop(platform, current, grace_seconds=0))
    return current


def _settle(connection: Connection, start: Start, report: SandboxReport, now_us: int) -> Applied:
    """Write the node's answer down, and that the request succeeded."""
    sandbox = start.sandbox
    [applied] = store.apply_reports_any_project(connection, sandbox.node_id, [report], now_us)
    if start.key is not None:
        key_store.finish(connection, sandbox.project_id, start.key, status=201)
    return applied


async def _ended(platform: Platform, start: Start) -> Outcome:
    """Answer a start that ended before it ran. The key is free again: the request had no lasting effect."""
    if start.key is not None:
        await platform.database.write(key_store.release, start.sandbox.project_id, start.key)
    current = await _current(platform, start)
    return Outcome(current, ended_problem(current))


async def _not_started(platform: Platform, start: Start, error: NodeProblemError) -> Outcome:
    """Keep the record of a start that failed, with its reason."""
    sandbox = start.sandbox
    if error.code in _OVERTAKEN:
        current = await _current(platform, start)
        if current.ended_at is None and current.desired_state == DesiredState.STOPPED:
            platform.background.start(stopping.stop(platform, current, grace_seconds=0))
        if current.ended_at is not None or current.desired_state == DesiredState.STOPPED:
            return await _ended(platform, start)
    platform.fleet.forget(sandbox.id, sandbox.node_id)
    problem = error.problem(sandbox_id=sandbox.id)
    exit_code = error.body.get("exit_code")  # of an entrypoint that could not be executed
    await reports.end_all(
        platform,
        [sandbox.id],
        _reason(error),
        problem.detail[:1000],
        exit_code if type(exit_code) is int and 0 <= exit_code <= 255 else None,
    )
    if start.key is not None:
        await platform.database.write(key_store.release, sandbox.project_id, start.key)
    return Outcome(sandbox, problem)


def _reason(error: NodeProblemError) -> SandboxReason:
    said = {error.body.get("reason"), error.code}
    return next((reason for reason in SandboxReason if reason.value in said), SandboxReason.START_FAILED)
