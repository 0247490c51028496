"""Jobs that fetch an image: a program without rights does the work, its file is copied and checked, then it is ours.

What is fetched once is not fetched again for whoever may have it: who was let in by the same repository of the same
registry and was told the same digest. A digest alone proves nothing; whoever knows one could ask for it by a registry
of his own. What a password let in is its project's alone: that it is here must not show by how soon it comes.
"""

import asyncio
import os
import platform
import shutil
import signal
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from sandboxd.contract.images import ImageReason, ImageState, StartImageJob
from sandboxd.contract.references import InvalidReferenceError, Reference, parse
from sandboxd.images.base import ImageConfig, ImageDamagedError, Origin
from sandboxd.images.errands import (
    ARCHIVE,
    LINE_BYTES,
    STORE,
    Errand,
    Event,
    Finished,
    FoundImage,
    Moved,
    Refused,
    RegistrySettings,
    Said,
)
from sandboxd.images.registries import Registries, RegistrySettingsError
from sandboxd.images.runners import JobError, Made, Watch
from sandboxd.images.store import ImageStore
from sandboxd.images.threads import in_thread
from sandboxd.images.tokens import Credential
from sandboxd.packs.keys import PUBLIC

_log = structlog.get_logger(__name__)

_Line = FoundImage | Moved | Said | Finished | Refused
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_OWN: Final = "own"
_WORDS: Final = "words"
_WORDS_BYTES: Final = 4096
_CHUNK: Final = 1024 * 1024
_GIB: Final = 1024**3
_CUT_OFF: Final = "the program that fetched it ended without a word"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrandRules:
    """What holds for every errand."""

    first_uid: int
    """Users from here on belong to nobody else on this machine."""
    reserve_bytes: int = 0
    """Of the disk, left free whatever comes."""
    largest_bytes: int = 64 * _GIB
    seconds: float = 7200
    """An image that takes longer is given up."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])


class ErrandRunner:
    """Runs jobs of the kinds `registry` and `archive`."""

    resumes = True

    def __init__(
        self,
        store: ImageStore,
        home: Path,
        rules: ErrandRules,
        registries: Callable[[], Registries],
        upload: Callable[[str, str], Path],
    ) -> None:
        """`home` holds a directory for each job; `upload` says where an upload of a project lies, ProblemError."""
        self._store = store
        self._home = home
        self._rules = rules
        self._registries = registries
        self._upload = upload
        self._flights: dict[object, asyncio.Future[Made]] = {}
        self._users: set[int] = set()

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:
        """Fetch the image, or share what is fetched already. JobError, ProblemError."""
        watch.became(ImageState.IMPORTING)
        errand, reference, archive = self._errand(asked)
        try:
            async with (
                asyncio.timeout(self._rules.seconds),
                self._place(job_id) as (place, uid),
                _program(place, uid, archive, self._rules.env) as it,
            ):
                await it.say(errand.model_dump_json().encode())
                return await self._follow(it, errand, reference, place / _OWN, _domain(asked, errand), watch)
        except TimeoutError:
            raise JobError(ImageReason.TIMED_OUT, f"not here after {self._rules.seconds:g} s") from None
        except OSError as error:
            raise JobError(ImageReason.TOO_LARGE, f"the node's disk does not take it: {error.strerror}") from error

    def clean(self, job_id: str) -> None:
        """Remove what is kept of a job that will not go on. Blocks."""
        with suppress(RecursionError):
            shutil.rmtree(self._home / job_id, ignore_errors=True)

    def _errand(self, asked: StartImageJob) -> tuple[Errand, Reference | None, Path | None]:
        rules = self._rules
        base = Errand(
            kind="registry",
            platform=_this_platform(),
            config=asked.config,
            reserve_bytes=rules.reserve_bytes,
            largest_bytes=rules.largest_bytes,
        )
        if (archive := asked.source.archive) is not None:
            errand = base.model_copy(update={"kind": archive.format})
            return errand, None, self._upload(asked.project_id, archive.upload)
        wanted = asked.source.registry
        if wanted is None:
            raise JobError(ImageReason.NOT_FOUND, "there is no source that this can fetch")
        try:
            registries = self._registries()
            reference = parse(wanted.reference, registries.naming)
        except RegistrySettingsError as error:
            raise JobError(ImageReason.REGISTRY_UNAVAILABLE, f"the node's settings of registries: {error}") from error
        except InvalidReferenceError as error:
            raise JobError(ImageReason.NOT_FOUND, f"no reference to an image: {error}") from error
        own = Credential(wanted.username, wanted.password or "") if wanted.username is not None else None
        said = {"reference": str(reference), "platform": wanted.platform}
        return base.model_copy(update={**said, "registries": _settings(registries, reference, own)}), reference, None

    @asynccontextmanager
    async def _place(self, job_id: str) -> AsyncGenerator[tuple[Path, int]]:
        """A directory for the program and a user nobody else is meanwhile. Kept for a job that is taken up again."""
        place = self._home / job_id
        uid = next(uid for uid in range(self._rules.first_uid, 2**31) if uid not in self._users)
        self._users.add(uid)
        try:
            await asyncio.to_thread(_prepare, place, uid)
            yield place, uid
        finally:
            await asyncio.shield(asyncio.to_thread(_end_all_of, uid))
            self._users.discard(uid)

    async def _follow(
        self, it: "_Program", errand: Errand, reference: Reference | None, place: Path, domain: str, watch: Watch
    ) -> Made:
        """Listen to the program until it has said its last."""
        events = it.events()
        if errand.kind == "rootfs":
            return await self._finish(events, place, None, domain, watch)
        found = await _found(events)
        watch.said("progress", f"found {found.digest}: {found.layers} layers, {found.total_bytes} bytes")
        watch.moved(0, found.total_bytes)
        where = "" if reference is None else _repository(reference)
        key = (domain, errand.kind, where, found.digest, found.platform, _apart(errand))
        while (made := await self._shared(key, errand, reference, found, watch)) is None:
            if key not in self._flights:
                break
        else:
            return made
        with self._flight(key) as landing:
            await it.say(b"go")
            origin = None if reference is None or errand.config is not None else _origin(reference, found)
            made = await self._finish(events, place, origin, domain, watch)
            landing.set_result(made)
            return made

    @contextmanager
    def _flight(self, key: object) -> Generator[asyncio.Future[Made]]:
        """Let others wait for what is done here. Where it is given up, one of them goes on by itself."""
        landing: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._flights[key] = landing
        try:
            yield landing
        except JobError as error:
            landing.set_exception(error)
            landing.exception()  # seen, though nobody may wait for it
            raise
        finally:
            del self._flights[key]
            landing.cancel()

    async def _shared(
        self, key: tuple[str, ...], errand: Errand, reference: Reference | None, found: FoundImage, watch: Watch
    ) -> Made | None:
        """Return what is here already, or will be by another job's doing."""
        if (flight := self._flights.get(key)) is not None:
            watch.said("progress", "another job fetches the same; waiting for it")
            await asyncio.wait({flight})
            if not flight.cancelled():
                return flight.result()
        if errand.config is not None or reference is None:
            return None
        domain = key[0]
        record = await asyncio.to_thread(self._store.came_from, found.digest, domain)
        if record is None or not any(_is_of(origin, reference, found) for origin in record.origins):
            return None
        watch.said("progress", "it is on this node already")
        watch.moved(found.total_bytes, found.total_bytes)
        return Made(
            image=record.report(),
            platform=found.platform,
            config=record.config,
            origin_digest=found.digest,
            domain=domain,
        )

    async def _finish(
        self, events: AsyncIterator[_Line], place: Path, origin: Origin | None, domain: str, watch: Watch
    ) -> Made:
        async for event in events:
            match event:
                case Moved():
                    watch.moved(event.done_bytes, event.total_bytes)
                case Said():
                    watch.said("progress", event.text)
                case Refused():
                    raise JobError(event.reason, event.text)
                case Finished():
                    return await self._take(event, place, origin, domain)
                case FoundImage():
                    break
        raise JobError(ImageReason.CORRUPT, _CUT_OFF)

    async def _take(self, said: Finished, place: Path, origin: Origin | None, domain: str) -> Made:
        """Make the program's file ours: a copy that nobody else can write, which must be what its digest says."""
        config = ImageConfig(
            env=said.env,
            user=said.user,
            cwd=said.cwd,
            entrypoint=tuple(said.entrypoint),
            cmd=tuple(said.cmd),
            labels=said.labels,
            ports=tuple(said.ports),
        )
        with self._store.workplace() as work:
            copy = work / "image.erofs"
            try:
                await in_thread(lambda: _copy_out(place, said.digest, copy, 2 * self._rules.largest_bytes))
                image = await self._store.register_file(copy, (), config, said.digest, owes=domain)
            except ImageDamagedError as error:
                raise JobError(ImageReason.CORRUPT, str(error)) from error
        record = next((each for each in self._store.records() if each.id == image.id), None)
        if origin is not None and record is not None:
            image = await self._store.name(record, (), origin)
        return Made(
            image=image,
            platform=said.platform,
            config=config,
            dropped=said.dropped,
            origin_digest=said.origin_digest,
            domain=domain,
        )


async def _found(events: AsyncIterator[_Line]) -> FoundImage:
    async for event in events:
        if isinstance(event, FoundImage):
            return event
        if isinstance(event, Refused):
            raise JobError(event.reason, event.text)
        break
    raise JobError(ImageReason.CORRUPT, _CUT_OFF)


def _settings(registries: Registries, reference: Reference, own: Credential | None) -> RegistrySettings:
    """What this errand needs of the operator's settings, and no other registry's password."""
    mirrors = tuple(registries.mirrors.get(reference.registry, ()))
    asked = {reference.registry, *mirrors}
    credentials = {host: each for host, each in registries.credentials.items() if host in asked}
    if own is not None:
        credentials[reference.registry] = own
    return RegistrySettings(
        insecure=tuple(sorted(registries.insecure & asked)),
        private=tuple(sorted(registries.private & asked)),
        mirrors={reference.registry: mirrors} if mirrors else {},
        library=tuple(sorted(registries.naming.library_registries & asked)),
        credentials={host: (each.username, each.password) for host, each in credentials.items()},
    )


def _domain(asked: StartImageJob, errand: Errand) -> str:
    """Whose content it will be: everybody's where everybody was let in, else its project's."""
    open_to_all = errand.kind == "registry" and errand.config is None and not errand.registries.credentials
    return PUBLIC if open_to_all else asked.project_id


def _repository(reference: Reference) -> str:
    return f"{reference.registry}/{reference.repository}"


def _apart(errand: Errand) -> str:
    return "" if errand.config is None else errand.config.model_dump_json()


def _origin(reference: Reference, found: FoundImage) -> Origin:
    return Origin(
        kind="registry",
        reference=str(reference),
        digest=found.digest,
        platform=found.platform,
        at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def _is_of(origin: Origin, reference: Reference, found: FoundImage) -> bool:
    """Whether an image was taken from the same repository, by the same digest."""
    if origin.kind != "registry" or origin.digest != found.digest or origin.platform != found.platform:
        return False
    with suppress(InvalidReferenceError):
        return _repository(parse(origin.reference)) == _repository(reference)
    return False


def _this_platform() -> str:
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def _prepare(place: Path, uid: int) -> None:
    """Make a directory of the user's in one of ours, anew unless it is that user's already."""
    _end_all_of(uid)
    own = place / _OWN
    if own.exists() and own.stat().st_uid != uid:
        shutil.rmtree(own)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive = own / ARCHIVE
    archive.unlink(missing_ok=True)
    archive.touch(mode=0o600, exist_ok=False)
    if os.geteuid() == 0:
        os.chown(own, uid, uid)


def _end_all_of(uid: int) -> None:
    """End whatever runs as that user: the program is told to have no children, but it may not be itself any more."""
    if os.geteuid() != 0:
        return
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and entry.stat().st_uid == uid:
                os.kill(int(entry.name), signal.SIGKILL)


def _copy_out(place: Path, digest: str, target: Path, largest: int) -> None:
    """Copy the file a program made. Its directory is its own: no link in it is followed. ImageDamagedError, OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(place, flags | os.O_DIRECTORY)
    try:
        inner = os.open(STORE, flags | os.O_DIRECTORY, dir_fd=directory)
        try:
            name = f"{digest.removeprefix('sha256:')}.erofs"
            descriptor = os.open(name, flags | os.O_NONBLOCK, dir_fd=inner)
        finally:
            os.close(inner)
    except OSError as error:
        raise ImageDamagedError(f"what was made is not there: {error.strerror}") from error
    finally:
        os.close(directory)
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageDamagedError("what was made is no file")
        with target.open("xb") as copy:
            done = 0
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > largest:
                    raise ImageDamagedError("what was made has no end")
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
    target.chmod(0o444)


class _Program:
    """The program that runs one errand."""

    def __init__(self, process: asyncio.subprocess.Process, words: Path) -> None:
        self._process = process
        self._words = words

    async def say(self, line: bytes) -> None:
        """Tell it something. It may have ended: what it said last tells why."""
        if self._process.stdin is not None:
            with suppress(ConnectionError):
                self._process.stdin.write(line + b"\n")
                await self._process.stdin.drain()

    async def events(self) -> AsyncIterator[_Line]:
        """Yield what it says, checked. JobError for what it may not say."""
        if self._process.stdout is None:
            return
        while True:
            try:
                line = await self._process.stdout.readline()
                if not line:
                    break
                yield Event.model_validate_json(line).of
            except ValueError:
                raise JobError(ImageReason.CORRUPT, "the program that fetched it said what it may not") from None
        _log.warning("errand ended early", words=_last_words(self._words))


def _last_words(path: Path) -> str:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - _WORDS_BYTES))
            return file.read(_WORDS_BYTES).decode(errors="replace")
    return ""


@asynccontextmanager
async def _program(place: Path, uid: int, archive: Path | None, env: Mapping[str, str]) -> AsyncGenerator[_Program]:
    """Have the program run meanwhile; it has ended afterwards."""
    words = place / _WORDS
    with words.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sandboxd.images.errand_program",
            str(uid),
            str(place / _OWN),
            *([] if archive is None else [str(archive)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env=dict(env),
            limit=LINE_BYTES,
            start_new_session=True,
        )
    try:
        yield _Program(process, words)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
