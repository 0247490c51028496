"""What the objects of the API hold. Derived by generate.py: change the API instead.

Every field may be absent: an older server does not have it. Enumerations are text: a newer server has more values.
"""

from typing import Any, TypedDict


class Access(TypedDict, total=False):
    url: str | None
    token: str
    expires_at: str
    scopes: list[str]


class ArchiveResult(TypedDict, total=False):
    files: int
    directories: int
    symlinks: int
    bytes: int


class ArchiveSource(TypedDict, total=False):
    upload: str
    format: str


class EgressLimits(TypedDict, total=False):
    connections: int
    new_connections_per_second: int
    up_bytes_per_second: int | None
    down_bytes_per_second: int | None


class InjectSpec(TypedDict, total=False):
    host: str
    header: str
    value_from: dict[str, str]
    format: str


class EgressSpec(TypedDict, total=False):
    mode: str
    allow: list[str]
    deny: list[str]
    inject: list[InjectSpec]
    limits: EgressLimits
    generation: int


class Resources(TypedDict, total=False):
    cpus: float
    memory_mib: int
    disk_mib: int
    max_processes: int


CopyStep = TypedDict("CopyStep", {"from": str, "to": str, "mode": str | None, "owner": str | None}, total=False)


class Step(TypedDict, total=False):
    run: str | list[str] | None
    copy: CopyStep | None
    env: dict[str, str] | None
    workdir: str | None
    user: str | None
    pip_install: list[str] | None
    apt_install: list[str] | None
    npm_install: list[str] | None


Build = TypedDict(
    "Build",
    {
        "steps": list[Step] | None,
        "from": str | None,
        "dockerfile": str | None,
        "build_args": dict[str, str],
        "target": str | None,
        "context": str | None,
        "resources": Resources,
        "egress": EgressSpec | None,
        "secret_env": dict[str, str],
        "no_cache": bool,
        "timeout_seconds": int,
    },
    total=False,
)


class CallerView(TypedDict, total=False):
    id: str
    name: str
    kind: str


class ShownPolicy(TypedDict, total=False):
    mode: str
    allow: list[str]
    deny: list[str]
    inject: list[dict[str, Any]]
    limits: EgressLimits


class ChangedEgress(TypedDict, total=False):
    policy: ShownPolicy
    generation: int
    applied_generation: int
    applied_at: str | None
    state: str
    closed_connections: int


class Limits(TypedDict, total=False):
    connections: int
    new_connections_per_second: int
    up_bytes_per_second: int | None
    down_bytes_per_second: int | None


class EgressPolicy(TypedDict, total=False):
    mode: str
    allow: list[str]
    deny: list[str]
    limits: Limits


class ResourcesRequest(TypedDict, total=False):
    cpus: float
    memory_mib: int
    disk_mib: int
    max_processes: int


class TunnelSpec(TypedDict, total=False):
    port: int | None
    kind: str
    visibility: str
    allow_cidrs: list[str]
    server_name: str | None


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


class CreateToken(TypedDict, total=False):
    scopes: list[str]
    expires_in_seconds: int
    port: int | None
    path: str | None
    identity: dict[str, Any] | None


class EgressState(TypedDict, total=False):
    mode: str
    generation: int
    applied_generation: int


class SandboxImage(TypedDict, total=False):
    id: str
    reference: str
    digest: str


class Tunnel(TypedDict, total=False):
    id: str
    sandbox_id: str
    port: int | None
    kind: str
    visibility: str
    allow_cidrs: list[str]
    server_name: str | None
    state: str
    reason: str | None
    message: str | None
    host: str | None
    public_port: int | None
    url: str | None
    path_url: str | None
    in_bytes: int | None
    out_bytes: int | None
    created_at: str


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


class Decision(TypedDict, total=False):
    cursor: str
    first_at: str
    last_at: str
    count: int
    verdict: str
    source: str
    rule: str | None
    reason: str | None
    name: str | None
    address: str | None
    port: int | None
    protocol: str | None
    via: str


class DecisionList(TypedDict, total=False):
    items: list[Decision]
    next_cursor: str | None


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


class DirectorySpec(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    user: str | None
    mode: str | None
    parents: bool


class Egress(TypedDict, total=False):
    policy: ShownPolicy
    generation: int
    applied_generation: int
    applied_at: str | None
    state: str


class EgressExplanation(TypedDict, total=False):
    verdict: str
    source: str
    rule: str | None
    reason: str | None
    hint: str | None


class ErrorPage(TypedDict, total=False):
    code: str
    status: int
    title: str
    retryable: bool
    hint: str


class ExplainEgress(TypedDict, total=False):
    destination: str
    policy: EgressPolicy | None


class ExtendSandbox(TypedDict, total=False):
    timeout_seconds: int


class FieldError(TypedDict, total=False):
    path: str
    code: str
    message: str


class FileInfo(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    name: str
    type: str
    size_bytes: int
    mode: str
    uid: int
    gid: int
    owner: str
    group: str
    modified_at: str
    symlink_target: str | None
    symlink_target_base64: str | None
    etag: str


class FileList(TypedDict, total=False):
    items: list[FileInfo]
    next_cursor: str | None


class FilePatch(TypedDict, total=False):
    path: str | None
    path_base64: str | None
    user: str | None
    mode: str | None
    owner: str | None
    group: str | None
    modified_at: str | None
    recursive: bool


class Gateway(TypedDict, total=False):
    domain: str | None
    url: str | None


class GpuRequest(TypedDict, total=False):
    model: str
    count: int


class ImageDefaults(TypedDict, total=False):
    env: dict[str, str]
    entrypoint: list[str]
    cmd: list[str]
    user: str | None
    cwd: str | None
    labels: dict[str, str]
    ports: list[str]


class ImageProgress(TypedDict, total=False):
    done_bytes: int
    total_bytes: int


class StepRecord(TypedDict, total=False):
    index: int
    text: str
    state: str
    cached: bool
    exit_code: int | None
    started_at: str | None
    ended_at: str | None


class Image(TypedDict, total=False):
    id: str
    project_id: str | None
    state: str
    reason: str | None
    message: str | None
    source: dict[str, Any]
    reference: str | None
    digest: str | None
    source_digest: str | None
    platform: str | None
    config: ImageDefaults
    tags: list[str]
    visibility: str
    size_bytes: int | None
    unique_bytes: int | None
    dropped: dict[str, int]
    progress: ImageProgress | None
    steps: list[StepRecord] | None
    metadata: dict[str, str]
    generation: int
    created_at: str | None
    ready_at: str | None
    last_used_at: str | None


class ImageList(TypedDict, total=False):
    items: list[Image]
    next_cursor: str | None


class ImageOverrides(TypedDict, total=False):
    env: dict[str, str] | None
    entrypoint: list[str] | None
    cmd: list[str] | None
    user: str | None
    cwd: str | None


class RegistryImage(TypedDict, total=False):
    reference: str
    platform: str
    username: str | None
    password_secret: str | None


class SandboxSource(TypedDict, total=False):
    sandbox_id: str
    exclude: list[str]


class SnapshotSource(TypedDict, total=False):
    snapshot_id: str


class ImageSpec(TypedDict, total=False):
    registry: RegistryImage | None
    archive: ArchiveSource | None
    build: Build | None
    sandbox: SandboxSource | None
    snapshot: SnapshotSource | None
    tags: list[str]
    visibility: str
    config: ImageOverrides | None
    metadata: dict[str, str]
    wait_seconds: float


class InjectRule(TypedDict, total=False):
    host: str
    header: str
    value_from: dict[str, str]
    format: str


class Party(TypedDict, total=False):
    id: str
    name: str


class Me(TypedDict, total=False):
    caller: CallerView
    project: Party
    scopes: list[str]
    restrictions: dict[str, Any]
    features: list[str]
    limits: dict[str, int]
    gateway: Gateway
    version: str
    at: str


MoveSpec = TypedDict(
    "MoveSpec",
    {
        "from": str | None,
        "from_base64": str | None,
        "to": str | None,
        "to_base64": str | None,
        "overwrite": bool,
        "user": str | None,
    },
    total=False,
)


class OutputPolicy(TypedDict, total=False):
    mode: str
    ring_bytes: int
    limit_bytes: int | None


class PatchImage(TypedDict, total=False):
    visibility: str
    metadata: dict[str, str | None] | None


class PatchSandboxRequest(TypedDict, total=False):
    name: str | None
    metadata: dict[str, str | None] | None
    timeout_seconds: int | None
    idle_timeout_seconds: int | None
    on_timeout: str
    on_idle: str
    paused_retention_seconds: int | None


class PatchTunnel(TypedDict, total=False):
    visibility: str
    allow_cidrs: list[str]


class Port(TypedDict, total=False):
    port: int
    protocol: str
    address: str
    pid: int | None


class PortList(TypedDict, total=False):
    items: list[Port]


class Problem(TypedDict, total=False):
    type: str
    title: str
    status: int
    detail: str
    code: str
    reason: str | None
    hint: str | None
    retryable: bool
    request_id: str
    retry_after_seconds: float | None
    trace_id: str | None
    errors: list[FieldError] | None


class StartError(TypedDict, total=False):
    code: str
    message: str


class TtySize(TypedDict, total=False):
    rows: int
    cols: int


class Process(TypedDict, total=False):
    id: str
    sandbox_id: str
    argv: list[str]
    cwd: str
    user: str
    uid: int
    gid: int
    tty: TtySize | None
    tag: str | None
    pid: int
    state: str
    exit_code: int | None
    signal: str | None
    reason: str | None
    message: str | None
    start_error: StartError | None
    timeout_seconds: float | None
    started_at: str
    ended_at: str | None
    duration_seconds: float
    cpu_used_seconds: float
    peak_memory_bytes: int
    first_seq: int
    next_seq: int
    stdout_bytes: int
    stderr_bytes: int
    stdin_offset: int
    stdin_closed: bool


class ProcessList(TypedDict, total=False):
    items: list[Process]
    next_cursor: str | None


class ProcessSpec(TypedDict, total=False):
    id: str | None
    argv: list[str] | None
    shell: str | None
    env: dict[str, str]
    with_secrets: bool
    cwd: str | None
    user: str | None
    merge_stderr: bool
    kill_grace_seconds: float
    tag: str | None
    tty: TtySize | None
    stdin: bool
    timeout_seconds: float | None
    output: OutputPolicy


class PublicKeys(TypedDict, total=False):
    keys: list[dict[str, str]]


class PutSecret(TypedDict, total=False):
    value: str | None
    value_base64: str | None
    env: bool
    hosts: list[str]


class PutTag(TypedDict, total=False):
    image_id: str


class Readiness(TypedDict, total=False):
    checks: dict[str, bool]


class ResizeSpec(TypedDict, total=False):
    rows: int
    cols: int


class RunFile(TypedDict, total=False):
    path: str
    text: str | None
    base64: str | None


class RunSpec(TypedDict, total=False):
    id: str | None
    argv: list[str] | None
    shell: str | None
    env: dict[str, str]
    with_secrets: bool
    cwd: str | None
    user: str | None
    merge_stderr: bool
    kill_grace_seconds: float
    tag: str | None
    input: str | None
    input_base64: str | None
    timeout_seconds: float | None
    wait_seconds: float | None
    max_output_bytes: int
    keep: str
    output_encoding: str


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


class RunResult(TypedDict, total=False):
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


class SecretView(TypedDict, total=False):
    name: str
    version: int
    env: bool
    hosts: list[str]
    created_at: str
    updated_at: str


class SecretList(TypedDict, total=False):
    items: list[SecretView]
    next_cursor: str | None


class SignalSpec(TypedDict, total=False):
    signal: str
    scope: str


class Status(TypedDict, total=False):
    status: str


class StdinResult(TypedDict, total=False):
    offset: int
    closed: bool


class Tag(TypedDict, total=False):
    name: str
    tag: str
    image_id: str
    created_at: str
    updated_at: str


class TagList(TypedDict, total=False):
    items: list[Tag]
    next_cursor: str | None


class Token(TypedDict, total=False):
    token: str
    expires_at: str
    scopes: list[str]
    url: str | None


class TunnelList(TypedDict, total=False):
    items: list[Tunnel]


class UploadState(TypedDict, total=False):
    offset: int
    total_bytes: int
    complete: bool
