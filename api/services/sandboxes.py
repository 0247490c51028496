"""Reading and changing sandboxes that exist."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.errors import NotImplementedProblem
from api.services import cursors, idempotency, reports
from api.services.cursors import Position
from api.services.fleet import Member
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.requests import ExtendSandbox, PatchSandboxRequest, check_metadata
from api.services.views import ended_problem
from api.services.waiting import wait_until
from api.store import idempotency as key_store
from api.store import sandboxes as store
from api.store.idempotency import Key
from api.store.sandboxes import Filter
from api.store.tables import Sandbox
from sandboxd.contract.messages import PatchSandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import DesiredState, SandboxState
from sandboxd.contract.validation import invalid_field

_ATTEMPTS: Final = 3
_NOT_YET: Final = frozenset({SandboxState.PENDING, SandboxState.STARTING, SandboxState.RESUMING})


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list."""

    items: list[Sandbox]
    next_cursor: str | None


async def get(
    platform: Platform, caller: Caller, sandbox_id: str, *, wait_for: frozenset[str], wait_seconds: float
) -> Sandbox:
    """Return a sandbox; waits until it is in one of `wait_for`, or the time is up."""
    sandbox = await platform.database.read(store.get, caller.project_id, sandbox_id)
    return await wait_until(platform, sandbox, lambda row: row.state in wait_for, seconds=wait_seconds)


async def list_page(
    platform: Platform, caller: Caller, wanted: Filter, *, cursor: str | None, descending: bool, limit: int
) -> Page:
    """Return a page in order of creation. What exists during the whole walk is in exactly one page."""
    now_us = platform.sources.now_us()
    scope = f"sandboxes\0{caller.project_id}\0{descending}\0{wanted!r}"
    after = None if cursor is None else cursors.unseal(platform.secret, scope, cursor, now_us)
    rows = await platform.database.read(
        store.list_page, caller.project_id, wanted, after=after, descending=descending, limit=limit + 1
    )
    items = rows[:limit]
    if len(rows) <= limit:
        return Page(items, None)
    last = items[-1]
    return Page(items, cursors.seal(platform.secret, scope, Position(last.created_at, last.id), now_us))


async def patch(
    platform: Platform, caller: Caller, sandbox_id: str, body: PatchSandboxRequest, match: frozenset[int] | None
) -> Sandbox:
    """Apply a merge patch: the node first where a deadline changes, then the record."""
    if feature := body.later_feature():
        raise NotImplementedProblem(feature)
    for _ in range(_ATTEMPTS):
        sandbox = await changeable(platform, caller, sandbox_id, match)
        if not body.model_fields_set:
            return sandbox
        changes = _changes(sandbox, body)
        clocks = body.model_fields_set & {"timeout_seconds", "idle_timeout_seconds"}
        if clocks:
            values = body.model_dump(include=clocks)
            changes |= await _tell_node(platform, sandbox, values)
        changed = await _write(platform, sandbox, changes)
        if changed is not None:
            return changed
    raise _contended(sandbox_id)


async def extend(
    platform: Platform, caller: Caller, sandbox_id: str, body: ExtendSandbox, key: Key | None
) -> tuple[Sandbox, bool]:
    """Move the deadline away, never nearer. Returns the sandbox, and whether this was a replay."""
    if key is not None and await _is_replay(platform, caller, sandbox_id, key):
        return await platform.database.read(store.get, caller.project_id, sandbox_id), True
    try:
        sandbox = await _extend(platform, caller, sandbox_id, body)
    except BaseException:
        if key is not None:
            await platform.database.write(key_store.release, caller.project_id, key)
        raise
    if key is not None:
        await platform.database.write(key_store.finish, caller.project_id, key, status=200)
    return sandbox, False


async def _is_replay(platform: Platform, caller: Caller, sandbox_id: str, key: Key) -> bool:
    claim = await platform.database.write(
        key_store.claim,
        caller.project_id,
        key,
        resource_id=sandbox_id,
        incarnation=platform.incarnation,
        now_us=platform.sources.now_us(),
    )
    if claim.outcome in {"mismatch", "in_flight"}:
        idempotency.refuse(claim)
    # An abandoned one may not have reached the node; extending again cannot bring the deadline nearer.
    return claim.outcome == "done" and not claim.abandoned


async def _extend(platform: Platform, caller: Caller, sandbox_id: str, body: ExtendSandbox) -> Sandbox:
    for _ in range(_ATTEMPTS):
        sandbox = await changeable(platform, caller, sandbox_id)
        changes = await _tell_node(platform, sandbox, {"extend_seconds": body.timeout_seconds})
        changed = await _write(platform, sandbox, changes)
        if changed is not None:
            return changed
    raise _contended(sandbox_id)


def _contended(sandbox_id: str) -> ProblemError:
    return ProblemError(
        "operation_in_progress", f"Sandbox {sandbox_id} is being changed by others.", retry_after_seconds=1
    )


async def changeable(
    platform: Platform, caller: Caller, sandbox_id: str, match: frozenset[int] | None = None
) -> Sandbox:
    """Return a sandbox that may still be changed."""
    sandbox = await platform.database.read(store.get, caller.project_id, sandbox_id)
    store.require_generation(sandbox, match)
    if sandbox.ended_at is not None:
        raise ended_problem(sandbox)
    if sandbox.desired_state == DesiredState.STOPPED:
        raise ProblemError(
            "invalid_state", f"Sandbox {sandbox_id} is being deleted.", state=sandbox.state, allowed=["running"]
        )
    return sandbox


def _changes(sandbox: Sandbox, body: PatchSandboxRequest) -> dict[str, Any]:
    """Return the columns a merge patch sets."""
    changes: dict[str, Any] = body.model_dump(
        include=body.model_fields_set & {"name", "on_timeout", "on_idle", "auto_resume", "paused_retention_seconds"}
    )
    if "metadata" in body.model_fields_set:
        given = body.metadata or {}
        kept = {} if body.metadata is None else {k: v for k, v in sandbox.labels.items() if k not in given}
        labels = kept | {key: value for key, value in given.items() if value is not None}
        try:
            changes["labels"] = check_metadata(labels)
        except ValueError as error:
            raise invalid_field("/metadata", "value_error", str(error)) from error
    return changes


async def _tell_node(platform: Platform, sandbox: Sandbox, values: Mapping[str, int | None]) -> dict[str, Any]:
    """Change deadlines on the node; return the columns that follow."""
    member = reachable(platform, sandbox)
    body = PatchSandbox(generation=sandbox.generation + 1, epoch=member.epoch, **values)
    try:
        report = await platform.nodes.patch(member.address, sandbox.id, body)
    except NodeProblemError as error:
        raise error.problem() from error
    except NodeUnreachableError as error:
        raise node_unreachable(sandbox) from error
    platform.fleet.saw([report])
    expires_at = None if report.expires_at is None else round(report.expires_at.timestamp() * 1e6)
    columns: dict[str, Any] = {name: value for name, value in values.items() if name != "extend_seconds"}
    return columns | {"expires_at": expires_at}


def reachable(platform: Platform, sandbox: Sandbox) -> Member:
    """Return the node of a sandbox that has started; raises why it cannot be called."""
    if sandbox.state in _NOT_YET:
        raise ProblemError("sandbox_not_ready", f"Sandbox {sandbox.id} is {sandbox.state}.", retry_after_seconds=1)
    if sandbox.state == SandboxState.LOST:
        raise lost_problem(sandbox)
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None:
        raise node_unreachable(sandbox)
    return member


def node_unreachable(sandbox: Sandbox) -> ProblemError:
    return ProblemError("node_unreachable", f"The node of sandbox {sandbox.id} does not answer.", retry_after_seconds=1)


def lost_problem(sandbox: Sandbox) -> ProblemError:
    return ProblemError(
        "sandbox_lost",
        f"The node of sandbox {sandbox.id} is silent; the sandbox may come back.",
        hint=f"GET /v1/sandboxes/{sandbox.id}?wait_seconds=60&wait_for=running.",
        retry_after_seconds=5,
    )


async def _write(platform: Platform, sandbox: Sandbox, changes: Mapping[str, Any]) -> Sandbox | None:
    changed = await platform.database.write(
        store.change,
        sandbox.project_id,
        sandbox.id,
        generation=sandbox.generation,
        changes=changes,
        now_us=platform.sources.now_us(),
    )
    platform.changes.notify(sandbox.id)
    return changed


async def data_plane_address(platform: Platform, caller: Caller, sandbox_id: str, *, wait_seconds: float) -> str:
    """Return where the node of a sandbox answers data-plane calls; waits for one that no node has taken yet.

    Raises why there can be no answer: not found, ended, paused, lost, not ready.
    """
    if address := platform.fleet.address_of(caller.project_id, sandbox_id):
        return address
    sandbox = await platform.database.read(store.get, caller.project_id, sandbox_id)
    if sandbox.state == SandboxState.PENDING:
        sandbox = await wait_until(
            platform, sandbox, lambda row: row.state != SandboxState.PENDING, seconds=wait_seconds
        )
    if sandbox.ended_at is not None:
        raise ended_problem(sandbox)
    if sandbox.state == SandboxState.PENDING:
        raise ProblemError("sandbox_not_ready", f"No node has taken sandbox {sandbox_id} yet.", retry_after_seconds=1)
    if sandbox.state == SandboxState.LOST:
        raise lost_problem(sandbox)
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None:
        raise node_unreachable(sandbox)
    return member.address


async def data_plane_problem(platform: Platform, caller: Caller, sandbox_id: str) -> ProblemError:
    """Say why a node does not know a sandbox that the record places there."""
    platform.fleet.unsettle(sandbox_id)
    sandbox = await platform.database.read(store.get, caller.project_id, sandbox_id)
    return ended_problem(sandbox) if sandbox.ended_at is not None else node_unreachable(sandbox)


async def refresh(platform: Platform, sandbox: Sandbox) -> bool:
    """Ask the node how a sandbox is, and apply that. False: it does not know it."""
    if not sandbox.node_id:
        return False  # it waited for its image
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None:
        return True
    try:
        report = await platform.nodes.report(member.address, sandbox.id)
    except NodeUnreachableError:
        return True
    except NodeProblemError as error:
        return error.code not in {"sandbox_not_found", "moved"}
    await reports.apply(platform, sandbox.node_id, [report])
    return True
