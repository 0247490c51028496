"""The images of one node, in one directory: `<sha256>.erofs` and `<sha256>.json`, each whole or not there.

The directory is the truth. Another process may import into it at any time: its stamp says when to read it again.
"""

import asyncio
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, Final

from sandboxd.contract.ids import image_id_from_digest
from sandboxd.contract.messages import NodeImage
from sandboxd.images import erofs, layers
from sandboxd.images.base import ImageConfig, ImageDamagedError, ImageMissingError, LocalImage, Origin
from sandboxd.images.erofs import ImageBuildError, Sum
from sandboxd.images.layers import Built
from sandboxd.images.locks import SharedLocks
from sandboxd.images.threads import in_thread
from sandboxd.images.tree import ImportLimits

_WORK: Final = ".work"
LEASES: Final = ".lent"
_ORIGINS: Final = 8
_TICK_NS: Final = 20_000_000


class ImageInUseError(Exception):
    """A sandbox lives on the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one image."""

    sum: Sum
    names: tuple[str, ...]
    config: ImageConfig
    origins: tuple[Origin, ...] = ()
    """Where it came from, the latest last; empty for trees."""

    @property
    def id(self) -> str:
        return image_id_from_digest(self.sum.digest)

    @property
    def hex(self) -> str:
        return self.sum.digest.removeprefix("sha256:")

    def report(self) -> NodeImage:
        return NodeImage(id=self.id, digest=self.sum.digest, names=list(self.names), size_bytes=self.sum.size_bytes)


@dataclass(slots=True)
class _Flight:
    """One import that is under way; whoever asks for the same meanwhile gets its result."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    built: Built | None = None
    waiters: int = 0


class ImageStore:
    """Imports, names, checks and lends images. All methods may be called at any time, from one event loop."""

    def __init__(self, directory: Path, limits: ImportLimits | None = None) -> None:
        self._directory = directory
        self._limits = limits or ImportLimits()
        self._records: dict[str, Record] = {}
        self._stamp = -1
        self._settled = False
        self._damaged: set[str] = set()
        self._held_by_us = SharedLocks(directory / LEASES)
        self._flights: dict[Path, _Flight] = {}

    @property
    def directory(self) -> Path:
        """Where everything lies."""
        return self._directory

    async def open(self) -> None:
        """Make the directory, and clear away what imports left that were cut off."""
        await asyncio.to_thread(self._make)
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
    async def lease(self, image_id: str) -> AsyncGenerator[LocalImage]:
        self._refresh()
        record = self._records.get(image_id)
        if record is None:
            raise ImageMissingError(f"{image_id} is not on this node")
        path = self._file(record)
        try:
            await asyncio.to_thread(_look, path, record.sum)
        except ImageDamagedError:
            self._damaged.add(image_id)
            raise
        self._damaged.discard(image_id)
        with self._held_by_us.hold(record.hex):
            yield LocalImage(id=image_id, digest=record.sum.digest, path=path, config=record.config)

    async def import_path(
        self,
        source: Path,
        names: Sequence[str],
        config: ImageConfig,
        report: Callable[[Mapping[str, int]], None] | None = None,
    ) -> NodeImage:
        """Make an image of a directory or a tar. The same tree gives the same image. ImageBuildError.

        `report` is told how many entries lost something, by what it was.
        """
        source = source.resolve()
        flight = self._flights.setdefault(source, _Flight())
        flight.waiters += 1
        try:
            async with flight.lock:
                if flight.built is None:
                    flight.built = await self._import(source)
            if report is not None:
                report(flight.built.dropped)
            return await self._put(flight.built.sum, names, config)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                del self._flights[source]

    async def register_file(
        self, source: Path, names: Sequence[str], config: ImageConfig, expected_digest: str | None = None
    ) -> NodeImage:
        """Take an EROFS file that was made elsewhere, linked where it can be. ImageDamagedError, ImageMissingError."""
        source = source.resolve()
        if not source.is_file():
            raise ImageMissingError(f"there is no file {source}")
        self._refresh()
        known = None if expected_digest is None else self._records.get(image_id_from_digest(expected_digest))
        if known is not None:
            with suppress(ImageDamagedError):
                await asyncio.to_thread(_look, self._file(known), known.sum)
                return await self._put(known.sum, names, config)
        summed = await asyncio.to_thread(erofs.sum_up, source)
        if expected_digest is not None and summed.digest != expected_digest:
            raise ImageDamagedError(f"{source.name} is {summed.digest}, not {expected_digest}")
        await asyncio.to_thread(erofs.place, source, self._directory / f"{summed.digest.removeprefix('sha256:')}.erofs")
        return await self._put(summed, names, config)

    async def remove(self, image_id: str) -> None:
        """Forget an image and its file; nothing happens when there is none. ImageInUseError.

        Leases of other processes count.
        """
        self._refresh()
        if (record := self._records.get(image_id)) is not None:
            await asyncio.to_thread(self._delete, record)
            self._refresh()

    async def unname(self, name: str) -> None:
        """Take a name from the image that has it; the image stays."""
        await asyncio.to_thread(self._unname, name)
        self._refresh()

    def records(self) -> list[Record]:
        """List everything known, damaged or not."""
        self._refresh()
        return list(self._records.values())

    def came_from(self, digest: str) -> Record | None:
        """Return the image that was made from this manifest, if its file is there."""
        for record in self.records():
            if record.id not in self._damaged and any(origin.digest == digest for origin in record.origins):
                with suppress(ImageDamagedError):
                    _look(self._file(record), record.sum)
                    return record
        return None

    async def adopt(
        self, built: Path, summed: Sum, names: Sequence[str], config: ImageConfig, origin: Origin
    ) -> NodeImage:
        """Take a file that was built in a workplace of ours."""
        await in_thread(lambda: self._settle(built, summed))
        return await self._put(summed, names, config, (origin,))

    async def name(self, record: Record, names: Sequence[str], origin: Origin) -> NodeImage:
        """Give an image that is there more names."""
        return await self._put(record.sum, names, record.config, (origin,))

    async def verify(self, image_id: str) -> None:
        """Read the whole file and compare its digest. ImageMissingError, ImageDamagedError."""
        self._refresh()
        record = self._records.get(image_id)
        if record is None:
            raise ImageMissingError(f"{image_id} is not on this node")
        if (await asyncio.to_thread(erofs.sum_up, self._file(record))).digest != record.sum.digest:
            self._damaged.add(image_id)
            raise ImageDamagedError(f"{image_id} is not what its digest says")

    async def _import(self, source: Path) -> Built:
        with self.workplace() as work:
            if source.is_dir():
                build = layers.build_from_directory
            elif source.is_file():
                build = layers.build_from_tar
            else:
                raise ImageBuildError(f"there is no directory and no file {source}")
            made, stop = work / "image.erofs", Event()
            built = await in_thread(lambda: build(source, made, spool=work, limits=self._limits, stop=stop), stop)
            await in_thread(lambda: self._settle(made, built.sum))
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
        self, summed: Sum, names: Sequence[str], config: ImageConfig, origins: tuple[Origin, ...] = ()
    ) -> NodeImage:
        record = await asyncio.to_thread(self._write, summed, tuple(names), config, origins)
        self._damaged.discard(record.id)
        self._refresh()
        return record.report()

    def _write(self, summed: Sum, names: tuple[str, ...], config: ImageConfig, origins: tuple[Origin, ...]) -> Record:
        """Write the record. A name belongs to one image: it is taken from any other."""
        with self._locked():
            records = _read_all(self._directory)
            old = records.get(image_id_from_digest(summed.digest))
            kept = () if old is None else old.names
            came = {origin.reference: origin for origin in (*(() if old is None else old.origins), *origins)}
            record = Record(
                sum=summed,
                names=tuple(dict.fromkeys((*kept, *names))),
                config=config,
                origins=tuple(came.values())[-_ORIGINS:],
            )
            for other in records.values():
                if other.id != record.id:
                    _take_names(self._directory, other, names)
            if record != old:
                _store(self._directory, record)
            return record

    def _unname(self, name: str) -> None:
        with self._locked():
            for record in _read_all(self._directory).values():
                _take_names(self._directory, record, (name,))

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
            self._records = _read_all(self._directory)
            self._stamp = stamp

    def _file(self, record: Record) -> Path:
        return self._directory / f"{record.hex}.erofs"


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


def _take_names(directory: Path, record: Record, names: Sequence[str]) -> None:
    left = tuple(name for name in record.names if name not in names)
    if left != record.names:
        _store(directory, replace(record, names=left))


def _read_all(directory: Path) -> dict[str, Record]:
    """Read every record that has a file; one that cannot be read is no image."""
    records: dict[str, Record] = {}
    for path in sorted(directory.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = _parse(json.loads(path.read_text()))
            if record.hex == path.stem and path.with_suffix(".erofs").exists():
                records[record.id] = record
    return records


def _parse(document: dict[str, Any]) -> Record:
    return Record(
        sum=Sum(
            digest=str(document["digest"]),
            size_bytes=int(document["size_bytes"]),
            superblock=str(document["superblock"]),
        ),
        names=tuple(str(name) for name in document["names"]),
        config=config_from_json(document["config"]),
        origins=tuple(_origin(row) for row in document.get("origins") or ()),
    )


def _origin(row: dict[str, Any]) -> Origin:
    return Origin(**{name: str(row[name]) for name in ("kind", "reference", "digest", "platform", "at")})


def config_from_json(document: dict[str, Any]) -> ImageConfig:
    """Read defaults of an image from JSON as it is written beside one."""
    env: dict[str, Any] = document.get("env") or {}
    labels: dict[str, Any] = document.get("labels") or {}
    return ImageConfig(
        env={name: str(value) for name, value in env.items()},
        user=document.get("user") or None,
        cwd=document.get("cwd") or None,
        entrypoint=tuple(str(word) for word in document.get("entrypoint") or ()),
        cmd=tuple(str(word) for word in document.get("cmd") or ()),
        labels={name: str(value) for name, value in labels.items()},
        ports=tuple(str(port) for port in document.get("ports") or ()),
    )


def _store(directory: Path, record: Record) -> None:
    document = {
        "digest": record.sum.digest,
        "size_bytes": record.sum.size_bytes,
        "superblock": record.sum.superblock,
        "names": list(record.names),
        "config": asdict(record.config),
        "origins": [asdict(origin) for origin in record.origins],
    }
    target = directory / f"{record.hex}.json"
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".", delete=False) as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(target)
