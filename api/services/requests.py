"""What callers send about sandboxes. Fields of later versions are known by shape, and refused by name."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from api.services.policies import EgressPolicy, default_spec
from api.services.secret_requests import SecretName
from sandboxd.contract.ids import ImageId
from sandboxd.contract.messages import EgressSpec, Entrypoint, Resources
from sandboxd.contract.processes import MAX_TIMEOUT_SECONDS, PathText, RunSpec, Strict, UserName
from sandboxd.contract.tunnels import MAX_CIDRS, MAX_TUNNELS, Cidr, TunnelSpec, Visibility

MAX_METADATA: Final = 64
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_METADATA_VALUE_BYTES: Final = 1024
MAX_FILES_BYTES: Final = 8 * 1024 * 1024
MAX_WAIT_SECONDS: Final = 300
MAX_SECRET_ENV: Final = 64

SandboxName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
MetadataKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[!-~]+$")]
Seconds = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_SECONDS)]
IdleSeconds = Annotated[int, Field(ge=10, le=MAX_TIMEOUT_SECONDS)]
StopOnly = Annotated[Literal["stop", "pause"], WithJsonSchema({"type": "string", "enum": ["stop"]})]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$")]
Metadata = dict[MetadataKey, Text]
LiveState = Literal["pending", "starting", "running", "pausing", "paused", "resuming", "stopping", "lost"]


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Hold metadata to its limits."""
    if len(metadata) > MAX_METADATA:
        msg = f"at most {MAX_METADATA} entries"
        raise ValueError(msg)
    sizes = [len(value.encode()) for value in metadata.values()]
    if any(size > MAX_METADATA_VALUE_BYTES for size in sizes):
        msg = f"a value is longer than {MAX_METADATA_VALUE_BYTES} bytes"
        raise ValueError(msg)
    if sum(sizes) + sum(map(len, metadata)) > MAX_METADATA_BYTES:
        msg = f"longer than {MAX_METADATA_BYTES} bytes in all"
        raise ValueError(msg)
    return metadata


def _without(*names: str) -> ConfigDict:
    """Leave fields out of the document that this version refuses."""

    def prune(schema: dict[str, Any]) -> None:
        for name in names:
            schema["properties"].pop(name, None)

    return ConfigDict(json_schema_extra=prune)


class GpuRequest(Strict):
    """GPUs asked for."""

    model: str
    count: int = Field(default=1, ge=1, le=64)


class ResourcesRequest(Resources):
    """Resources asked for."""

    model_config = _without("gpu")
    gpu: GpuRequest | None = None

    def granted(self) -> Resources:
        return Resources(**self.model_dump(exclude={"gpu"}))


_LATER: Final = (
    "snapshot",
    "auto_resume",
)


class SandboxRequest(Strict):
    """What `POST /v1/sandboxes` and `POST /v1/run` share."""

    model_config = _without(*_LATER)
    image: ImageName = "base"
    """An image id, a `name` or a `name:tag`."""
    snapshot: str | None = None
    use_image_entrypoint: bool = False
    """Run the image's entrypoint and cmd; its end ends the sandbox."""
    env: dict[EnvName, Text] = Field(default_factory=dict)
    """Handed to the processes of the sandbox; not readable back."""
    secret_env: dict[EnvName, SecretName] = Field(default_factory=dict, max_length=MAX_SECRET_ENV)
    """Variables and the secrets that they are to hold, over `env`; not readable back. Each secret must allow `env`."""
    metadata: Metadata = Field(default_factory=dict)
    user: UserName | None = None
    cwd: PathText | None = None
    resources: ResourcesRequest = ResourcesRequest()
    timeout_seconds: Seconds | None = 3600
    """Null: no limit."""
    idle_timeout_seconds: IdleSeconds | None = None
    idle_ignores_processes: bool = False
    on_timeout: StopOnly = "stop"
    on_idle: StopOnly = "stop"
    auto_resume: bool = False
    paused_retention_seconds: Seconds | None = 604_800
    egress: EgressPolicy | None = None
    """Null: the project's default."""

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, metadata: dict[str, str]) -> dict[str, str]:
        return check_metadata(metadata)

    @field_validator("cwd")
    @classmethod
    def _cwd(cls, cwd: str | None) -> str | None:
        if cwd is not None and "\0" in cwd:
            msg = "must not contain NUL"
            raise ValueError(msg)
        return cwd

    @model_validator(mode="after")
    def _one_origin(self) -> "SandboxRequest":
        if self.snapshot is not None and "image" in self.model_fields_set:
            msg = "give at most one of image and snapshot"
            raise ValueError(msg)
        return self

    def later_feature(self) -> str | None:
        """Return the name of what this version does not offer, if it is asked for."""
        asked = {
            "snapshot": self.snapshot is not None,
            "on_timeout.pause": self.on_timeout == "pause",
            "on_idle.pause": self.on_idle == "pause",
            "auto_resume": self.auto_resume,
            "gpu": self.resources.gpu is not None,
        }
        return next((name for name, is_asked in asked.items() if is_asked), None)

    def egress_spec(self, defaults: dict[str, Any]) -> EgressSpec:
        """Return the policy asked for, else the project's; `invalid_policy` where it is none."""
        return default_spec(defaults) if self.egress is None else self.egress.spec(at=("egress",))


class CreateSandbox(SandboxRequest):
    """Body of `POST /v1/sandboxes`."""

    model_config = _without(*_LATER)
    name: SandboxName | None = None
    """Unique among the project's live sandboxes."""
    if_exists: Literal["error", "return"] = "error"
    entrypoint: Entrypoint | None = None
    """A command to run from the start; its end ends the sandbox. Null: nothing is run."""
    tunnels: list[TunnelSpec] = Field(default_factory=list[TunnelSpec], max_length=MAX_TUNNELS)
    """Open before anything of it runs."""
    wait_seconds: float = Field(default=60, ge=0, le=MAX_WAIT_SECONDS)
    """How long the answer may wait for `running`."""

    @model_validator(mode="after")
    def _one_entrypoint(self) -> "CreateSandbox":
        if self.entrypoint is not None and self.use_image_entrypoint:
            msg = "give at most one of entrypoint and use_image_entrypoint"
            raise ValueError(msg)
        return self

    @field_validator("tunnels")
    @classmethod
    def _one_tunnel_each(cls, tunnels: list[TunnelSpec]) -> list[TunnelSpec]:
        if len({(tunnel.kind, tunnel.port) for tunnel in tunnels}) < len(tunnels):
            msg = "two tunnels of one kind lead to the same port"
            raise ValueError(msg)
        return tunnels


class RunFile(Strict):
    """A file that is there before the command starts."""

    path: PathText
    text: str | None = None
    base64: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> "RunFile":
        if (self.text is None) == (self.base64 is None):
            msg = "give exactly one of text and base64"
            raise ValueError(msg)
        return self


class RunOnce(SandboxRequest):
    """Body of `POST /v1/run`."""

    model_config = _without(*_LATER, "use_image_entrypoint")
    command: RunSpec
    files: list[RunFile] = Field(default_factory=list[RunFile], max_length=1000)
    wait_seconds: float = Field(default=60, ge=0, le=MAX_WAIT_SECONDS)
    """How long the sandbox may take to run."""

    @field_validator("use_image_entrypoint")
    @classmethod
    def _no_entrypoint(cls, use: bool) -> bool:
        if use:
            msg = "has no meaning here: the command is what is run"
            raise ValueError(msg)
        return use

    @field_validator("command")
    @classmethod
    def _waits(cls, command: RunSpec) -> RunSpec:
        if command.wait_seconds is not None:
            msg = "wait_seconds has no meaning here: the sandbox is gone after the answer"
            raise ValueError(msg)
        return command


class PatchSandboxRequest(Strict):
    """Merge patch of a sandbox. Absent: unchanged. Null: none."""

    model_config = _without("auto_resume")
    name: SandboxName | None = None
    metadata: dict[MetadataKey, Text | None] | None = None
    timeout_seconds: Seconds | None = None
    """From now; may shorten."""
    idle_timeout_seconds: IdleSeconds | None = None
    on_timeout: StopOnly = "stop"
    on_idle: StopOnly = "stop"
    auto_resume: bool = False
    paused_retention_seconds: Seconds | None = None

    def later_feature(self) -> str | None:
        """Return the name of what this version does not offer, if it is asked for."""
        asked = {
            "on_timeout.pause": self.on_timeout == "pause",
            "on_idle.pause": self.on_idle == "pause",
            "auto_resume": self.auto_resume,
        }
        return next((name for name, is_asked in asked.items() if is_asked), None)


class PatchTunnel(Strict):
    """Merge patch of a tunnel. Absent: unchanged."""

    visibility: Visibility = "token"
    allow_cidrs: Annotated[list[Cidr], Field(max_length=MAX_CIDRS)] = Field(default_factory=list[str])
    """Whole, not added to what was there; empty: from everywhere."""


class ExtendSandbox(Strict):
    """Body of `POST …/extend`: deadline = max(old, now + n)."""

    timeout_seconds: Seconds


class DeleteFilter(Strict):
    """Which sandboxes to delete; all that is given must match."""

    state: Annotated[list[LiveState], Field(min_length=1)] | None = None
    metadata: Metadata | None = None
    image_id: ImageId | None = None
    created_before: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})] | None = None

    def is_empty(self) -> bool:
        """Tell whether this would match everything."""
        return not (self.state or self.metadata or self.image_id or self.created_before)


class DeleteSandboxes(Strict):
    """Body of `POST /v1/sandboxes/delete`."""

    filter: DeleteFilter
    dry_run: bool = False
    """Only say what would be deleted."""
