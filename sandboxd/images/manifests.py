"""What the documents of an image say: indexes, manifests, configs. Bytes in, checked values out."""

import hashlib
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sandboxd.contract.references import DIGEST
from sandboxd.images.base import ImageConfig
from sandboxd.images.failures import corrupt, too_large, unsafe, wrong_platform

MANIFEST_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of an index or a manifest, as registries limit them."""
CONFIG_LIMIT: Final = 8 * 1024 * 1024
LAYERS_LIMIT: Final = 512
INDEX_LIMIT: Final = 1024
_SIZE_LIMIT: Final = 2**50
_ENV_LIMIT: Final = 256 * 1024
_TEXT_LIMIT: Final = 4096
_WORDS_LIMIT: Final = 128 * 1024
_LABELS_LIMIT: Final = 512 * 1024
_USER: Final = re.compile(r"[^\x00\s/]{1,64}")
_PORT: Final = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:/(?:tcp|udp|sctp))?")

INDEXES: Final = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
MANIFESTS: Final = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
_CONFIGS: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
LAYERS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_ELSEWHERE: Final = ("nondistributable", "foreign")
_OLD: Final = "application/vnd.docker.distribution.manifest.v1"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image was built for."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names one blob by what it must be."""

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    name: str | None = None
    """What an index calls it (`org.opencontainers.image.ref.name` and its like)."""

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests, of which one is meant."""

    entries: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """What the config of an image says."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig


def check(data: bytes, digest: str, what: str) -> None:
    """Compare bytes with the digest they are known by. ImageSourceError."""
    if digest_of(data) != digest:
        raise corrupt(f"{what} is not what its digest says: {digest_of(data)}, not {digest}")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(data: bytes, said_type: str | None = None) -> Index | Manifest:
    """Read an index or a manifest; `said_type` is what the sender or the descriptor called it. ImageSourceError.

    A document that could be read as both, or is not what it is called, is refused: two readers of one digest must never
    see two images.
    """
    document = _document(data, MANIFEST_LIMIT, "manifest")
    media_type = _media_type(document, said_type)
    if document.get("schemaVersion") != 2:
        raise corrupt("manifest has another schemaVersion than 2")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if is_index == is_manifest or "fsLayers" in document:
        raise corrupt("manifest is both or neither of an index and an image")
    if media_type is not None and media_type not in (INDEXES if is_index else MANIFESTS):
        raise corrupt(f"manifest is called {media_type[:100]} and is something else")
    return _index(document) if is_index else _manifest(document)


def _media_type(document: dict[str, Any], said: str | None) -> str | None:
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str):
        raise corrupt("manifest has a mediaType that is no text")
    said = said if said in INDEXES | MANIFESTS or (said or "").startswith(_OLD) else None
    for name in (own, said):
        if name is not None and name.startswith(_OLD):
            raise corrupt("manifest is of docker's schema 1, which cannot be verified: push the image again")
    if own is not None and said is not None and own != said:
        raise corrupt(f"manifest calls itself {own[:100]} and is called {said}")
    return own or said


def _index(document: dict[str, Any]) -> Index:
    rows = _list(document.get("manifests"), "manifests", INDEX_LIMIT)
    return Index(tuple(_descriptor(row, f"manifests[{number}]") for number, row in enumerate(rows)))


def _manifest(document: dict[str, Any]) -> Manifest:
    config = _descriptor(document.get("config"), "config")
    if config.media_type not in _CONFIGS:
        raise unsafe(f"this is no image of a root file system but {config.media_type[:100]}")
    if config.size > CONFIG_LIMIT:
        raise too_large(f"config has {config.size} bytes; at most {CONFIG_LIMIT} are read")
    rows = _list(document.get("layers"), "layers", LAYERS_LIMIT)
    layers = tuple(_descriptor(row, f"layers[{number}]") for number, row in enumerate(rows))
    for number, layer in enumerate(layers):
        _check_layer(layer, _list(rows[number].get("urls") or [], "urls", INDEX_LIMIT))
    return Manifest(config, layers)


def _check_layer(layer: Descriptor, urls: Sequence[object]) -> None:
    if urls or any(word in layer.media_type for word in _ELSEWHERE):
        raise unsafe(f"layer {layer.digest} is to be fetched from elsewhere (foreign or non-distributable): refused")
    if layer.media_type not in LAYERS:
        raise unsafe(f"layer {layer.digest} is of a kind that is not known: {layer.media_type[:100]}")


def _descriptor(row: object, where: str) -> Descriptor:
    fields = _object(row, where)
    digest, size, media_type = fields.get("digest"), fields.get("size"), fields.get("mediaType")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise corrupt(f"{where} has no digest of SHA-256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _SIZE_LIMIT:
        raise corrupt(f"{where} has no possible size")
    if not isinstance(media_type, str) or len(media_type) > _TEXT_LIMIT:
        raise corrupt(f"{where} has no mediaType")
    platform = fields.get("platform")
    return Descriptor(
        digest, size, media_type, None if platform is None else _platform(platform, where), _name(fields, where)
    )


def _name(fields: dict[str, Any], where: str) -> str | None:
    annotations = _object(fields.get("annotations") or {}, f"{where}.annotations")
    for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name"):
        if isinstance(name := annotations.get(key), str) and 0 < len(name) <= _TEXT_LIMIT:
            return name
    return None


def _platform(row: object, where: str) -> Platform:
    fields = _object(row, where)
    system, architecture, variant = fields.get("os"), fields.get("architecture"), fields.get("variant")
    if not isinstance(system, str) or not isinstance(architecture, str) or not isinstance(variant, str | None):
        raise corrupt(f"{where} has no readable platform")
    if len(f"{system}{architecture}{variant}") > 128:
        raise corrupt(f"{where} has no readable platform")
    return Platform(system, architecture, variant or None)


@dataclass(frozen=True, slots=True)
class Saved:
    """One image in an archive of `docker save`: where in it its config and layers are, and its names."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def parse_saved(data: bytes) -> tuple[Saved, ...]:
    """Read the `manifest.json` of an archive. ImageSourceError."""
    rows = _list(_json(data, MANIFEST_LIMIT, "manifest.json"), "manifest.json", INDEX_LIMIT)
    return tuple(_saved(_object(row, "manifest.json")) for row in rows)


def _saved(row: dict[str, Any]) -> Saved:
    return Saved(
        _text(row.get("Config"), "Config"),
        tuple(_text(name, "Layers") for name in _list(row.get("Layers"), "Layers", LAYERS_LIMIT)),
        tuple(_text(name, "RepoTags") for name in _list(row.get("RepoTags") or [], "RepoTags", INDEX_LIMIT)),
    )


def check_layout(data: bytes) -> None:
    """Read the file `oci-layout`. ImageSourceError."""
    if _document(data, MANIFEST_LIMIT, "oci-layout").get("imageLayoutVersion") != "1.0.0":
        raise corrupt("it is an OCI layout of another version than 1.0.0")


def choose(index: Index, wanted: Platform) -> Descriptor:
    """Pick the manifest for a platform. ImageSourceError when there is none, with what there is.

    The first that fits exactly; else the first with the highest variant not above the wanted one. Entries without a
    platform count only when there is no other.
    """
    stated = [entry for entry in index.entries if entry.platform is not None]
    fitting = [entry for entry in stated if entry.platform is not None and fits(entry.platform, wanted)]
    if fitting:
        return max(fitting, key=lambda entry: (entry.platform == wanted, _rank(entry.platform)))
    if len(index.entries) == 1 and not stated:
        return index.entries[0]
    there = sorted({str(entry.platform) for entry in stated if entry.platform and entry.platform.os != "unknown"})
    raise wrong_platform(f"there is no image for {wanted}; there are {', '.join(there)[:500] or 'none'}")


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether what was built for one platform runs on another."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    return _rank(offered) <= _rank(wanted) if wanted.variant else _rank(offered) <= _baseline(wanted.architecture)


def _rank(platform: Platform | None) -> int:
    """Number a variant: v2 above v1; none is the architecture's baseline."""
    match = re.fullmatch(r"v([0-9]{1,3})", (platform.variant if platform else None) or "")
    if match is not None:
        return int(match[1])
    return _baseline(platform.architecture) if platform else 0


def _baseline(architecture: str) -> int:
    return {"arm64": 8, "arm": 7}.get(architecture, 1)


def parse_platform(text: str) -> Platform:
    """Read `os/architecture[/variant]`. ValueError."""
    if not re.fullmatch(r"[a-z0-9]{1,32}/[a-z0-9_]{1,32}(?:/[a-z0-9.]{1,32})?", text):
        raise ValueError(f"{text!r} is no platform: write os/architecture[/variant], such as linux/amd64")
    return Platform(*text.split("/"))


def describe(data: bytes) -> Described:
    """Read the config of an image. ImageSourceError."""
    document = _document(data, CONFIG_LIMIT, "config")
    rootfs = _object(document.get("rootfs"), "rootfs")
    diff_ids = _list(rootfs.get("diff_ids") or [], "rootfs.diff_ids", LAYERS_LIMIT)
    if not all(isinstance(diff_id, str) and DIGEST.fullmatch(diff_id) for diff_id in diff_ids):
        raise corrupt("config has a diff_id that is no digest of SHA-256")
    return Described(
        _platform(document, "config"), tuple(cast("list[str]", diff_ids)), _defaults(document.get("config") or {})
    )


def _defaults(row: object) -> ImageConfig:
    fields = _object(row, "config.config")
    user = _text(fields.get("User") or "", "User")
    if user and not _USER.fullmatch(user):
        raise unsafe("config names a user that cannot be one")
    cwd = _text(fields.get("WorkingDir") or "", "WorkingDir")
    return ImageConfig(
        env=_env(fields.get("Env") or []),
        user=user or None,
        # As everywhere, a place that does not begin at the root is taken from there.
        cwd=posixpath.normpath(f"/{cwd}").replace("//", "/", 1) if cwd else None,
        entrypoint=_words(fields.get("Entrypoint") or [], "Entrypoint"),
        cmd=_words(fields.get("Cmd") or [], "Cmd"),
        labels=_labels(fields.get("Labels") or {}),
        ports=_ports(fields.get("ExposedPorts") or {}),
    )


def _env(rows: object) -> dict[str, str]:
    env: dict[str, str] = {}
    for row in _list(rows, "Env", _WORDS_LIMIT):
        name, equals, value = _text(row, "Env", _ENV_LIMIT).partition("=")
        if not name:
            raise unsafe("config has a variable without a name")
        if equals:
            env[name] = value
    if sum(len(name) + len(value) for name, value in env.items()) > _ENV_LIMIT:
        raise too_large(f"config has more than {_ENV_LIMIT} bytes of environment")
    return env


def _words(rows: object, where: str) -> tuple[str, ...]:
    words = tuple(_text(row, where, _WORDS_LIMIT) for row in _list(rows, where, 4096))
    if sum(map(len, words)) > _WORDS_LIMIT:
        raise too_large(f"config has more than {_WORDS_LIMIT} bytes of {where}")
    return words


def _labels(row: object) -> dict[str, str]:
    labels = {_text(name, "Labels", _LABELS_LIMIT): value for name, value in _object(row, "Labels").items()}
    kept = {name: _text(value, "Labels", _LABELS_LIMIT) for name, value in labels.items()}
    if sum(len(name) + len(value) for name, value in kept.items()) > _LABELS_LIMIT:
        raise too_large(f"config has more than {_LABELS_LIMIT} bytes of labels")
    return kept


def _ports(row: object) -> tuple[str, ...]:
    """Keep what is a port; it is information only, so that a strange one is no reason to refuse."""
    names = _object(row, "ExposedPorts")
    if len(names) > 65536:
        raise too_large("config exposes more ports than there are")
    return tuple(sorted(name for name in names if _PORT.fullmatch(name)))


def _text(value: object, where: str, limit: int = _TEXT_LIMIT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise corrupt(f"config has something else than a short text in {where}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise unsafe(f"config has a text in {where} that no program can be given")
    return value


def _document(data: bytes, limit: int, what: str) -> dict[str, Any]:
    return _object(_json(data, limit, what), what)


def _json(data: bytes, limit: int, what: str) -> Any:
    if len(data) > limit:
        raise too_large(f"{what} has {len(data)} bytes; at most {limit} are read")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise corrupt(f"{what} is no JSON") from error


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise corrupt(f"{where} is no object")
    return cast("dict[str, Any]", value)


def _list(value: object, where: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise corrupt(f"{where} is no list")
    rows = cast("list[Any]", value)
    if len(rows) > limit:
        raise too_large(f"{where} has {len(rows)} entries; at most {limit} are taken")
    return rows
