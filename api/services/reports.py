"""What nodes say, applied: rows guarded by the table of transitions, absences by being seen twice."""

from collections.abc import Iterable, Sequence

import structlog

from api.services.fleet import Member, Promises
from api.services.platform import Platform
from api.store import nodes as node_store
from api.store import sandboxes as store
from api.store.sandboxes import Applied
from api.store.tables import Node
from sandboxd.contract.messages import NodeReport, ReportAnswer, SandboxReport
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import TERMINAL, SandboxState

_log = structlog.get_logger()


async def load_nodes(platform: Platform) -> None:
    """Remember the nodes of earlier starts: until they report they are neither ready nor silent."""
    for node in await platform.database.read(node_store.all_any_project):
        platform.fleet.members[node.id] = Member(
            id=node.id,
            address=node.address,
            epoch=node.epoch,
            boot_id=node.boot_id,
            incarnation=node.incarnation,
            last_seen=platform.sources.monotonic(),
            silent=node.state == "lost",
        )


async def receive(platform: Platform, report: NodeReport) -> ReportAnswer:
    """Take in a report and say what the node may forget and what it must bury."""
    member = platform.fleet.members.get(report.node_id)
    if member is not None and member.incarnation == report.incarnation and report.sequence <= member.sequence:
        platform.metrics.reports.labels("late").inc()
        return ReportAnswer(epoch=member.epoch)
    if member is None or _is_news(member, report):
        member = await _register(platform, member, report)
    member.last_seen = platform.sources.monotonic()
    member.sequence = report.sequence
    member.report = report
    member.made = {image: since for image, since in member.made.items() if report.sequence <= since + 1}
    for sandbox in report.sandboxes:
        member.promised.drop(sandbox.id)
        member.missing.pop(sandbox.id, None)
    if report.full:
        member.refusals = 0
    news = [sandbox for sandbox in report.sandboxes if member.applied.get(sandbox.id) != _signature(sandbox)]
    platform.fleet.saw(report.sandboxes)
    applied = await apply(platform, report.node_id, news)
    if report.full:
        await _end_absent(platform, member, report)
    platform.metrics.reports.labels("applied").inc()
    believed = platform.trust
    return ReportAnswer(
        epoch=member.epoch,
        trust=None if believed.revision == report.trust_revision else believed,
        acknowledged=[row.sandbox_id for row in applied if row.verdict == "ended"],
        bury=[row.sandbox_id for row in applied if row.verdict == "bury"],
    )


def _is_news(member: Member, report: NodeReport) -> bool:
    return (
        member.silent
        or member.report is None
        or member.incarnation != report.incarnation
        or member.address != report.address
        or report.epoch > member.epoch
    )


async def _register(platform: Platform, member: Member | None, report: NodeReport) -> Member:
    """Write down a node that is new, was restarted, moved, or has come back."""
    epoch = max(member.epoch if member else 1, report.epoch)
    node = Node(
        id=report.node_id,
        name=report.name,
        address=report.address,
        state="ready",
        epoch=epoch,
        boot_id=report.boot_id,
        incarnation=report.incarnation,
        version=report.version,
        last_seen_at=platform.sources.now_us(),
    )
    await platform.database.write(node_store.save_any_project, node)
    if member is None:
        _log.info("node joined", node=report.node_id, name=report.name)
    elif member.silent:
        _log.info("node came back", node=report.node_id)
    fresh = Member(
        id=report.node_id,
        address=report.address,
        epoch=epoch,
        boot_id=report.boot_id,
        incarnation=report.incarnation,
        last_seen=platform.sources.monotonic(),
        silent=False,
        promised=member.promised if member else Promises(),
    )
    platform.fleet.members[report.node_id] = fresh
    return fresh


def _signature(report: SandboxReport) -> tuple[object, ...]:
    """Return what of a report is written down; times to the second, because nodes render them anew each time."""
    expires = None if report.expires_at is None else round(report.expires_at.timestamp())
    said = (report.state, report.reason, report.message, report.generation, report.exit_code, report.user)
    return (*said, expires, report.egress_generation, report.egress_closed)


def know(platform: Platform, node_id: str, report: SandboxReport) -> None:
    """Remember that a report is on record, or on its way there: the same again is no news."""
    if (member := platform.fleet.members.get(node_id)) is not None:
        member.applied[report.id] = _signature(report)
        member.missing.pop(report.id, None)


async def apply(platform: Platform, node_id: str, reports: Sequence[SandboxReport]) -> list[Applied]:
    """Write down what a node says of sandboxes, and wake who waits."""
    if not reports:
        return []
    now_us = platform.sources.now_us()
    applied = await platform.database.write(store.apply_reports_any_project, node_id, reports, now_us)
    for report, row in zip(reports, applied, strict=True):
        note(platform, row)
        if row.verdict in {"changed", "same"}:
            know(platform, node_id, report)
    return applied


def note(platform: Platform, applied: Applied) -> None:
    """Count an ending and wake who waits for a change."""
    sandbox = applied.sandbox
    if sandbox is not None:
        platform.fleet.note(sandbox)
    if applied.verdict == "ended":
        node_id = "" if sandbox is None else sandbox.node_id
        platform.fleet.forget(applied.sandbox_id, node_id)
        if sandbox is not None:
            platform.metrics.ends.labels(sandbox.state, sandbox.reason).inc()
    if applied.verdict in {"changed", "ended"}:
        platform.changes.notify(applied.sandbox_id)


async def _end_absent(platform: Platform, member: Member, report: NodeReport) -> None:
    """End what a node once had and does not list any more, when two full reports in a row lack it.

    One is not enough: it may have been written before the node answered the ensure that made the sandbox.
    """
    listed = {sandbox.id for sandbox in report.sandboxes}
    taken = await platform.database.read(store.taken_by_any_project, member.id)
    absent = [sandbox_id for sandbox_id in taken if sandbox_id not in listed and sandbox_id not in platform.starting]
    gone = [sandbox_id for sandbox_id in absent if member.missing.get(sandbox_id, report.sequence) < report.sequence]
    for sandbox_id in absent:
        member.missing.setdefault(sandbox_id, report.sequence)
    await end_all(platform, gone, SandboxReason.RUNTIME_FAILED, "Its node does not know it any more.")


async def end_all(
    platform: Platform,
    sandbox_ids: Iterable[str],
    reason: SandboxReason,
    message: str | None,
    exit_code: int | None = None,
) -> None:
    """End sandboxes by the api's own knowledge; what was asked to stop is `stopped`, the rest `failed`."""
    for sandbox_id in sandbox_ids:
        sandbox = await platform.database.write(
            store.end_any_project,
            sandbox_id,
            state=SandboxState.STOPPED if reason == SandboxReason.REQUESTED else SandboxState.FAILED,
            reason=reason,
            message=message,
            exit_code=exit_code,
            now_us=platform.sources.now_us(),
        )
        note(platform, Applied(sandbox_id, "ended", sandbox))
        if sandbox is not None and sandbox.state in TERMINAL:
            _log.info("sandbox ended", sandbox=sandbox_id, state=sandbox.state, reason=sandbox.reason)
