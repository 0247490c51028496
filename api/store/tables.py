"""What the database holds. Times are microseconds since 1970 UTC: exact, ordered, the same in every engine."""

from typing import Any, Final, cast

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, LargeBinary, Table
from sqlmodel import Field, SQLModel

from sandboxd.contract.states import TERMINAL, DesiredState, SandboxState

LIVE_SQL: Final = "state NOT IN ({})".format(", ".join(f"'{state}'" for state in sorted(TERMINAL)))


def one_of(column: str, values: Any) -> str:
    """Return the condition that a column has one of these values."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Project(SQLModel):
    """The wall between tenants."""

    id: str = Field(primary_key=True)
    parent_id: str | None = None
    name: str
    state: str = "active"
    defaults: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: int = Field(sa_type=BigInteger)


class ProjectTable(Project, table=True):
    """Projects."""

    __tablename__ = "projects"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (CheckConstraint("state IN ('active', 'suspended', 'deleting')", name="project_state"),)


class ApiKey(SQLModel):
    """A credential. Only the SHA-256 of its 24 bytes is here."""

    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="projects.id", index=True)
    name: str
    kind: str
    hash: bytes = Field(sa_type=LargeBinary, unique=True)
    prefix: str
    scopes: list[str] = Field(sa_type=JSON)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at: int | None = Field(default=None, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)


class ApiKeyTable(ApiKey, table=True):
    """API keys."""

    __tablename__ = "api_keys"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (CheckConstraint("kind IN ('project', 'operator')", name="api_key_kind"),)


class Sandbox(SQLModel):
    """What was asked for and what was last seen. `spec` is without env: that is never stored."""

    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="projects.id")
    key_id: str
    name: str | None = None
    state: str
    reason: str | None = None
    message: str | None = None
    desired_state: str
    generation: int = 1
    labels: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    """The caller's `metadata`, a name SQLAlchemy keeps for itself."""
    image_id: str
    node_id: str = Field(index=True)
    spec: dict[str, Any] = Field(sa_type=JSON)
    user: str | None = None
    cwd: str | None = None
    shell: str | None = None
    exit_code: int | None = None
    timeout_seconds: int | None = Field(default=None, sa_type=BigInteger)
    idle_timeout_seconds: int | None = Field(default=None, sa_type=BigInteger)
    on_timeout: str = "stop"
    on_idle: str = "stop"
    auto_resume: bool = False
    paused_retention_seconds: int | None = Field(default=None, sa_type=BigInteger)
    egress_mode: str
    egress_generation: int = 1
    """Of the policy in `spec`; counts apart from `generation`."""
    egress_applied_generation: int = 0
    egress_applied_at: int | None = Field(default=None, sa_type=BigInteger)
    egress_asked_at: int = Field(default=0, sa_type=BigInteger)
    egress_closed: bool = False
    """The node could not make a policy true: nothing is reached."""
    one_shot: bool = False
    """Made by `POST /v1/run`: must not outlive the api that waits for it."""
    incarnation: str
    """The start of the api that has its env."""
    start_deadline_at: int = Field(sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)
    updated_at: int = Field(sa_type=BigInteger)
    started_at: int | None = Field(default=None, sa_type=BigInteger)
    paused_at: int | None = Field(default=None, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)
    lost_at: int | None = Field(default=None, sa_type=BigInteger)


class SandboxTable(Sandbox, table=True):
    """Sandboxes."""

    __tablename__ = "sandboxes"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (
        CheckConstraint(one_of("state", SandboxState), name="sandbox_state"),
        CheckConstraint(one_of("desired_state", DesiredState), name="sandbox_desired_state"),
        CheckConstraint(f"({LIVE_SQL}) = (ended_at IS NULL)", name="sandbox_ended_at"),
        CheckConstraint("(state = 'lost') = (lost_at IS NOT NULL)", name="sandbox_lost_at"),
        CheckConstraint("generation >= 1", name="sandbox_generation"),
        Index("sandboxes_by_time", "project_id", "created_at", "id"),
    )


class Tunnel(SQLModel):
    """A way in that was asked for. What has become of it is the node's to say."""

    id: str = Field(primary_key=True)
    sandbox_id: str = Field(foreign_key="sandboxes.id", ondelete="CASCADE")
    project_id: str = Field(foreign_key="projects.id", index=True)
    port: int
    """0: every port that has no tunnel of its own."""
    kind: str
    visibility: str
    allow_cidrs: list[str] = Field(default_factory=list, sa_type=JSON)
    server_name: str | None = None
    created_at: int = Field(sa_type=BigInteger)


class TunnelTable(Tunnel, table=True):
    """Tunnels."""

    __tablename__ = "tunnels"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (
        CheckConstraint("kind IN ('tcp', 'udp', 'tls', 'http')", name="tunnel_kind"),
        CheckConstraint("visibility IN ('token', 'public')", name="tunnel_visibility"),
        Index("tunnels_to", "sandbox_id", "kind", "port", unique=True),
    )


class IdempotencyKey(SQLModel):
    """That a request was made. No body: a keyed hash of it, and the id of what came out."""

    project_id: str = Field(foreign_key="projects.id", primary_key=True)
    key: str = Field(primary_key=True)
    fingerprint: bytes = Field(sa_type=LargeBinary)
    operation: str
    resource_id: str
    state: str
    status: int | None = None
    incarnation: str
    created_at: int = Field(sa_type=BigInteger, index=True)


class IdempotencyKeyTable(IdempotencyKey, table=True):
    """Idempotency keys."""

    __tablename__ = "idempotency_keys"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (CheckConstraint("state IN ('in_flight', 'done')", name="idempotency_key_state"),)


class Node(SQLModel):
    """A node that has reported."""

    id: str = Field(primary_key=True)
    name: str
    address: str
    state: str = "ready"
    epoch: int
    boot_id: str
    incarnation: str
    version: str
    last_seen_at: int = Field(sa_type=BigInteger)


class NodeTable(Node, table=True):
    """Nodes."""

    __tablename__ = "nodes"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (CheckConstraint("state IN ('ready', 'lost')", name="node_state"),)


def table_of(model: type[SQLModel]) -> Table:
    """Return the table of a model."""
    return cast("Table", getattr(model, "__table__"))  # noqa: B009 - the attribute is made by SQLModel, unseen by types


PROJECTS: Final = table_of(ProjectTable)
API_KEYS: Final = table_of(ApiKeyTable)
SANDBOXES: Final = table_of(SandboxTable)
TUNNELS: Final = table_of(TunnelTable)
IDEMPOTENCY_KEYS: Final = table_of(IdempotencyKeyTable)
NODES: Final = table_of(NodeTable)
METADATA: Final = SQLModel.metadata

_c = SANDBOXES.c
Index(
    "sandboxes_live",
    _c.project_id,
    _c.state,
    sqlite_where=_c.ended_at.is_(None),
    postgresql_where=_c.ended_at.is_(None),
)
Index(
    "sandboxes_live_name",
    _c.project_id,
    _c.name,
    unique=True,
    sqlite_where=_c.ended_at.is_(None),
    postgresql_where=_c.ended_at.is_(None),
)
Index("sandboxes_ended", _c.ended_at, sqlite_where=_c.ended_at.is_not(None), postgresql_where=_c.ended_at.is_not(None))
