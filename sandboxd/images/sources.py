"""Where an image comes from, whatever it is: the same steps in the same order, each blob checked before it is used."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from sandboxd.contract.references import Reference
from sandboxd.images.failures import ImageReason, ImageSourceError, corrupt, too_large, wrong_platform
from sandboxd.images.manifests import (
    CONFIG_LIMIT,
    MANIFEST_LIMIT,
    Described,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check,
    choose,
    describe,
    digest_of,
    fits,
    parse,
)
from sandboxd.images.partial import Moved
from sandboxd.images.registry import Registry

T = TypeVar("T")

_NESTED = 3
"""An index may name an index; deeper than this nobody looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One image, found: everything small of it is here and checked; its layers are only named."""

    digest: str
    """Of its manifest; of its config where an archive has no manifest."""
    manifest: Manifest
    described: Described

    @property
    def download_bytes(self) -> int:
        return sum(layer.size for layer in {layer.digest: layer for layer in self.manifest.layers}.values())


class Source(Protocol):
    """One image somewhere. Opened as a context; ImageSourceError from everything."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def find(self, platform: Platform) -> Found:
        """Read what describes the image."""
        ...

    async def fetch(self, layer: Descriptor, directory: Path, moved: Moved) -> Path:
        """Bring a layer into `directory`, checked; go on where an earlier try ended."""
        ...


class Documents(Protocol):
    """Small blobs by their digests."""

    async def document(self, descriptor: Descriptor, limit: int, /) -> bytes: ...


async def walk(data: bytes, said: str | None, platform: Platform, manifests: Documents, configs: Documents) -> Found:
    """Follow a manifest or index to one image. The digest of `data` was checked by who got it. ImageSourceError."""
    for _ in range(_NESTED):
        parsed = parse(data, said)
        if isinstance(parsed, Manifest):
            return await _complete(digest_of(data), parsed, platform, configs)
        entry = choose(parsed, platform)
        data, said = await manifests.document(entry, MANIFEST_LIMIT), entry.media_type
        check(data, entry.digest, "manifest")
        if len(data) != entry.size:
            raise corrupt(f"manifest has {len(data)} bytes, not {entry.size}")
    raise corrupt("indexes name indexes without end")


async def _complete(digest: str, manifest: Manifest, platform: Platform, configs: Documents) -> Found:
    data = await configs.document(manifest.config, CONFIG_LIMIT)
    check(data, manifest.config.digest, "config")
    return complete(digest, manifest, data, platform)


def complete(digest: str, manifest: Manifest, config: bytes, platform: Platform) -> Found:
    """Put together what belongs together. ImageSourceError."""
    described = describe(config)
    if not fits(described.platform, platform):
        raise wrong_platform(f"the image is for {described.platform}, not {platform}")
    if len(described.diff_ids) != len(manifest.layers):
        raise corrupt(f"config speaks of {len(described.diff_ids)} layers, manifest of {len(manifest.layers)}")
    return Found(digest=digest, manifest=manifest, described=described)


def only(index: Index, name: str | None) -> Descriptor:
    """Pick the image of a layout: the one of that name, else the only one. ImageSourceError."""
    entries = [entry for entry in index.entries if name is None or entry.name == name]
    if len({entry.digest for entry in entries}) == 1:
        return entries[0]
    names = sorted(entry.name or entry.digest for entry in index.entries)
    said = f"has no image named {name}" if name and not entries else "holds several images"
    raise ImageSourceError(ImageReason.NOT_FOUND, f"it {said}; there are {', '.join(names)[:500] or 'none'}")


class RegistrySource:
    """An image in a registry, or in a mirror of it that answers first."""

    def __init__(self, reference: Reference, endpoints: Sequence[Registry]) -> None:
        """`endpoints` are asked in order; the last one is the registry itself."""
        self._reference = reference
        self._endpoints = endpoints
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for endpoint in self._endpoints:
            await self._stack.enter_async_context(endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def find(self, platform: Platform) -> Found:
        return await self._first(lambda endpoint: _find(endpoint, self._reference.wanted, platform))

    async def fetch(self, layer: Descriptor, directory: Path, moved: Moved) -> Path:
        return await self._first(lambda endpoint: endpoint.blob(layer, directory, moved))

    async def _first(self, ask: Callable[[Registry], Awaitable[T]]) -> T:
        """Ask one after the other; what the registry itself says is final, and this node's limits are."""
        for endpoint in self._endpoints[:-1]:
            try:
                return await ask(endpoint)
            except ImageSourceError as error:
                if error.reason is ImageReason.TOO_LARGE:
                    raise
        return await ask(self._endpoints[-1])


async def _find(endpoint: Registry, wanted: str, platform: Platform) -> Found:
    data, said = await endpoint.manifest(wanted)
    return await walk(data, said, platform, _Manifests(endpoint), endpoint)


@dataclass(frozen=True, slots=True)
class _Manifests:
    """Manifests by digest lie elsewhere in a registry than other blobs."""

    endpoint: Registry

    async def document(self, descriptor: Descriptor, limit: int, /) -> bytes:
        if descriptor.size > limit:
            raise too_large(f"manifest has {descriptor.size} bytes; at most {limit} are read")
        return (await self.endpoint.manifest(descriptor.digest))[0]
