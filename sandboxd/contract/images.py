"""What the api asks of a node about images: jobs that make one, their logs, and what the node has.

A job is asked for by its id, once however often it is asked. It goes from `pending` through `importing` or `building`
to `ready` or `failed`, and stays readable. Its log is lines; a position in it is an opaque number that only grows.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from sandboxd.contract.ids import ImageId, ProjectId, SandboxId
from sandboxd.contract.messages import EgressSpec, ImageRef, NodeImage, Resources
from sandboxd.contract.processes import Argument, Open, PathText, Strict, Time, UserName

MAX_UPLOAD_BYTES: Final = 64 * 1024**3
MAX_STEPS: Final = 256
MAX_STEP_BYTES: Final = 64 * 1024
MAX_DOCKERFILE_BYTES: Final = 1024 * 1024
MAX_BUILD_SECONDS: Final = 24 * 3600
MAX_PASSWORD: Final = 4096

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SnapshotId = Annotated[str, StringConstraints(pattern=r"^snp[a-z2-7]{20}$")]
PlatformText = Annotated[str, StringConstraints(pattern=r"^linux/[a-z0-9_]{1,16}(/[a-z0-9_.]{1,16})?$")]
ReferenceText = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[!-~]+$")]
StepText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STEP_BYTES, pattern=r"^[^\x00]*$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
Words = Annotated[list[Word], Field(min_length=1, max_length=256)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$", max_length=255)]
Environment = dict[EnvName, Argument]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class ImageState(StrEnum):
    """How far an image is."""

    PENDING = "pending"
    """It waits for its turn."""
    IMPORTING = "importing"
    """It is fetched and put together."""
    BUILDING = "building"
    """Its steps run."""
    READY = "ready"
    """Sandboxes can start from it."""
    FAILED = "failed"
    """It never will be; `reason` says why."""


SETTLED: Final = frozenset({ImageState.READY, ImageState.FAILED})


class ImageReason(StrEnum):
    """Why an image could not be made."""

    REGISTRY_UNAVAILABLE = "registry_unavailable"
    """It did not answer, or not in time, or said that it cannot now. Trying again later may help."""
    UNAUTHORIZED = "unauthorized"
    """The registry wants credentials, or others."""
    NOT_FOUND = "not_found"
    """There is no such image, or nothing of ours may show it."""
    WRONG_PLATFORM = "wrong_platform"
    """The image exists, but not for this machine."""
    CORRUPT = "corrupt"
    """What came is not what its digest, its size or its format says."""
    TOO_LARGE = "too_large"
    """More than the limits of this node, or than its disk has room for."""
    STORE_UNAVAILABLE = "store_unavailable"
    """What keeps images for all nodes did not take it. Trying again later may help."""
    UNSAFE_CONTENT = "unsafe_content"
    """It holds, or asks for, what is never taken from an image's source."""
    STEP_FAILED = "step_failed"
    """A step of a build failed; its output and exit code are with it."""
    TIMED_OUT = "timed_out"
    """It took longer than it may."""
    CANCELED = "canceled"
    """Somebody deleted it meanwhile."""
    QUOTA_EXCEEDED = "quota_exceeded"
    """The project may not have so much."""
    INTERRUPTED = "interrupted"
    """The node stopped meanwhile and could not go on by itself. Asking again helps."""


class RegistrySource(Strict):
    """An image in a registry. `reference` names its registry."""

    reference: ReferenceText
    platform: PlatformText = "linux/amd64"
    username: Annotated[str, StringConstraints(max_length=255)] | None = None
    password: Annotated[str, StringConstraints(max_length=MAX_PASSWORD)] | None = Field(default=None, repr=False)
    """Goes to the job by a pipe; never written down, never in arguments."""


class ArchiveSource(Strict):
    """An image in an upload of the project's."""

    upload: Sha256
    format: Literal["oci", "docker", "rootfs"]


class CopyStep(Strict):
    """Files of the context, put into the image."""

    source: Word = Field(alias="from")
    to: Word
    mode: Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3,4}$")] | None = None
    owner: UserName | None = None


class Step(Strict):
    """One step of a build: exactly one of these."""

    run: StepText | Annotated[list[Argument], Field(min_length=1, max_length=4096)] | None = None
    """A line for the shell, or a program with its arguments."""
    copy_: CopyStep | None = Field(default=None, alias="copy")
    env: Environment | None = None
    workdir: PathText | None = None
    user: UserName | None = None
    pip_install: Words | None = None
    apt_install: Words | None = None
    npm_install: Words | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Step":
        if len([name for name in type(self).model_fields if getattr(self, name) is not None]) != 1:
            msg = "a step has exactly one of run, copy, env, workdir, user, pip_install, apt_install, npm_install"
            raise ValueError(msg)
        return self


class Build(Strict):
    """Steps on an image, or a Dockerfile."""

    steps: Annotated[list[Step], Field(max_length=MAX_STEPS)] | None = None
    base: ReferenceText | None = Field(default=None, alias="from")
    """What the steps start from; `base` if nothing is said. Not with a Dockerfile, which says it itself."""
    dockerfile: Annotated[str, StringConstraints(min_length=1, max_length=MAX_DOCKERFILE_BYTES)] | None = None
    build_args: dict[EnvName, Argument] = Field(default_factory=dict, max_length=256)
    target: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | None = None
    context: Sha256 | None = None
    """An upload of the project's: a tar."""
    resources: Resources = Resources()
    egress: EgressSpec | None = None
    """Of the steps; null: the project's default."""
    secret_env: dict[EnvName, str] = Field(default_factory=dict, max_length=64)
    no_cache: bool = False
    timeout_seconds: int = Field(default=3600, ge=1, le=MAX_BUILD_SECONDS)

    @model_validator(mode="after")
    def _one_kind(self) -> "Build":
        if (self.steps is None) == (self.dockerfile is None):
            msg = "give exactly one of steps and dockerfile"
            raise ValueError(msg)
        if self.dockerfile is not None and self.base is not None:
            msg = "a Dockerfile says itself what it is from"
            raise ValueError(msg)
        if self.steps is not None and (self.target is not None or self.build_args):
            msg = "target and build_args go with a dockerfile"
            raise ValueError(msg)
        return self


class BuildSource(Strict):
    """A build, with the images that its names stand for."""

    build: Build
    images: dict[ReferenceText, ImageRef] = Field(default_factory=dict, max_length=64)
    """What the api found each name to be; a name that is not here is none the project may use."""


class SandboxSource(Strict):
    """The files of a sandbox as they are now."""

    sandbox_id: SandboxId
    exclude: Annotated[list[Glob], Field(max_length=256)] = Field(default_factory=list)


class SnapshotSource(Strict):
    """The files of a snapshot."""

    snapshot_id: SnapshotId


class ImageSource(Strict):
    """Where an image comes from: exactly one of these."""

    registry: RegistrySource | None = None
    archive: ArchiveSource | None = None
    build: BuildSource | None = None
    sandbox: SandboxSource | None = None
    snapshot: SnapshotSource | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "ImageSource":
        exactly_one(self)
        return self

    @property
    def kind(self) -> str:
        """The name of the one that is there; also the name of the runner of such jobs."""
        return exactly_one(self)


SOURCES: Final = ("registry", "archive", "build", "sandbox", "snapshot")


def exactly_one(source: Strict, names: tuple[str, ...] = SOURCES) -> str:
    """Return the name of the only field that is set. ValueError."""
    given = [name for name in names if getattr(source, name) is not None]
    if len(given) != 1:
        msg = f"give exactly one of {', '.join(names)}"
        raise ValueError(msg)
    return given[0]


class ImageOverrides(Strict):
    """What an image shall bring instead of what its source says; `env` adds to the source's."""

    env: Environment | None = None
    entrypoint: Annotated[list[Argument], Field(max_length=4096)] | None = None
    cmd: Annotated[list[Argument], Field(max_length=4096)] | None = None
    user: UserName | None = None
    cwd: PathText | None = None

    @field_validator("cwd")
    @classmethod
    def _absolute(cls, cwd: str | None) -> str | None:
        if cwd is not None and not cwd.startswith("/"):
            msg = "must be an absolute path"
            raise ValueError(msg)
        return cwd


class StartImageJob(Strict):
    """Body of `PUT /node/v1/image-jobs/{id}`: make this image, once, however often it is asked."""

    project_id: ProjectId
    """Whose uploads it may use, and whose content it is."""
    source: ImageSource
    config: ImageOverrides | None = None


class ImageProgress(Open):
    """How much of what is to be fetched is here."""

    done_bytes: int
    total_bytes: int


class StepRecord(Open):
    """One step of a build."""

    index: int
    text: str
    state: Literal["pending", "running", "done", "failed", "skipped"]
    cached: bool = False
    exit_code: int | None = None
    started_at: Time | None = None
    ended_at: Time | None = None


class ImageDefaults(Open):
    """What an image brings."""

    env: dict[str, str] = Field(default_factory=dict)
    entrypoint: list[str] = Field(default_factory=list)
    cmd: list[str] = Field(default_factory=list)
    user: str | None = None
    cwd: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    ports: list[str] = Field(default_factory=list)


class MadeImage(Open):
    """What a job has made. `id` is that of the content: what sandboxes are started from."""

    id: ImageId
    digest: str
    size_bytes: int
    platform: str
    config: ImageDefaults
    dropped: dict[str, int] = Field(default_factory=dict)
    """How much of what a source had is not in the image, by what it was."""
    origin_digest: str | None = None
    """Of the manifest that was taken."""


class ImageJob(Open):
    """A job as its node sees it."""

    id: ImageId
    project_id: str
    kind: str
    state: ImageState
    sequence: int
    """Rises with every change of what is here."""
    reason: ImageReason | None = None
    message: str | None = None
    progress: ImageProgress | None = None
    steps: list[StepRecord] | None = None
    image: MadeImage | None = None
    created_at: Time
    ended_at: Time | None = None


class ImageJobs(Open):
    """The jobs a node knows."""

    items: list[ImageJob]


class HeldImages(Open):
    """What a node can start from, names or none."""

    items: list[NodeImage]


LineKind = Literal["step", "stdout", "stderr", "progress", "exit", "lost"]


class LogLine(Open):
    """One line of a job's log. The last one of a settled job is its `exit`."""

    kind: LineKind
    seq: int
    next: int
    """Go on after this."""
    at: Time
    step: int | None = None
    text: str | None = None
    state: ImageState | None = None
    """With `exit`."""
    reason: ImageReason | None = None
    lost_bytes: int | None = None
    """With `lost`: more was said than a log holds."""


class UploadState(Open):
    """How much of an upload is here."""

    offset: int
    total_bytes: int
    complete: bool
