"""The images of one node, in one directory: `<sha256>.erofs` and `<sha256>.json`, each whole or not there.

The directory is the truth. Another process may import into it at any time: its stamp says when to read it again.
"""

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

import structlog

from sandboxd.contract.ids import image_id_from_digest
from sandboxd.contract.messages import NodeImage
from sandboxd.images import erofs, filling, layers
from sandboxd.images.base import ImageConfig, ImageDamagedError, ImageMissingError, LocalImage, Origin
from sandboxd.images.erofs import ImageBuildError, Sum
from sandboxd.images.failures import ImageSourceError
from sandboxd.images.filling import Filler
from sandboxd.images.layers import Built
from sandboxd.images.locks import SharedLocks
from sandboxd.images.records import Record, config_from_json, read_all, store_record, take_names
from sandboxd.images.shelf import Shelf
from sandboxd.images.threads import in_thread
from sandboxd.images.tree import ImportLimits
from sandboxd.packs.keys import PUBLIC, ManifestName
from sandboxd.packs.manifest import Manifest
from sandboxd.packs.store import PackStore

_log = structlog.get_logger(__name__)

_WORK: Final = ".work"
LEASES: Final = ".lent"
_ORIGINS: Final = 8
_TICK_NS: Final = 20_000_000


class ImageInUseError(Exception):
    """A sandbox lives on the image."""


@dataclass(slots=True)
class _Flight:
    """One import that is under way; whoever asks for the same meanwhile gets its result."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    built: Built | None = None
    waiters: int = 0


class ImageStore:
    """Imports, names, checks and lends images. All methods may be called at any time, from one event loop."""

    def __init__(
        self,
        directory: Path,
        limits: ImportLimits | None = None,
        packs: PackStore | None = None,
        *,
        cache_bytes: int = 0,
        reserve_bytes: int = 0,
        shared: bool = False,
    ) -> None:
        """`packs`: what keeps images for all nodes. `cache_bytes`: what files take here that can be had from it.

        `shared`: other nodes use it too, so that what is owed to it is wanted there soon.
        """
        self._shared = shared
        self._directory = directory
        self._limits = limits or ImportLimits()
        self._records: dict[str, Record] = {}
        self._stamp = -1
        self._settled = False
        self._damaged: set[str] = set()
        self._held_by_us = SharedLocks(directory / LEASES)
        self._flights: dict[Path, _Flight] = {}
        self._sure: set[str] = set()
        self._shelf: Shelf | None = None
        if packs is not None:
            filler = Filler(directory, packs, self._held_by_us, cache_bytes=cache_bytes, reserve_bytes=reserve_bytes)
            self._shelf = Shelf(packs=packs, filler=filler, place=directory / ".place")

    @property
    def directory(self) -> Path:
        """Where everything lies."""
        return self._directory

    async def open(self) -> None:
        """Make the directory, and clear away what imports left that were cut off."""
        await asyncio.to_thread(self._make)
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.open)
        await asyncio.to_thread(self._refresh)

    def held(self) -> list[NodeImage]:
        self._refresh()
        return [record.report() for key, record in self._records.items() if key not in self._damaged]

    def find(self, name_or_id: str) -> NodeImage | None:
        """Return the image of that name, id or digest."""
        for image in self.held():
            if name_or_id in {image.id, image.digest, *image.names}:
                return image
        return None

    @asynccontextmanager
    async def lease(self, image_id: str, digest: str | None = None) -> AsyncGenerator[LocalImage]:
        """Hold an image while a sandbox lives. One that is only in the store is brought here first.

        `digest` finds one that this node has never heard of. ImageMissingError, ImageDamagedError.
        """
        self._refresh()
        record = self._records.get(image_id)
        if record is None and digest is not None and image_id == image_id_from_digest(digest):
            record = await self._adopt_stored(digest, ())
        if record is None:
            raise ImageMissingError(f"{image_id} is not on this node")
        with self._held_by_us.hold(record.hex):
            path = self._file(record)
            try:
                if not await asyncio.to_thread(self._is_whole, record):
                    await self._fill(record)
            except ImageDamagedError:
                if not record.stored:  # else the next try may find the store in order
                    self._damaged.add(image_id)
                raise
            self._damaged.discard(image_id)
            with suppress(OSError):
                os.utime(path.with_suffix(".json"))
            yield LocalImage(id=image_id, digest=record.sum.digest, path=path, config=record.config)

    async def import_path(
        self,
        source: Path,
        names: Sequence[str],
        config: ImageConfig,
        report: Callable[[Mapping[str, int]], None] | None = None,
        domain: str | None = None,
    ) -> NodeImage:
        """Make an image of a directory or a tar. The same tree gives the same image. ImageBuildError.

        `report` is told how many entries lost something, by what it was. `domain`: whose content it is in the store;
        None: it stays on this node. ImageSourceError: the store does not take it.
        """
        source = source.resolve()
        flight = self._flights.setdefault(source, _Flight())
        flight.waiters += 1
        try:
            async with flight.lock:
                if flight.built is None:
                    flight.built = await self._import(source, config, domain)
            if report is not None:
                report(flight.built.dropped)
            return await self._put(flight.built.sum, names, config)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                del self._flights[source]

    async def register_file(
        self,
        source: Path,
        names: Sequence[str],
        config: ImageConfig,
        expected_digest: str | None = None,
        *,
        domain: str | None = None,
        owes: str | None = None,
    ) -> NodeImage:
        """Take an EROFS file that was made elsewhere, linked where it can be. ImageDamagedError, ImageMissingError.

        `domain` as in `import_path`; `owes`: the same, but `pay` puts it into the store later.
        """
        source = source.resolve()
        if not source.is_file():
            raise ImageMissingError(f"there is no file {source}")
        self._refresh()
        known = None if expected_digest is None else self._records.get(image_id_from_digest(expected_digest))
        # Whoever may not know that it is here waits as long as for what is new.
        if known is not None and known.is_of(domain or owes or PUBLIC):
            with suppress(ImageDamagedError):
                await asyncio.to_thread(_look, self._file(known), known.sum)
                return await self._known(known, names, config, domain, owes)
        summed = await asyncio.to_thread(erofs.sum_up, source)
        if expected_digest is not None and summed.digest != expected_digest:
            raise ImageDamagedError(f"{source.name} is {summed.digest}, not {expected_digest}")
        target = self._directory / f"{summed.digest.removeprefix('sha256:')}.erofs"
        if self._shelf is None or domain is None:
            await asyncio.to_thread(erofs.place, source, target)
            return await self._put(summed, names, config, owes=owes)
        async with self._shelf.keeping(source, summed, config, {}, domain) as stored:
            await asyncio.to_thread(erofs.place, source, target)
            return await self._put(summed, names, config, stored=stored)

    async def remove(self, image_id: str) -> None:
        """Forget an image and its file; nothing happens when there is none. ImageInUseError.

        Leases of other processes count.
        """
        self._refresh()
        if (record := self._records.get(image_id)) is not None:
            await asyncio.to_thread(self._delete, record)
            self._refresh()
            if record.stored and self._shelf is not None:
                for name in record.stored:
                    self._shelf.packs.forget(name)
                await self.republish()

    async def unname(self, name: str) -> None:
        """Take a name from the image that has it; the image stays."""
        await asyncio.to_thread(self._unname, name)
        self._refresh()

    def records(self) -> list[Record]:
        """List everything known, damaged or not."""
        self._refresh()
        return list(self._records.values())

    def came_from(self, digest: str, domain: str | None = None) -> Record | None:
        """Return the image that was made from this manifest, if it can be had, and that domain may know of it.

        None: who asks may know of everything.
        """
        for record in self.records():
            known = record.id not in self._damaged and (domain is None or record.is_of(domain))
            if known and any(origin.digest == digest for origin in record.origins):
                if record.stored:
                    return record
                with suppress(ImageDamagedError):
                    _look(self._file(record), record.sum)
                    return record
        return None

    async def adopt(
        self,
        built: Path,
        summed: Sum,
        names: Sequence[str],
        config: ImageConfig,
        origin: Origin | None,
        *,
        dropped: Mapping[str, int] | None = None,
        domain: str | None = None,
        owes: str | None = None,
    ) -> NodeImage:
        """Take a file that was built in a workplace of ours. `domain` and `owes` as in `register_file`.

        ImageSourceError: the store does not take it.
        """
        if owes is not None:
            await in_thread(lambda: self._settle(built, summed))
            return await self._put(summed, names, config, () if origin is None else (origin,), owes=owes)
        return await self._take(summed, dropped or {}, built, names, config, domain, origin)

    async def name(self, record: Record, names: Sequence[str], origin: Origin) -> NodeImage:
        """Give an image that is there more names."""
        return await self._put(record.sum, names, record.config, (origin,))

    async def verify(self, image_id: str) -> bool:
        """Read the whole file and compare its digest. False: it was damaged, and another took its place.

        ImageMissingError, ImageDamagedError: it cannot be had again.
        """
        self._refresh()
        record = self._records.get(image_id)
        if record is None:
            raise ImageMissingError(f"{image_id} is not on this node")
        if record.stored and not self._file(record).exists():
            return True
        if (await asyncio.to_thread(_digest_of, self._file(record))) == record.sum.digest:
            return True
        if self._shelf is None or not record.stored:
            self._damaged.add(image_id)
            raise ImageDamagedError(f"{image_id} is not what its digest says")
        self._sure.discard(record.hex)
        await in_thread(lambda: self._quarantine(record))
        await self._fill(record)
        self._damaged.discard(image_id)
        return False

    async def keep(self, image_id: str, domain: str = PUBLIC) -> None:
        """Have an image of this node in the store too. ImageMissingError, ImageDamagedError, ImageSourceError."""
        self._refresh()
        record = self._records.get(image_id)
        if record is None:
            raise ImageMissingError(f"{image_id} is not on this node")
        if self._shelf is None or any(name.domain == domain for name in record.stored):
            return
        async with (
            self.lease(image_id),
            self._shelf.keeping(self._file(record), record.sum, record.config, {}, domain) as stored,
        ):
            await self._put(record.sum, (), record.config, stored=stored)

    async def owe(self, image_id: str, domain: str) -> None:
        """Have an image of this node put into the store by the next `pay`. Nothing happens when there is none."""
        self._refresh()
        if (record := self._records.get(image_id)) is not None:
            await self._put(record.sum, (), record.config, owes=domain)

    async def pay(self) -> None:
        """Put into the store what is owed to it; what fails is owed on. Public content first: others build on it.

        What set-up made waits, if this node alone uses the store, until there is something else to store.
        """
        owing = [record for record in self.records() if record.owed]
        if self._shelf is None or not (self._shared or any(record.origins for record in owing)):
            return
        debts = [(domain != PUBLIC, record.id, domain) for record in owing for domain in record.owed]
        for _, image_id, domain in sorted(debts):
            try:
                await self.keep(image_id, domain)
            except (ImageSourceError, ImageMissingError, ImageDamagedError) as error:
                _log.warning("an image is not in the store yet", image_id=image_id, error=str(error))

    async def fetch(self, digest: str, names: Sequence[str]) -> NodeImage:
        """Know an image of the store under these names; its file comes when a sandbox needs it.

        ImageMissingError, ImageDamagedError.
        """
        record = await self._adopt_stored(digest, names)
        if record is None:
            raise ImageMissingError(f"{digest} is not in the store")
        return record.report()

    async def republish(self) -> None:
        """Say again what this node needs of the store."""
        if self._shelf is not None:
            await self._shelf.publish(name for record in self.records() for name in record.stored)

    async def manifests(self) -> dict[str, Manifest]:
        """Read what the store says of each image that is in it, by id. ImageDamagedError."""
        found: dict[str, Manifest] = {}
        for record in self.records():
            if self._shelf is not None and record.stored:
                found[record.id] = await self._shelf.manifest(record.stored[0])
        return found

    async def manifest(self, name: ManifestName) -> Manifest:
        """Read one. ImageDamagedError."""
        if self._shelf is None:
            raise ImageDamagedError("there is no store")
        return await self._shelf.manifest(name)

    async def _known(
        self, record: Record, names: Sequence[str], config: ImageConfig, domain: str | None, owes: str | None
    ) -> NodeImage:
        """Name an image that is there, and have it in the store."""
        image = await self._put(record.sum, names, config, owes=owes)
        if domain is not None:
            await self.keep(record.id, domain)
        return image

    async def _adopt_stored(self, digest: str, names: Sequence[str]) -> Record | None:
        found = None if self._shelf is None else await self._shelf.find(digest)
        if found is None:
            return None
        name, manifest = found
        facts = manifest.facts
        summed = Sum(facts.image, facts.size_bytes, facts.superblock)
        image = await self._put(summed, names, config_from_json(dict(facts.config)), stored=name)
        return self._records.get(image.id)

    def _is_whole(self, record: Record) -> bool:
        """Look at a file before it is used; False: it has to come from the store. ImageDamagedError: it cannot."""
        path = self._file(record)
        try:
            _look(path, record.sum)
            if record.hex in self._sure or not record.stored or filling.is_sure(path):
                return True
            # Its writer died before it was on the disk for sure.
            if _digest_of(path) == record.sum.digest:
                filling.make_sure(path)
                return True
        except (ImageDamagedError, OSError) as error:
            if self._shelf is None or not record.stored:
                raise ImageDamagedError(str(error)) from error
        return False

    def _quarantine(self, record: Record) -> None:
        if self._shelf is not None:
            self._shelf.filler.quarantine(self._file(record))

    async def _fill(self, record: Record) -> None:
        """Bring a file here from the store. ImageDamagedError."""
        if self._shelf is None or not record.stored:
            raise ImageDamagedError(f"{record.id} is not in a store")
        others = [(each.stored[0], self._file(each)) for each in self._records.values() if each.stored]
        others = [(name, path) for name, path in others if path.stem != record.hex]
        path = self._file(record)
        await self._shelf.filler.fill(
            record.stored[0], path, lambda: self._is_whole(record), lambda: self._sure.add(record.hex), others
        )
        self._refresh()
        asyncio.get_running_loop().run_in_executor(None, filling.make_sure, path)

    async def _take(
        self,
        summed: Sum,
        dropped: Mapping[str, int],
        made: Path,
        names: Sequence[str],
        config: ImageConfig,
        domain: str | None,
        origin: Origin | None = None,
    ) -> NodeImage:
        """Store what was built, then make it known: in this order, so that nothing is known that is not there."""
        origins = () if origin is None else (origin,)
        if self._shelf is None or domain is None:
            await in_thread(lambda: self._settle(made, summed))
            return await self._put(summed, names, config, origins)
        async with self._shelf.keeping(made, summed, config, dropped, domain) as stored:
            await in_thread(lambda: self._settle(made, summed))
            return await self._put(summed, names, config, origins, stored)

    async def _import(self, source: Path, config: ImageConfig, domain: str | None) -> Built:
        with self.workplace() as work:
            if source.is_dir():
                build = layers.build_from_directory
            elif source.is_file():
                build = layers.build_from_tar
            else:
                raise ImageBuildError(f"there is no directory and no file {source}")
            made, stop = work / "image.erofs", Event()
            built = await in_thread(lambda: build(source, made, spool=work, limits=self._limits, stop=stop), stop)
            await self._take(built.sum, built.dropped, made, (), config, domain)
            return built

    def _settle(self, built: Path, summed: Sum) -> None:
        built.chmod(0o444)
        target = self._directory / f"{summed.digest.removeprefix('sha256:')}.erofs"
        try:
            _look(target, summed)  # the file that sandboxes already share in the page cache stays
        except ImageDamagedError:
            _sync(built)
            built.replace(target)

    @contextmanager
    def workplace(self) -> Generator[Path]:
        """A directory that is somebody's as long as its lock is held, so that a leftover can be told from work."""
        work = Path(tempfile.mkdtemp(dir=self._directory / _WORK))
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)

    async def _put(
        self,
        summed: Sum,
        names: Sequence[str],
        config: ImageConfig,
        origins: tuple[Origin, ...] = (),
        stored: ManifestName | None = None,
        owes: str | None = None,
    ) -> NodeImage:
        record = await asyncio.to_thread(self._write, summed, tuple(names), config, origins, stored, owes)
        self._damaged.discard(record.id)
        self._refresh()
        if stored is not None:
            await self.republish()
        return record.report()

    def _write(
        self,
        summed: Sum,
        names: tuple[str, ...],
        config: ImageConfig,
        origins: tuple[Origin, ...],
        stored: ManifestName | None = None,
        owes: str | None = None,
    ) -> Record:
        """Write the record. A name belongs to one image: it is taken from any other."""
        with self._locked():
            records = read_all(self._directory)
            old = records.get(image_id_from_digest(summed.digest))
            kept = () if old is None else old.names
            came = {origin.reference: origin for origin in (*(() if old is None else old.origins), *origins)}
            where = {
                name.domain: name for name in (*(() if old is None else old.stored), *((stored,) if stored else ()))
            }
            record = Record(
                sum=summed,
                names=tuple(dict.fromkeys((*kept, *names))),
                config=config,
                origins=tuple(came.values())[-_ORIGINS:],
                stored=tuple(where[domain] for domain in sorted(where)),
                owed=tuple(sorted({*(() if old is None else old.owed), *((owes,) if owes else ())} - where.keys())),
            )
            for other in records.values():
                if other.id != record.id:
                    take_names(self._directory, other, names)
            if record != old:
                store_record(self._directory, record)
            return record

    def _unname(self, name: str) -> None:
        with self._locked():
            for record in read_all(self._directory).values():
                take_names(self._directory, record, (name,))

    def _delete(self, record: Record) -> None:
        with self._locked(), self._held_by_us.alone(record.hex) as alone:
            if not alone:
                raise ImageInUseError(f"{record.id} is in use by sandboxes")
            (self._directory / f"{record.hex}.json").unlink(missing_ok=True)
            self._file(record).unlink(missing_ok=True)

    def _make(self) -> None:
        (self._directory / _WORK).mkdir(parents=True, exist_ok=True)
        (self._directory / LEASES).mkdir(mode=0o700, exist_ok=True)
        self._directory.chmod(0o755)
        (self._directory / _WORK).chmod(0o700)
        for leftover in (self._directory / _WORK).iterdir():
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)

    @contextmanager
    def _locked(self) -> Generator[None]:
        descriptor = os.open(self._directory / _WORK, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        """Read the records again if the directory has changed: every change in it is a rename or an unlink."""
        try:
            stamp = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            stamp = -1
        if stamp != self._stamp:
            self._damaged.clear()
        if stamp != self._stamp or not self._settled:
            # A change in the same tick of the kernel's clock would leave the stamp as it is: only an older one counts.
            self._settled = time.time_ns() - stamp > _TICK_NS
            self._records = read_all(self._directory)
            self._stamp = stamp

    def _file(self, record: Record) -> Path:
        return self._directory / f"{record.hex}.erofs"


def _digest_of(path: Path) -> str | None:
    """Read a whole file; None when it is no image at all."""
    try:
        return erofs.sum_up(path).digest
    except ImageDamagedError:
        return None


def _sync(path: Path) -> None:
    """Put a file on the disk before a record speaks of it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look(path: Path, known: Sum) -> None:
    """Look at what a full read would cost too much to look at before each start. ImageDamagedError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImageDamagedError(f"image file cannot be read: {error.strerror}") from error
    if size != known.size_bytes:
        raise ImageDamagedError(f"image file has {size} bytes, not {known.size_bytes}")
    if erofs.read_superblock(path) != known.superblock:
        raise ImageDamagedError("image file has another superblock")
