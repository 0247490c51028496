"""What the images of a node have to do with the store of packs behind them: they go in before they are known here."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Final

import structlog

from sandboxd.images.base import ImageConfig, ImageDamagedError
from sandboxd.images.erofs import ImageBuildError, Sum
from sandboxd.images.erofs_units import meta_bytes_of, units_of
from sandboxd.images.failures import ImageReason, ImageSourceError, too_large
from sandboxd.images.filling import Filler
from sandboxd.images.threads import in_thread
from sandboxd.packs.blobs import BlobError, StoreFullError
from sandboxd.packs.intents import ExpiredError, Writing
from sandboxd.packs.keys import ManifestName
from sandboxd.packs.manifest import Facts, Manifest
from sandboxd.packs.pack import DamagedError
from sandboxd.packs.packer import Stretch
from sandboxd.packs.store import PackStore

_log = structlog.get_logger(__name__)

BUILDER: Final = f"sandlot {version('sandlot-server')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The store of packs, as one directory of images uses it."""

    packs: PackStore
    filler: Filler
    place: Path
    """The file with what this directory is called in the store."""

    def open(self) -> None:
        """Have what is needed on this disk. A store that is not there now may be there later."""
        self.filler.open()
        self._called()
        try:
            self.packs.blobs.open()
        except BlobError as error:
            _log.warning("the store of images cannot be used", error=str(error))

    @asynccontextmanager
    async def keeping(
        self, made: Path, summed: Sum, config: ImageConfig, dropped: Mapping[str, int], domain: str
    ) -> AsyncGenerator[ManifestName]:
        """Have an image in the store, and nothing of it collected until the end. ImageSourceError, ImageBuildError."""
        stop = Event()
        with _told():
            writing = Writing(self.packs.blobs)
            await in_thread(writing.begin)
            try:
                work = _Work(self.packs, made, summed, config, dropped, domain, writing, stop)
                yield await in_thread(work.run, stop)
            finally:
                await in_thread(lambda: _end(writing))

    async def find(self, digest: str) -> tuple[ManifestName, Manifest] | None:
        """Find an image that is in the store, whosever it is. ImageDamagedError: the store cannot say."""

        def look() -> tuple[ManifestName, Manifest] | None:
            name = self.packs.find(digest.removeprefix("sha256:"))
            return None if name is None else (name, self.packs.manifest(name))

        try:
            return await asyncio.to_thread(look)
        except (BlobError, DamagedError) as error:
            raise ImageDamagedError(f"the store cannot be asked for {digest}: {error}") from error

    async def manifest(self, name: ManifestName) -> Manifest:
        """Read what the store says of an image. ImageDamagedError."""
        try:
            return await asyncio.to_thread(lambda: self.packs.manifest(name))
        except (BlobError, DamagedError) as error:
            raise ImageDamagedError(f"the store cannot be asked for {name.image}: {error}") from error

    async def publish(self, names: Iterable[ManifestName]) -> None:
        """Say what this directory needs; if that cannot be said now, it is with the next change."""
        wanted = list(names)
        try:
            await in_thread(lambda: self.packs.publish(self._called(), wanted))
        except BlobError as error:
            _log.warning("what this node needs cannot be told to the store", error=str(error))

    def _called(self) -> str:
        try:
            return self.place.read_text().strip()
        except FileNotFoundError:
            with suppress(FileExistsError), self.place.open("x") as file:
                file.write(secrets.token_hex(10))
            return self.place.read_text().strip()


@dataclass(frozen=True, slots=True)
class _Work:
    """One image's way into the store; blocks."""

    packs: PackStore
    made: Path
    summed: Sum
    config: ImageConfig
    dropped: Mapping[str, int]
    domain: str
    writing: Writing
    stop: Event

    def run(self) -> ManifestName:
        image = self.summed.digest.removeprefix("sha256:")
        self.writing.protect(image)
        known = self.packs.find(image, self.domain)
        if known is not None:
            self.packs.manifest(known)
            return known
        facts = Facts(
            image=self.summed.digest,
            size_bytes=self.summed.size_bytes,
            superblock=self.summed.superblock,
            meta_bytes=meta_bytes_of(self.made),
            config=asdict(self.config),
            dropped=dict(self.dropped),
            builder=BUILDER,
        )
        content = (Stretch(*unit) for unit in units_of(self.made))
        packed = self.packs.add(self.made, content, facts, domain=self.domain, writing=self.writing, tick=self._tick)
        return packed.name

    def _tick(self) -> None:
        if self.stop.is_set():
            raise ImageBuildError("stopped")


@contextmanager
def _told() -> Generator[None]:
    """Say in the words of imports what a store says."""
    try:
        yield
    except StoreFullError as error:
        raise too_large(f"the store of images has no room: {error}") from error
    except (BlobError, DamagedError, ExpiredError) as error:
        raise ImageSourceError(ImageReason.STORE_UNAVAILABLE, f"the store of images: {error}") from error


def _end(writing: Writing) -> None:
    try:
        writing.end()
    except BlobError as error:
        _log.warning("an intent stays in the store until tomorrow", error=str(error))
