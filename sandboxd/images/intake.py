"""From a source to an image of this node: found, fetched, checked, built, kept; once, however many ask at once."""

import asyncio
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Final, Protocol, cast

from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig, Origin
from sandboxd.images.erofs import ImageBuildError, SourceDamagedError, SourceTooLargeError
from sandboxd.images.failures import ImageReason, ImageSourceError, corrupt, too_large, unsafe
from sandboxd.images.layers import Built, LayerFile, build_from_layers
from sandboxd.images.locks import own_directory, remove_if_free
from sandboxd.images.manifests import Descriptor, Platform
from sandboxd.images.sources import Found, Source
from sandboxd.images.store import ImageStore
from sandboxd.images.threads import in_thread
from sandboxd.images.tree import ImportLimits
from sandboxd.packs.keys import PUBLIC

_PULLING: Final = ".pulling"
_TOGETHER: Final = 4
_KEPT_SECONDS: Final = 7 * 24 * 3600


class Watch(Protocol):
    """Told how an intake goes on."""

    def found(self, found: Found) -> None: ...

    def waiting(self) -> None:
        """Another process takes the same image in."""
        ...

    def moved(self, count: int) -> None:
        """Bytes of layers came in; negative: some came in for nothing."""
        ...

    def fetched(self, layer: Descriptor) -> None: ...

    def building(self) -> None: ...

    def built(self, dropped: Mapping[str, int]) -> None:
        """The image is made; `dropped` says how much was left out, by what it was."""
        ...


class Unwatched:
    """Nobody looks."""

    def found(self, found: Found) -> None:
        pass

    def waiting(self) -> None:
        pass

    def moved(self, count: int) -> None:
        pass

    def fetched(self, layer: Descriptor) -> None:
        pass

    def building(self) -> None:
        pass

    def built(self, dropped: Mapping[str, int]) -> None:
        pass


class Intake:
    """Takes images into one store. What it downloads lies in `.pulling` until the image is whole."""

    def __init__(
        self,
        store: ImageStore,
        limits: ImportLimits | None = None,
        *,
        reserve_bytes: int = 0,
        domain: str | None = None,
    ) -> None:
        """`reserve_bytes` of the disk are left free whatever is taken in.

        `domain`: whose content it is in the store; None: it stays on this node.
        """
        self._domain = domain
        self._store = store
        self._limits = limits or ImportLimits()
        self._reserve = reserve_bytes
        self._home = store.directory / _PULLING

    async def take(
        self,
        source: Source,
        platform: Platform,
        *,
        kind: str,
        reference: str,
        names: Sequence[str],
        watch: Watch | None = None,
    ) -> NodeImage:
        """Make the image, or name it if it is here already. ImageSourceError."""
        watch = watch or Unwatched()
        found = await source.find(platform)
        origin = Origin(
            kind=kind,
            reference=reference,
            digest=found.digest,
            platform=str(found.described.platform),
            at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        if (image := await self._known(found, names, origin)) is not None:
            return image
        # What others downloaded must not show by how soon ours is complete.
        within = "" if self._domain in {None, PUBLIC} else f"{self._domain}."
        directory = self._home / f"{within}{found.digest.removeprefix('sha256:')}"
        self._check_room(found, directory)
        watch.found(found)
        await in_thread(self._sweep)
        async with own_directory(directory, watch.waiting):
            if (image := await self._known(found, names, origin)) is None:
                layers = await self._fetch(source, found, directory, watch)
                watch.building()
                image, dropped = await self._build(layers, found.described.config, names, origin)
                watch.built(dropped)
            await in_thread(lambda: shutil.rmtree(directory))
        return image

    async def _known(self, found: Found, names: Sequence[str], origin: Origin) -> NodeImage | None:
        record = self._store.came_from(found.digest, self._domain)
        return None if record is None else await self._store.name(record, names, origin)

    def _check_room(self, found: Found, directory: Path) -> None:
        need = found.download_bytes
        if need > self._limits.size_bytes:
            raise too_large(f"the image has {need} bytes to download; at most {self._limits.size_bytes} are taken")
        here = _bytes_in(directory)
        free = shutil.disk_usage(self._store.directory).free - self._reserve
        if need - here > free:
            raise too_large(f"the image has {need - here} bytes to download; this node has room for {max(free, 0)}")

    async def _fetch(self, source: Source, found: Found, directory: Path, watch: Watch) -> list[LayerFile]:
        """Bring every layer once, a few at a time."""
        slots = asyncio.Semaphore(_TOGETHER)

        async def fetch(layer: Descriptor) -> None:
            async with slots:
                await source.fetch(layer, directory, watch.moved)
            watch.fetched(layer)

        try:
            async with asyncio.TaskGroup() as group:
                for layer in {layer.digest: layer for layer in found.manifest.layers}.values():
                    group.create_task(fetch(layer))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        return [
            LayerFile(path=directory / layer.hex, media_type=layer.media_type, diff_id=diff_id)
            for layer, diff_id in zip(found.manifest.layers, found.described.diff_ids, strict=True)
        ]

    async def _build(
        self, layers: Sequence[LayerFile], config: ImageConfig, names: Sequence[str], origin: Origin
    ) -> tuple[NodeImage, Mapping[str, int]]:
        with self._store.workplace() as work:
            spool = work / "spool"
            spool.mkdir()
            target = work / "image.erofs"

            # One tree with two configs is two images.
            apart = json.dumps(asdict(config), sort_keys=True).encode()
            stop = Event()

            def build() -> Built:
                return build_from_layers(layers, target, spool=spool, limits=self._limits, apart=apart, stop=stop)

            try:
                built = await in_thread(build, stop)
            except SourceDamagedError as error:
                raise corrupt(str(error)) from error
            except SourceTooLargeError as error:
                raise too_large(str(error)) from error
            except ImageBuildError as error:
                raise unsafe(str(error)) from error
            image = await self._store.adopt(
                target, built.sum, names, config, origin, dropped=built.dropped, domain=self._domain
            )
            return image, built.dropped

    def _sweep(self) -> None:
        """Remove downloads nobody came back for."""
        if self._home.is_dir():
            for leftover in self._home.iterdir():
                if time.time() - leftover.stat().st_mtime > _KEPT_SECONDS:
                    remove_if_free(leftover)


def _bytes_in(directory: Path) -> int:
    """Count what came before; another process may finish and remove it meanwhile."""
    try:
        return sum(file.stat().st_size for file in directory.iterdir())
    except OSError:
        return 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first thing that went wrong, preferring what trying again does not help against."""
    failures = list(_leaves(group))
    final = [
        error
        for error in failures
        if isinstance(error, ImageSourceError) and error.reason is not ImageReason.REGISTRY_UNAVAILABLE
    ]
    return (final or failures)[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            found.append(error)
    return found
