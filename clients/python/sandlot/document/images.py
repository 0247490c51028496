"""What the calls of images take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict

from sandlot.document.shared import EgressLimits, Resources


class ArchiveSource(TypedDict, total=False):
    upload: str
    format: str


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


class PatchImage(TypedDict, total=False):
    visibility: str
    metadata: dict[str, str | None] | None


class PutTag(TypedDict, total=False):
    image_id: str


class Tag(TypedDict, total=False):
    name: str
    tag: str
    image_id: str
    created_at: str
    updated_at: str


class TagList(TypedDict, total=False):
    items: list[Tag]
    next_cursor: str | None


class UploadState(TypedDict, total=False):
    offset: int
    total_bytes: int
    complete: bool
