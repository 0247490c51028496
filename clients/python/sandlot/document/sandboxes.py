"""What the calls of sandboxes take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict

from sandlot.document.shared import EgressPolicy, Resources, RunSpec, StartError, Tunnel, TunnelSpec


class Access(TypedDict, total=False):
    url: str | None
    token: str
    expires_at: str
    scopes: list[str]


class ResourcesRequest(TypedDict, total=False):
    cpus: float
    memory_mib: int
    disk_mib: int
    max_processes: int


class CreateSandbox(TypedDict, total=False):
    image: str
    use_image_entrypoint: bool
    env: dict[str, str]
    secret_env: dict[str, str]
    metadata: dict[str, str]
    user: str | None
    cwd: str | None
    resources: ResourcesRequest
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    idle_ignores_processes: bool
    on_timeout: str
    on_idle: str
    paused_retention_seconds: int | None
    egress: EgressPolicy | None
    name: str | None
    if_exists: str
    entrypoint: list[str] | None
    tunnels: list[TunnelSpec]
    wait_seconds: float


class EgressState(TypedDict, total=False):
    mode: str
    generation: int
    applied_generation: int


class SandboxImage(TypedDict, total=False):
    id: str
    reference: str
    digest: str


class CreatedSandbox(TypedDict, total=False):
    id: str
    project_id: str
    key_id: str
    name: str | None
    state: str
    reason: str | None
    message: str | None
    desired_state: str
    generation: int
    metadata: dict[str, str]
    image: SandboxImage | None
    snapshot_id: str | None
    parent_id: str | None
    node_id: str | None
    resources: Resources
    user: str | None
    cwd: str | None
    shell: str | None
    entrypoint: list[str] | None
    entrypoint_process_id: str | None
    exit_code: int | None
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    idle_ignores_processes: bool
    on_timeout: str
    on_idle: str
    auto_resume: bool
    paused_retention_seconds: int | None
    expires_at: str | None
    remaining_seconds: float | None
    last_active_at: str | None
    egress: EgressState
    tunnels: list[Tunnel]
    created_at: str
    started_at: str | None
    paused_at: str | None
    ended_at: str | None
    access: Access | None


class DeleteFilter(TypedDict, total=False):
    state: list[str] | None
    metadata: dict[str, str] | None
    image_id: str | None
    created_before: str | None


class DeleteSandboxes(TypedDict, total=False):
    filter: DeleteFilter
    dry_run: bool


class DeletedSandboxes(TypedDict, total=False):
    matched: int
    sandbox_ids: list[str]


class ExtendSandbox(TypedDict, total=False):
    timeout_seconds: int


class PatchSandboxRequest(TypedDict, total=False):
    name: str | None
    metadata: dict[str, str | None] | None
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    on_timeout: str
    on_idle: str
    paused_retention_seconds: int | None


class RunFile(TypedDict, total=False):
    path: str
    text: str | None
    base64: str | None


class RunOnce(TypedDict, total=False):
    image: str
    env: dict[str, str]
    secret_env: dict[str, str]
    metadata: dict[str, str]
    user: str | None
    cwd: str | None
    resources: ResourcesRequest
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    idle_ignores_processes: bool
    on_timeout: str
    on_idle: str
    paused_retention_seconds: int | None
    egress: EgressPolicy | None
    command: RunSpec
    files: list[RunFile]
    wait_seconds: float


class RunOnceResult(TypedDict, total=False):
    process_id: str
    running: bool
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    hint: str | None
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    stdout_omitted_bytes: int
    stderr_omitted_bytes: int
    lossy: bool
    next_seq: int
    start_error: StartError | None
    egress_denied: list[dict[str, Any]]
    started_at: str
    ended_at: str | None
    duration_seconds: float
    sandbox_id: str
    sandbox_reason: str | None


class Sample(TypedDict, total=False):
    at: str
    cpu_used_seconds: float
    cpu_used_percent: float
    cpus: float
    memory_used_bytes: int
    memory_cache_bytes: int
    memory_limit_bytes: int
    disk_used_bytes: int
    disk_limit_bytes: int
    processes: int
    egress_bytes: int
    ingress_bytes: int


class SampleList(TypedDict, total=False):
    items: list[Sample]
    next_cursor: str | None


class Sandbox(TypedDict, total=False):
    id: str
    project_id: str
    key_id: str
    name: str | None
    state: str
    reason: str | None
    message: str | None
    desired_state: str
    generation: int
    metadata: dict[str, str]
    image: SandboxImage | None
    snapshot_id: str | None
    parent_id: str | None
    node_id: str | None
    resources: Resources
    user: str | None
    cwd: str | None
    shell: str | None
    entrypoint: list[str] | None
    entrypoint_process_id: str | None
    exit_code: int | None
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    idle_ignores_processes: bool
    on_timeout: str
    on_idle: str
    auto_resume: bool
    paused_retention_seconds: int | None
    expires_at: str | None
    remaining_seconds: float | None
    last_active_at: str | None
    egress: EgressState
    tunnels: list[Tunnel]
    created_at: str
    started_at: str | None
    paused_at: str | None
    ended_at: str | None


class SandboxList(TypedDict, total=False):
    items: list[Sandbox]
    next_cursor: str | None
