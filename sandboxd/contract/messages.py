"""What the api asks of a node and what a node reports."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from netpolicy.credentials import Credentials
from netpolicy.policy import (
    MAX_BANDWIDTH,
    MAX_CONNECTION_RATE,
    MAX_CONNECTIONS,
    MAX_INJECTS,
    MAX_RULES,
    MIN_BANDWIDTH,
    Policy,
    parse_policy,
)
from netpolicy.rules import MAX_RULE
from netpolicy.verdict import Verdict
from sandboxd.contract.ids import ImageId, NodeId, SandboxId
from sandboxd.contract.processes import MAX_TIMEOUT_SECONDS, Argument, Open, PathText, Strict, Time, UserName
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState
from sandboxd.contract.trust import GatewayInfo, Trust
from sandboxd.contract.tunnels import MAX_TUNNELS, NodeTunnel

Ordinal = Annotated[int, Field(le=2**53)]
# Numbers without a bound would end the node agent where they meet a clock or the ledger.
Seconds = Annotated[int, Field(le=MAX_TIMEOUT_SECONDS)]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,62})$")]


MAX_PEM = 16_384
MAX_VALUE_BASE64 = 87_384
"""A secret of 64 KiB."""
MAX_ENTRYPOINT_BYTES = 65_536
"""Shown with the sandbox, so it must stay small."""


def _entrypoint(argv: list[str]) -> list[str]:
    if not argv[0]:
        msg = "the command is empty"
        raise ValueError(msg)
    if sum(len(argument.encode()) + 1 for argument in argv) > MAX_ENTRYPOINT_BYTES:
        msg = f"longer than {MAX_ENTRYPOINT_BYTES} bytes in all"
        raise ValueError(msg)
    return argv


Entrypoint = Annotated[list[Argument], Field(min_length=1, max_length=4096), AfterValidator(_entrypoint)]
"""A command that the sandbox is there for."""


class Resources(Strict):
    """What a sandbox may use."""

    cpus: float = Field(default=1, ge=0.1, le=1024)
    memory_mib: int = Field(default=1024, ge=64, le=16_777_216)
    disk_mib: int = Field(default=8192, ge=64, le=1_073_741_824)
    max_processes: int = Field(default=1024, ge=16, le=32768)


class ImageRef(Strict):
    """An image, pinned."""

    id: ImageId
    reference: str
    digest: str


class InjectSpec(Strict):
    """A secret put into requests to a host; the value is not here."""

    host: Annotated[str, Field(max_length=1024)]
    header: Annotated[str, Field(max_length=128)]
    value_from: dict[Literal["secret"], Annotated[str, Field(max_length=64)]]
    format: Annotated[str, Field(max_length=1024)] = "{value}"


class EgressLimits(Strict):
    """How much at once and how fast."""

    connections: int = Field(default=1024, ge=1, le=MAX_CONNECTIONS)
    new_connections_per_second: int = Field(default=200, ge=1, le=MAX_CONNECTION_RATE)
    up_bytes_per_second: int | None = Field(default=None, ge=MIN_BANDWIDTH, le=MAX_BANDWIDTH)
    down_bytes_per_second: int | None = Field(default=None, ge=MIN_BANDWIDTH, le=MAX_BANDWIDTH)


RuleText = Annotated[str, Field(max_length=MAX_RULE)]


class EgressRules(Strict):
    """What a sandbox may reach, as a canonical document. `open`: public addresses; `blocked`: nothing."""

    mode: Literal["open", "blocked", "allowlist"]
    allow: list[RuleText] = Field(default_factory=list, max_length=MAX_RULES)
    deny: list[RuleText] = Field(default_factory=list, max_length=MAX_RULES)
    inject: list[InjectSpec] = Field(default_factory=list[InjectSpec], max_length=MAX_INJECTS)
    limits: EgressLimits = EgressLimits()

    @model_validator(mode="after")
    def _is_a_policy(self) -> Self:
        self.policy()
        return self

    def policy(self) -> Policy:
        """Return what it means; PolicyRefusedError where it means nothing."""
        return parse_policy(self.model_dump())


class EgressSpec(EgressRules):
    """A policy, and how many the sandbox has had before it."""

    generation: Ordinal = Field(default=1, ge=1)


class CredentialsSpec(Strict):
    """What the node puts into requests of one sandbox; in memory only, never in a ledger, a log or a report."""

    ca_certificate: Annotated[str, Field(max_length=MAX_PEM)] = Field(repr=False)
    """Of the project's authority."""
    ca_key: Annotated[str, Field(max_length=MAX_PEM)] = Field(repr=False)
    values: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=MAX_VALUE_BASE64)]] = Field(
        max_length=MAX_INJECTS, repr=False
    )
    """In base64, by secret's name."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        self.credentials()
        return self

    def credentials(self) -> Credentials:
        """Return them; ValueError where a value is no base64 of text."""
        return Credentials.from_json(self.model_dump())


class PutEgress(Strict):
    """Body of `PUT /node/v1/sandboxes/{id}/egress`: the policy from now on.

    Refused with `stale_generation` when the node knows a newer one. The present one again, with credentials, is how a
    node that has been restarted gets them.
    """

    epoch: Ordinal = Field(ge=0)
    egress: EgressSpec
    credentials: CredentialsSpec | None = Field(default=None, repr=False)
    """Of what the policy injects. None: those that the node has already, if it has any."""


class EgressReport(Open):
    """What a node says of a sandbox's policy."""

    generation: int
    applied_generation: int
    """The policy that is true; where it is not `generation`, nothing is reached or the change is under way."""
    state: Literal["applied", "applying", "closed"]
    closed_connections: int = 0
    """What the last change of this call has ended."""


NEVER_STORED = frozenset({"env", "secret_env"})
"""Fields of a SandboxSpec that are in no database, ledger or bundle."""


class SandboxSpec(Strict):
    """Everything a node needs to start a sandbox. `env` is handed to the guest and never stored by the node."""

    image: ImageRef
    env: dict[str, str] = Field(default_factory=dict)
    secret_env: dict[str, str] = Field(default_factory=dict, repr=False)
    """Values, over `env`, of processes that want them; handed on and kept like `env`."""
    user: UserName | None = None
    cwd: PathText | None = None
    hostname: HostName = "sandbox"
    entrypoint: Entrypoint | None = None
    """Started after the guest is; its end is the sandbox's. None: nothing is run."""
    use_image_entrypoint: bool = False
    """Take the image's entrypoint and cmd; the node fills in `entrypoint`."""
    resources: Resources = Resources()
    egress: EgressSpec = EgressSpec(mode="blocked")
    tunnels: list[NodeTunnel] = Field(default_factory=list[NodeTunnel], max_length=MAX_TUNNELS)
    """Open before anything of it runs; the node picks the public ports."""
    timeout_seconds: Seconds | None = Field(default=3600, ge=1)
    idle_timeout_seconds: Seconds | None = Field(default=None, ge=10)
    idle_ignores_processes: bool = False


class EnsureSandbox(Strict):
    """Body of `PUT /node/v1/sandboxes/{id}`: make it so, once, however often it is asked.

    An older `generation` than the node has carried out is refused with `stale_generation`, and so is an `epoch` below
    the node's own: both mean that somebody newer has decided since.
    """

    generation: Ordinal = Field(ge=1)
    epoch: Ordinal = Field(ge=0)
    deadline_seconds: float = Field(gt=0, le=300)
    """Time the node has to bring it to `running`; past it everything is undone."""
    spec: SandboxSpec
    credentials: CredentialsSpec | None = Field(default=None, repr=False)
    """Of what its policy injects."""


class PatchSandbox(Strict):
    """Body of `PATCH /node/v1/sandboxes/{id}`. Only the fields that are set are changed."""

    generation: Ordinal = Field(ge=1)
    epoch: Ordinal = Field(ge=0)
    timeout_seconds: Seconds | None = Field(default=None, ge=1)
    """From now; null: no limit."""
    extend_seconds: Seconds | None = Field(default=None, ge=1)
    """deadline = max(old, now + n)."""
    idle_timeout_seconds: Seconds | None = Field(default=None, ge=10)


class ExplainOnNode(Strict):
    """Body of `POST /node/v1/sandboxes/{id}/egress/explain`."""

    destination: RuleText
    egress: EgressSpec


class EgressExplained(Open):
    """What a node says of a destination."""

    verdict: Literal["allow", "deny"]
    source: Literal["policy", "platform", "limit"]
    rule: str | None = None
    reason: str | None = None


def explained(given: Verdict) -> EgressExplained:
    """Render a verdict."""
    verdict = "allow" if given.allowed else "deny"
    return EgressExplained(verdict=verdict, source=given.source, rule=str(given.rule), reason=given.reason)


class SandboxReport(Open):
    """What a node says of one of its sandboxes."""

    id: SandboxId
    generation: int
    state: SandboxState
    reason: SandboxReason | None = None
    message: str | None = None
    exit_code: int | None = None
    user: str | None = None
    cwd: str | None = None
    shell: str | None = None
    entrypoint: list[str] | None = None
    """Of the image, where that was asked for."""
    address: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    expires_at: Time | None = None
    remaining_seconds: float | None = None
    last_active_at: Time | None = None
    tunnels: list[NodeTunnel] = Field(default_factory=list[NodeTunnel])
    """Open now, with their public ports."""
    cpu_used_seconds: float = 0
    memory_peak_bytes: int = 0
    egress_generation: int | None = None
    """Of the policy that is true."""
    egress_closed: bool = False
    """A change of it has failed since: nothing is reached until one succeeds."""
    credentials_missing: bool = False
    """Its policy injects, and the node was not told what, or not all of it: those hosts are closed until it is."""


class Capacity(Open):
    """Amounts of a node."""

    cpus: float
    memory_mib: int
    disk_mib: int
    sandboxes: int


class NodeImage(Open):
    """An image a node can start from at once."""

    id: ImageId
    digest: str
    names: list[str]
    size_bytes: int


class RuntimeInfo(Open):
    """What runs the sandboxes."""

    name: str
    version: str
    platform: str


class ReadySandboxes(Open):
    """How many sandboxes of a kind a node has ready: booted, blocked, nobody's."""

    image_id: ImageId
    memory_mib: int
    processors: int
    disk_mib: int
    ready: int


class PoolReport(Open):
    """A node's ready pool. The counts are since the node agent's start."""

    ready: list[ReadySandboxes] = Field(default_factory=list[ReadySandboxes])
    hits: int = 0
    misses: int = 0
    boots: int = 0
    boot_failures: int = 0
    claim_failures: int = 0


class NodeReport(Open):
    """Body of `POST /internal/v1/node-reports`: what a node has and runs.

    `sandboxes` is the full list when `full` is true: a sandbox the api believes here and that is not in it is gone.
    Ended sandboxes stay in the reports until an answer acknowledges them.
    """

    node_id: NodeId
    name: str
    contract_version: int
    version: str
    runtime: RuntimeInfo
    epoch: int
    boot_id: str
    sequence: int
    """Rises with each report of one start of the node; the api drops an older one that comes late."""
    incarnation: str
    """Differs for each start of the node agent; sequences are compared within one."""
    full: bool
    address: str
    """Where the api calls the node: `unix:<path>` on one box."""
    tunnel_host: str | None = None
    """The name or address at which the node's public ports are reached."""
    capacity: Capacity
    used: Capacity
    images: list[NodeImage]
    pool: PoolReport = PoolReport()
    sandboxes: list[SandboxReport]
    gateway: GatewayInfo | None = None
    """Where clients reach the node itself; null while its gateway is away."""
    trust_revision: str = ""
    """What the node believes of tokens; the answer says what it should, if that is something else."""


class ReportAnswer(Open):
    """What the api answers to a report."""

    epoch: int
    acknowledged: list[SandboxId] = Field(default_factory=list[str])
    """Ended sandboxes whose end is recorded: the node may forget them."""
    bury: list[SandboxId] = Field(default_factory=list[str])
    """Sandboxes that must not run any more (deleted, or lost longer than the grace)."""
    trust: Trust | None = None
    """Null: what the node believes of tokens is right."""
