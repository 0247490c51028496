"""Images: what one shall be, and what the API said of one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from sandlot._context import Files
from sandlot.errors import ConfigurationError, SandlotError
from sandlot.models import Resources, as_object, parse_time, required, text

SETTLED: Final = frozenset({"ready", "failed"})
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Image:
    """What an image shall be made of. Nothing is asked of a server until it is used.

    >>> Image.from_registry("registry.example.com/team/app:1").source
    {'registry': {'reference': 'registry.example.com/team/app:1'}}
    """

    source: Mapping[str, Any]
    """The source as the API takes it."""
    archive: Path | None = None
    """A file that is uploaded before, if it is not there."""
    files: tuple[Files, ...] = ()
    """Files that a build takes along: packed, and uploaded if they are not there."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_registry(
        cls,
        reference: str,
        *,
        platform: str | None = None,
        username: str | None = None,
        password_secret: str | None = None,
    ) -> "Image":
        """Return the image of a reference: `[registry/]repository[:tag][@digest]`.

        `password_secret` names the secret that is the password of `username`; its `hosts` must cover the registry.
        """
        given = {
            "reference": reference,
            "platform": platform,
            "username": username,
            "password_secret": password_secret,
        }
        return cls({"registry": {name: value for name, value in given.items() if value is not None}})

    @classmethod
    def from_archive(cls, path: str | Path, *, format: str = "oci") -> "Image":  # noqa: A002 - the word of the API
        """Return the image in a file: an `oci` layout, what `docker` save wrote, or a `rootfs`; each as a tar."""
        return cls({"archive": {"format": format}}, archive=Path(path))

    @classmethod
    def base(cls) -> "Image":
        """Return the platform's image `base`, to build on: Debian 12 with Python and Node."""
        return cls.from_image("base")

    @classmethod
    def debian(cls) -> "Image":
        """Return a Debian with Python to build on: `base`."""
        return cls.base()

    @classmethod
    def from_image(cls, name: str) -> "Image":
        """Return an image to build on: a name, an id, or a reference to a registry's."""
        return cls({"build": {"from": name, "steps": []}})

    @classmethod
    def from_dockerfile(
        cls,
        path: str | Path,
        *,
        context: str | Path | None = None,
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
    ) -> "Image":
        """Return what a Dockerfile makes of a directory, by default its own; a `.dockerignore` there counts."""
        place = Path(path)
        given: dict[str, Any] = {"dockerfile": place.read_text(), "build_args": dict(build_args or {}) or None}
        build = {name: value for name, value in (given | {"target": target}).items() if value is not None}
        return cls({"build": build}, files=(Files("", Path(context) if context is not None else place.parent),))

    def run(self, command: str | Sequence[str]) -> "Image":
        """Go on with a command, run as the image's user: a line for the shell, or a program with its arguments."""
        return self._with({"run": command if isinstance(command, str) else list(command)})

    def pip_install(self, *packages: str) -> "Image":
        """Go on with packages of Python; files in the image (`/tmp/x.whl`) and options of pip are fine too."""
        return self._with({"pip_install": list(packages)})

    def apt_install(self, *packages: str) -> "Image":
        """Go on with packages of Debian."""
        return self._with({"apt_install": list(packages)})

    def npm_install(self, *packages: str) -> "Image":
        """Go on with packages of Node, for everybody."""
        return self._with({"npm_install": list(packages)})

    def copy(
        self,
        local: str | Path,
        remote: str,
        *,
        mode: str | None = None,
        owner: str | None = None,
        ignore: Sequence[str] = (),
    ) -> "Image":
        """Go on with a file of this machine, or with what is in a directory of it; `ignore` as in a `.dockerignore`.

        They are read when the image is made, not now. With a slash at its end `remote` is a directory.
        """
        path = Path(local)
        place = f"c{len(self.files)}"
        name = place if path.is_dir() else f"{place}/{path.name}"
        step = {"from": name, "to": remote, "mode": mode, "owner": owner}
        image = self._with({"copy": {key: value for key, value in step.items() if value is not None}})
        return replace(image, files=(*self.files, Files(name, path, tuple(ignore))))

    def env(self, **variables: str) -> "Image":
        """Go on with variables of the environment, for the steps that follow and for sandboxes."""
        return self._with({"env": variables})

    def workdir(self, path: str) -> "Image":
        """Go on in a directory, made if it is not there."""
        return self._with({"workdir": path})

    def user(self, name: str) -> "Image":
        """Go on as somebody else."""
        return self._with({"user": name})

    def with_build(
        self,
        *,
        resources: Resources | None = None,
        egress: str | None = None,
        no_cache: bool | None = None,
        timeout_seconds: int | None = None,
    ) -> "Image":
        """Return the same, built with other means; `egress` is what its steps may reach: `open` or `blocked`."""
        given: dict[str, Any] = {
            "resources": None if resources is None else resources.to_json(),
            "egress": None if egress is None else {"mode": egress},
            "no_cache": no_cache,
            "timeout_seconds": timeout_seconds,
        }
        build = self._build() | {name: value for name, value in given.items() if value is not None}
        return replace(self, source={"build": build})

    def _with(self, step: Mapping[str, Any]) -> "Image":
        build = self._build()
        if "steps" not in build:
            raise ConfigurationError("the steps of a Dockerfile are in it", hint="Name its image, and use from_image.")
        return replace(self, source={"build": build | {"steps": [*build["steps"], step]}})

    def _build(self) -> dict[str, Any]:
        """Return the build that this is, or the one that begins with it."""
        if "build" in self.source:
            return dict(self.source["build"])
        registry = self.source.get("registry", {})
        if "reference" in registry and "platform" not in registry:
            return {"from": registry["reference"], "steps": []}
        raise ConfigurationError("nothing can be built on it before it is made", hint="Make it, and use from_image.")

    def with_config(
        self,
        *,
        env: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
    ) -> "Image":
        """Return the same with other defaults than its source says; `env` adds to those."""
        given: dict[str, Any] = {
            "env": None if env is None else dict(env),
            "entrypoint": None if entrypoint is None else list(entrypoint),
            "cmd": None if cmd is None else list(cmd),
            "user": user,
            "cwd": cwd,
        }
        return replace(self, config=dict(self.config) | {key: one for key, one in given.items() if one is not None})


@dataclass(frozen=True)
class ImageInfo:
    """An image as the API described it at one moment."""

    id: str
    state: str
    reason: str | None
    message: str | None
    reference: str | None
    digest: str | None
    tags: tuple[str, ...]
    visibility: str | None
    size_bytes: int | None
    done_bytes: int | None
    """Of what is to be fetched, while it is being made."""
    total_bytes: int | None
    created_at: datetime | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "ImageInfo":
        """Read an Image. ProtocolError if it is none."""
        raw = as_object(value)
        progress = cast("dict[str, Any]", raw.get("progress") or {})
        return cls(
            id=required(raw, "id"),
            state=required(raw, "state"),
            reason=text(raw, "reason"),
            message=text(raw, "message"),
            reference=text(raw, "reference"),
            digest=text(raw, "digest"),
            tags=tuple(raw.get("tags") or ()),
            visibility=text(raw, "visibility"),
            size_bytes=raw.get("size_bytes"),
            done_bytes=progress.get("done_bytes"),
            total_bytes=progress.get("total_bytes"),
            created_at=parse_time(raw.get("created_at")),
            raw=raw,
        )

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED


class ImageFailedError(SandlotError):
    """An image could not be made. `info` has the reason."""

    def __init__(self, info: ImageInfo) -> None:
        said = info.message or info.reason or "it failed"
        super().__init__(f"image {info.id}: {info.reason}: {said}", hint=f"sandlot image log {info.id}")
        self.info = info


@dataclass(frozen=True)
class ImageTag:
    """A name of an image."""

    name: str
    tag: str
    image_id: str

    @classmethod
    def parse(cls, value: object) -> "ImageTag":
        """Read a Tag. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(required(raw, "name"), required(raw, "tag"), required(raw, "image_id"))


def sum_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file, and its size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_PIECE_BYTES):
            digest.update(data)
            size += len(data)
    return digest.hexdigest(), size


def part_of(path: Path, offset: int, count: int) -> bytes:
    """Return a part of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)
