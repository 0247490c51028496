"""Images made from nothing, and a registry that serves them, as badly as a test wants."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from sandboxd.images.transport import Patience

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

HASTE = Patience(
    connect_seconds=5,
    answer_seconds=0.5,
    document_seconds=0.5,
    window_seconds=0.3,
    window_bytes=4096,
    attempts=3,
    backoff_seconds=0.01,
    longest_backoff_seconds=0.02,
    longest_wait_seconds=1,
)
"""For a registry that lets us wait on purpose."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers in the registry's place; None: let it answer itself."""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: dict[str, bytes | tuple[bytes, int]]) -> bytes:
    """A layer: a name with content, and a mode where it matters. A name that ends in / is a directory."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, given in files.items():
            content, mode = given if isinstance(given, tuple) else (given, 0o644)
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, len(content)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


@dataclass
class MadeImage:
    """An image as its documents and blobs, by digest."""

    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    manifest: bytes = b""
    config: bytes = b""
    layers: list[bytes] = field(default_factory=list[bytes])
    """Uncompressed."""
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def layer_digests(self) -> list[str]:
        return [row["digest"] for row in json.loads(self.manifest)["layers"]]

    def descriptor(self, platform: str | None = "linux/amd64") -> dict[str, Any]:
        row: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.manifest)}
        if platform is not None:
            row["platform"] = platform_row(platform)
        return row


def platform_row(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def make_image(
    layers: list[bytes],
    settings: dict[str, Any] | None = None,
    *,
    platform: str = "linux/amd64",
    docker: bool = False,
    compress: bool = True,
) -> MadeImage:
    made = MadeImage(layers=layers, media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST)
    config = platform_row(platform) | {
        "config": settings or {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }
    made.config = json.dumps(config).encode()
    rows: list[dict[str, Any]] = []
    for layer in layers:
        blob = gzip.compress(layer, 1, mtime=0) if compress else layer
        kind = DOCKER_LAYER if docker else OCI_LAYER + ("+gzip" if compress else "")
        made.blobs[digest_of(blob)] = blob
        rows.append({"mediaType": kind, "digest": digest_of(blob), "size": len(blob)})
    made.blobs[digest_of(made.config)] = made.config
    document = {
        "schemaVersion": 2,
        "mediaType": made.media_type,
        "config": {
            "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
            "digest": digest_of(made.config),
            "size": len(made.config),
        },
        "layers": rows,
    }
    made.manifest = json.dumps(document).encode()
    made.blobs[made.digest] = made.manifest
    return made


def make_index(*images: tuple[MadeImage, str | None]) -> bytes:
    rows = [image.descriptor(platform) for image, platform in images]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}).encode()


def write_layout(root: Path, *images: tuple[MadeImage, str | None]) -> Path:
    """An OCI layout with these images, each under a name."""
    (root / "blobs/sha256").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for image, name in images:
        for digest, blob in image.blobs.items():
            (root / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(blob)
        row = image.descriptor(None)
        if name is not None:
            row["annotations"] = {"org.opencontainers.image.ref.name": name}
        rows.append(row)
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return root


def pack(root: Path, target: Path, mode: Literal["w", "w:gz"] = "w") -> Path:
    """The files of a directory as a tar, each by its name from there."""
    with tarfile.open(target, mode) as archive:
        for path in sorted(root.rglob("*")):
            archive.add(path, str(path.relative_to(root)), recursive=False)
    return target


def write_saved(root: Path, image: MadeImage, *tags: str) -> Path:
    """What `docker save` wrote of old: a directory a layer, the config by its digest."""
    root.mkdir()
    names: list[str] = []
    for number, layer in enumerate(image.layers):
        (root / f"layer{number}").mkdir()
        (root / f"layer{number}/layer.tar").write_bytes(layer)
        names.append(f"layer{number}/layer.tar")
    config = digest_of(image.config).removeprefix("sha256:") + ".json"
    (root / config).write_bytes(image.config)
    (root / "manifest.json").write_text(json.dumps([{"Config": config, "RepoTags": list(tags), "Layers": names}]))
    return root


@dataclass
class FakeRegistry:
    """Serves what it was given. `mischief` is asked before each answer, by the kind of what was asked for."""

    host: str = ""
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict[str, tuple[bytes, str]])
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    mischief: dict[str, Answer] = field(default_factory=dict[str, Answer])
    """For `manifests`, `blobs` or a digest."""
    user: tuple[str, str] | None = None
    """Who may come in, by name and password or by a token for them."""
    bearer: bool = False
    seen: list[web.Request] = field(default_factory=list[web.Request])

    def put(self, image: MadeImage, *names: str) -> MadeImage:
        self.blobs |= image.blobs
        for name in (*names, image.digest):
            self.manifests[name] = image.manifest, image.media_type
        return image

    def asked(self, kind: str) -> list[web.Request]:
        return [request for request in self.seen if f"/{kind}/" in request.path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.path == "/token":
            return await self._token(request)
        kind, name = request.path.split("/")[-2:]
        if not self._welcome(request):
            return web.Response(status=401, headers={"WWW-Authenticate": self._challenge()})
        for key in (name, kind):
            if (answer := self.mischief.get(key)) is not None and (made := await answer(request)) is not None:
                return made
        if kind == "manifests" and name in self.manifests:
            body, media_type = self.manifests[name]
            return web.Response(
                body=body, headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}
            )
        if kind == "blobs" and name in self.blobs:
            return ranged(request, self.blobs[name])
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        if (answer := self.mischief.get("token")) is not None and (made := await answer(request)) is not None:
            return made
        if self.user is not None and request.headers.get("Authorization") != basic(*self.user):
            return web.Response(status=401)
        return web.json_response({"token": f"for-{request.query['scope']}", "expires_in": 60})

    def _welcome(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization")
        if self.bearer:
            return given == "Bearer for-repository:team/app:pull"
        return self.user is None or given == basic(*self.user)

    def _challenge(self) -> str:
        if self.bearer:
            return f'Bearer realm="http://{self.host}/token",service="a, b",scope="repository:other:push"'
        return 'Basic realm="here"'


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def ranged(request: web.Request, blob: bytes) -> web.Response:
    """Answer as a registry does that can serve parts."""
    start = request.http_range.start or 0
    if not start:
        return web.Response(body=blob)
    said = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
    return web.Response(status=206, body=blob[start:], headers={"Content-Range": said})


@asynccontextmanager
async def serving(registry: FakeRegistry, address: str = "127.0.0.1") -> AsyncGenerator[FakeRegistry]:
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address, 0)
        await site.start()
        (bound,) = runner.addresses
        registry.host = f"{address}:{bound[1]}"
        yield registry
    finally:
        await runner.cleanup()
