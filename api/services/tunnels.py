"""Tunnels: asked for in the database, opened by the sandbox's node, shown as both have them."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from api.services import idempotency, sandboxes
from api.services.fleet import Member
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.requests import PatchTunnel
from api.services.tunnel_views import Tunnel, tunnel_view
from api.store import idempotency as key_store
from api.store import sandboxes as sandbox_store
from api.store import tunnels as store
from api.store.idempotency import Key
from api.store.tables import Sandbox
from api.store.tables import Tunnel as Row
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState
from sandboxd.contract.tunnels import NodeTunnel, PutTunnel, TunnelReport, TunnelSpec
from sandboxd.contract.validation import invalid_field

NOT_READY_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 3.0
"""How long a look at a tunnel may wait for its node; without an answer it is shown as it was asked for."""
_GONE: Final = frozenset({"moved", "sandbox_not_found"})

T = TypeVar("T")


async def open_tunnel(
    platform: Platform, caller: Caller, sandbox_id: str, spec: TunnelSpec, key: Key | None
) -> tuple[Tunnel, int, bool]:
    """Have a tunnel. Returns it, the status to answer, and whether this was a replay."""
    if key is None:
        tunnel, created = await _open(platform, caller, sandbox_id, spec)
        return tunnel, 201 if created else 200, False
    tunnel_id = new_id("tun", platform.sources.random_bytes)
    now_us = platform.sources.now_us()
    claim = await platform.database.write(
        key_store.claim,
        caller.project_id,
        key,
        resource_id=tunnel_id,
        incarnation=platform.incarnation,
        now_us=now_us,
    )
    if claim.outcome in {"mismatch", "in_flight"}:
        idempotency.refuse(claim)
    try:
        # Opening is idempotent by what is asked for, so a replay finds what the first one made.
        tunnel, created = await _open(platform, caller, sandbox_id, spec, tunnel_id)
    except BaseException:
        if claim.outcome == "fresh":
            await platform.database.write(key_store.release, caller.project_id, key)
        raise
    status = claim.status or (201 if created else 200)
    await platform.database.write(key_store.finish, caller.project_id, key, status=status)
    return tunnel, status, claim.outcome == "done"


async def list_tunnels(platform: Platform, caller: Caller, sandbox_id: str) -> list[Tunnel]:
    """Return a sandbox's tunnels, the oldest first."""
    sandbox = await _live(platform, caller, sandbox_id)
    rows = await platform.database.read(store.of_sandbox, caller.project_id, sandbox_id)
    reports = {report.id: report for report in await _look(platform, sandbox)} if rows else {}
    return [_shown(platform, sandbox, row, reports.get(row.id)) for row in rows]


async def get(platform: Platform, caller: Caller, sandbox_id: str, tunnel_id: str) -> Tunnel:
    """Return a tunnel."""
    sandbox = await _live(platform, caller, sandbox_id)
    row = await platform.database.read(store.get, caller.project_id, sandbox_id, tunnel_id)
    reports = {report.id: report for report in await _look(platform, sandbox)}
    return _shown(platform, sandbox, row, reports.get(row.id))


async def patch(platform: Platform, caller: Caller, sandbox_id: str, tunnel_id: str, body: PatchTunnel) -> Tunnel:
    """Change who may use a tunnel; whoever may not any more has been cut off when this returns."""
    sandbox = await _live(platform, caller, sandbox_id)
    row = await platform.database.read(store.get, caller.project_id, sandbox_id, tunnel_id)
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if changes.get("visibility") == "token" and row.kind != "http":
        raise invalid_field("/visibility", "value_error", f"nobody could check a token on a {row.kind} tunnel")
    spec = store.spec_of(row).model_copy(update=changes)
    report = await _put(platform, caller, sandbox, row, spec)
    changed = await platform.database.write(store.change, caller.project_id, row, spec)
    return _shown(platform, sandbox, changed, report)


async def close(platform: Platform, caller: Caller, sandbox_id: str, tunnel_id: str) -> None:
    """Close a tunnel; its connections are dead when this returns."""
    sandbox = await platform.database.read(sandbox_store.get, caller.project_id, sandbox_id)
    row = await platform.database.read(store.get, caller.project_id, sandbox_id, tunnel_id)
    if sandbox.ended_at is None:
        member = await _member(platform, caller, sandbox)
        call = platform.nodes.close_tunnel(member.address, sandbox_id, tunnel_id, epoch=member.epoch)
        await _told(platform, caller, sandbox, call)
        _note(platform, sandbox_id, tunnel_id, None)
    await platform.database.write(store.remove, caller.project_id, row)


async def _open(
    platform: Platform, caller: Caller, sandbox_id: str, spec: TunnelSpec, tunnel_id: str | None = None
) -> tuple[Tunnel, bool]:
    check_server_name(platform, caller, spec)
    sandbox = await _live(platform, caller, sandbox_id)
    tunnel_id = tunnel_id or new_id("tun", platform.sources.random_bytes)
    asked = store.row_of(sandbox, tunnel_id, spec, platform.sources.now_us())
    row, created = await platform.database.write(store.insert_new, caller.project_id, asked)
    try:
        report = await _put(platform, caller, sandbox, row, spec)
    except ProblemError as problem:
        # Where nobody knows what the node has done, the record stays: asked again, the same tunnel is opened.
        if created and problem.code not in {"node_unreachable", "deadline_exceeded"}:
            await platform.database.write(store.remove, caller.project_id, row)
        raise
    return _shown(platform, sandbox, row, report), created


def check_server_name(platform: Platform, caller: Caller, spec: TunnelSpec) -> None:
    """Refuse a name that is not below a domain which the operator gave to the project."""
    if spec.server_name is None:
        return
    given = [each.rpartition("=") for each in platform.settings.tunnel_domains]
    domains = [domain for project, _, domain in given if project in ("", caller.project_id)]
    if not any(spec.server_name.endswith("." + domain) for domain in domains):
        below = f"only below {', '.join(domains)}" if domains else "no domain was given to this project: leave it out"
        raise invalid_field("/server_name", "value_error", below)


async def _live(platform: Platform, caller: Caller, sandbox_id: str) -> Sandbox:
    """Return a sandbox that has a node and has not ended. Raises why there is none."""
    await sandboxes.data_plane_address(platform, caller, sandbox_id, wait_seconds=NOT_READY_SECONDS)
    return await platform.database.read(sandbox_store.get, caller.project_id, sandbox_id)


async def _member(platform: Platform, caller: Caller, sandbox: Sandbox) -> Member:
    await sandboxes.data_plane_address(platform, caller, sandbox.id, wait_seconds=NOT_READY_SECONDS)
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None:
        raise sandboxes.node_unreachable(sandbox)
    return member


async def _put(platform: Platform, caller: Caller, sandbox: Sandbox, row: Row, spec: TunnelSpec) -> TunnelReport:
    member = await _member(platform, caller, sandbox)
    body = PutTunnel(epoch=member.epoch, tunnel=spec, created_at_us=row.created_at)
    call = platform.nodes.put_tunnel(member.address, sandbox.id, row.id, body)
    report = await _told(platform, caller, sandbox, call)
    _note(platform, sandbox.id, row.id, report, row.created_at)
    return report


async def _told(platform: Platform, caller: Caller, sandbox: Sandbox, call: Awaitable[T]) -> T:
    """Return a node's answer, or raise what the caller is to know of its silence."""
    try:
        return await call
    except NodeProblemError as error:
        if error.code in _GONE:
            raise await sandboxes.data_plane_problem(platform, caller, sandbox.id) from error
        raise error.problem() from error
    except NodeUnreachableError as error:
        raise sandboxes.node_unreachable(sandbox) from error


async def _look(platform: Platform, sandbox: Sandbox) -> list[TunnelReport]:
    """Ask the node how the tunnels are; nothing if it does not say."""
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None or sandbox.state != SandboxState.RUNNING:
        return []
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            return await platform.nodes.tunnels(member.address, sandbox.id)
    except (NodeProblemError, NodeUnreachableError, TimeoutError):
        return []


def _shown(platform: Platform, sandbox: Sandbox, row: Row, report: TunnelReport | None) -> Tunnel:
    """Render a tunnel with what is known of it: the node's answer, else what the node last said."""
    member = platform.fleet.members.get(sandbox.node_id)
    known = NodeTunnel.model_construct(
        **store.spec_of(row).__dict__,
        id=row.id,
        public_port=report.public_port if report else _seen_port(platform, sandbox.id, row.id),
        created_at_us=row.created_at,
    )
    return tunnel_view(known, sandbox.id, member.report if member else None, report)


def _seen_port(platform: Platform, sandbox_id: str, tunnel_id: str) -> int | None:
    seen = platform.fleet.observed.get(sandbox_id)
    return next((each.public_port for each in seen.tunnels if each.id == tunnel_id), None) if seen else None


def _note(
    platform: Platform, sandbox_id: str, tunnel_id: str, report: TunnelReport | None, created_at_us: int = 0
) -> None:
    """Take in what the node's next report will say."""
    seen = platform.fleet.observed.get(sandbox_id)
    if seen is None:
        return
    tunnels = [each for each in seen.tunnels if each.id != tunnel_id]
    if report is not None:
        fields = {name: getattr(report, name) for name in TunnelSpec.model_fields}
        tunnels.append(
            NodeTunnel.model_construct(
                **fields, id=tunnel_id, public_port=report.public_port, created_at_us=created_at_us
            )
        )
    platform.fleet.observed[sandbox_id] = seen.model_copy(update={"tunnels": tunnels})
