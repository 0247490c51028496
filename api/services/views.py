"""Sandboxes as callers see them: the row, with what its node last said."""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pydantic import BaseModel, Field

from api.errors import SandboxEndedError
from api.services.tunnel_views import Tunnel, views_of
from api.store.tables import Sandbox as Row
from sandboxd.contract.ids import ImageId, SandboxId, entrypoint_process_id
from sandboxd.contract.messages import ImageRef, NodeReport, Resources, SandboxReport
from sandboxd.contract.processes import Open, Time, render_time
from sandboxd.contract.reasons import SandboxReason, after_end
from sandboxd.contract.states import DesiredState, SandboxState

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PROGRESS: Final = {
    SandboxState.PENDING: "Its node has been asked; GET it with wait_for=running.",
    SandboxState.STARTING: "Its node is starting it; GET it with wait_for=running.",
    SandboxState.LOST: "Its node is silent; it may come back.",
}


class EgressState(Open):
    """What a sandbox may reach, and whether that is in force."""

    mode: Literal["open", "blocked", "allowlist"]
    generation: int
    applied_generation: int


class SandboxImage(Open):
    """The image a sandbox was started from, pinned."""

    id: ImageId
    reference: str
    digest: str


class Sandbox(Open):
    """A sandbox. `access` to its node without the api is not offered by this version."""

    id: SandboxId
    project_id: str
    key_id: str
    name: str | None
    state: SandboxState
    reason: SandboxReason | None
    message: str | None
    desired_state: DesiredState
    generation: int
    metadata: dict[str, str]
    image: SandboxImage | None
    snapshot_id: str | None = None
    parent_id: str | None = None
    node_id: str | None
    resources: Resources
    user: str | None
    cwd: str | None
    shell: str | None
    entrypoint: list[str] | None = None
    entrypoint_process_id: str | None = None
    exit_code: int | None
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    idle_ignores_processes: bool
    on_timeout: str
    on_idle: str
    auto_resume: bool
    paused_retention_seconds: int | None
    expires_at: Time | None
    remaining_seconds: float | None
    last_active_at: Time | None
    egress: EgressState
    tunnels: list[Tunnel] = Field(default_factory=list[Tunnel])
    created_at: Time
    started_at: Time | None
    paused_at: Time | None
    ended_at: Time | None


class SandboxList(Open):
    """A page of sandboxes."""

    items: list[Sandbox]
    next_cursor: str | None


def time_of(us: int | None) -> datetime | None:
    return None if us is None else _EPOCH + timedelta(microseconds=us)


def rendered_time(us: int) -> str:
    return render_time(_EPOCH + timedelta(microseconds=us))


def view(
    row: Row, seen: SandboxReport | None, now_us: int, node: NodeReport | None = None, *, coming: str | None = None
) -> Sandbox:
    """Render a row; `seen` is what its node last said of it, `node` what it last said of itself.

    `coming` is how far the image is that it waits for.
    """
    state = SandboxState(row.state)
    ended = row.ended_at is not None
    remaining = None if row.expires_at is None or ended else max(0.0, (row.expires_at - now_us) / 1e6)
    active = None if seen is None else seen.last_active_at
    image = ImageRef.model_construct(**row.spec["image"])
    egress = EgressState.model_construct(
        mode=row.egress_mode, generation=row.egress_generation, applied_generation=row.egress_applied_generation
    )
    return Sandbox.model_construct(
        id=row.id,
        project_id=row.project_id,
        key_id=row.key_id,
        name=row.name,
        state=state,
        reason=None if row.reason is None else SandboxReason(row.reason),
        message=row.message or coming or _PROGRESS.get(state),
        desired_state=DesiredState(row.desired_state),
        generation=row.generation,
        metadata=row.labels,
        image=SandboxImage.model_construct(id=row.image_id, reference=image.reference, digest=image.digest),
        snapshot_id=None,
        parent_id=None,
        node_id=row.node_id or None,
        resources=Resources.model_construct(**row.spec["resources"]),
        user=row.user,
        cwd=row.cwd,
        shell=row.shell,
        entrypoint=row.spec.get("entrypoint"),
        entrypoint_process_id=_entrypoint_process_id(row),
        exit_code=row.exit_code,
        timeout_seconds=row.timeout_seconds,
        idle_timeout_seconds=row.idle_timeout_seconds,
        idle_ignores_processes=row.spec["idle_ignores_processes"],
        on_timeout=row.on_timeout,
        on_idle=row.on_idle,
        auto_resume=row.auto_resume,
        paused_retention_seconds=row.paused_retention_seconds,
        expires_at=time_of(row.expires_at),
        remaining_seconds=remaining,
        last_active_at=active,
        egress=egress,
        tunnels=views_of(row, seen, node),
        created_at=time_of(row.created_at),
        started_at=time_of(row.started_at),
        paused_at=time_of(row.paused_at),
        ended_at=time_of(row.ended_at),
    )


def _entrypoint_process_id(row: Row) -> str | None:
    has_one = row.spec.get("entrypoint") is not None or row.spec.get("use_image_entrypoint", False)
    return entrypoint_process_id(row.id) if has_one and row.started_at is not None else None


def render(model: BaseModel) -> bytes:
    """Return a model as JSON."""
    return model.__pydantic_serializer__.to_json(model)


def ended_problem(row: Row) -> SandboxEndedError:
    """Return why a call to a sandbox that has ended, or is being deleted, cannot be."""
    reason = SandboxReason.REQUESTED if row.ended_at is None else row.reason
    return SandboxEndedError(
        row.id,
        state=row.state,
        reason=reason,
        message=row.message,
        ended_at=rendered_time(row.ended_at or row.updated_at),
        hint=after_end(None if reason is None else SandboxReason(reason), row.spec["resources"]["memory_mib"]),
    )
