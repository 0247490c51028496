"""Images out of images and what is laid over them: put together by a program without rights, looked at, kept."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

from pydantic import BaseModel, Field

from sandboxd.builds.assembly import assemble, learn
from sandboxd.builds.plan import config_json
from sandboxd.builds.table import Table
from sandboxd.cgroups import pidfds
from sandboxd.contract.images import ImageReason
from sandboxd.contract.messages import NodeImage
from sandboxd.hooks.base import FailPoints
from sandboxd.images.base import ImageConfig, ImageDamagedError, Origin
from sandboxd.images.erofs import Sum
from sandboxd.images.runners import JobError
from sandboxd.images.store import ImageStore
from sandboxd.images.threads import in_thread
from sandboxd.images.tree import ImportLimits
from sandboxd.images.unit_sums import UnitSums

STEPS: Final = ("make.start", "make.work", "make.keep", "make.kept")
"""What the making of an image reaches."""
_ANSWER_BYTES: Final = 4 * 1024 * 1024
_REQUEST, _ANSWER = 3, 4
_FIRST: Final = 10
"""The descriptors of a worker from here on are what it reads."""
_REASONS: Final = {
    "missing": ImageReason.STEP_FAILED,
    "too_large": ImageReason.TOO_LARGE,
    "damaged": ImageReason.CORRUPT,
    "unsafe": ImageReason.UNSAFE_CONTENT,
    "disk": ImageReason.TOO_LARGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing laid over a tree."""

    kind: str
    """`upper`, `copy` or `directory`."""
    image: Path | None = None
    """Of a copy: the image it takes from; None: the context."""
    sources: tuple[str, ...] = ()
    to: str = ""
    mode: int | None = None
    owner: str | None = None
    path: str = ""
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An image that was made."""

    image: NodeImage
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])


class Difference(Protocol):
    """Writes the upper layer of a sandbox as a tar into a descriptor."""

    async def __call__(self, into: int, /) -> None: ...


class _Made(BaseModel):
    dropped: dict[str, int] = Field(max_length=64)


class Maker:
    """Makes images in one store."""

    def __init__(self, store: ImageStore, points: FailPoints, limits: ImportLimits | None = None, *, uid: int) -> None:
        """`uid` is who does the work, and nobody else is."""
        self._store = store
        self._uid = uid
        self._points = points
        self._limits = limits or ImportLimits()
        self._sums = UnitSums(store.directory)

    async def make(
        self,
        parent: Path | None,
        changes: Sequence[Change],
        config: ImageConfig,
        origin: Origin,
        *,
        context: Path | None = None,
        difference: Difference | None = None,
        upper_bytes: int | None = None,
    ) -> Product:
        """Make an image of a parent with changes laid over it. JobError. Cut off, it leaves nothing."""
        async with self._request("apply", parent, changes, context) as request:
            request.body["apart"] = config_json(config).decode()
            request.body["upper_bytes"] = upper_bytes or self._limits.size_bytes
            answer = await request.answer(difference)
            made = _Made.model_validate(answer)
            await self._points.reach("make.keep")
            built = request.work / "image.erofs"
            summed, table = await in_thread(lambda: _assemble(built, request.work / "table", parent))
            image = await self._store.adopt(built, summed, (), config, origin)
            await self._points.reach("make.kept")
            made_of = self._store.directory / f"{summed.digest.removeprefix('sha256:')}.erofs"
            # Only whoever builds on this image is quicker for it.
            asyncio.get_running_loop().run_in_executor(None, self._learn, made_of, parent, table)
            return Product(image=image, dropped=made.dropped)

    def _learn(self, image: Path, parent: Path | None, table: Table) -> None:
        with suppress(OSError, ValueError, ImageDamagedError):  # an image may be gone before
            learn(self._sums, image, parent, table)

    async def digests(self, copies: Sequence[Change], context: Path | None) -> list[str | None]:
        """Return a digest of what each copy takes from the context; None where there is nothing to take. JobError."""
        if not copies:
            return []
        async with self._request("digest", None, copies, context) as request:
            answer = await request.answer(None)
            return [row.get("digest") for row in cast("list[dict[str, str]]", answer["digests"])]

    @asynccontextmanager
    async def _request(
        self,
        what: str,
        parent: Path | None,
        changes: Sequence[Change],
        context: Path | None,
    ) -> AsyncGenerator["_Request"]:
        await self._points.reach("make.start")
        with self._store.workplace() as work:
            own = work / "own"
            own.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(own, self._uid, self._uid)
            request = _Request(own, self._points, self._sums)
            try:
                await in_thread(lambda: request.fill(what, parent, changes, context))
                request.body |= {
                    "uid": self._uid,
                    "size_bytes": self._limits.size_bytes,
                    "entries": self._limits.entries,
                }
                yield request
            finally:
                request.close()


class _Request:
    """One request to one worker."""

    def __init__(self, work: Path, points: FailPoints, sums: UnitSums) -> None:
        self.work = work
        self._sums = sums
        self.body: dict[str, Any] = {}
        self._points = points
        self._open: list[int] = []
        self._numbers: dict[Path, int] = {}
        self._upper: int | None = None

    def fill(self, what: str, parent: Path | None, changes: Sequence[Change], context: Path | None) -> None:
        rows = [self._row(change) for change in changes]
        name = "copies" if what == "digest" else "changes"
        self.body = {"do": what, "parent": self._number(parent), "context": self._number(context), name: rows}
        images = {path for path in (parent, *(change.image for change in changes)) if path is not None}
        known = {self._number(image): self._sums.path(image) for image in images}
        self.body["units"] = {str(number): self._number(path) for number, path in known.items() if path is not None}

    def _row(self, change: Change) -> dict[str, Any]:
        row: dict[str, Any] = {"kind": change.kind, "image": self._number(change.image), "path": change.path}
        row |= {"sources": change.sources, "to": change.to, "mode": change.mode, "owner": change.owner}
        if change.kind == "upper":
            reading, self._upper = os.pipe2(os.O_CLOEXEC)
            row |= {"exclude": change.exclude, "descriptor": _FIRST + len(self._open)}
            self._open.append(reading)
        return row

    def _number(self, path: Path | None) -> int | None:
        """Open a file for the worker; return the number it will have there."""
        if path is None:
            return None
        if path not in self._numbers:
            self._numbers[path] = _FIRST + len(self._open)
            self._open.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        return self._numbers[path]

    async def answer(self, difference: Difference | None) -> dict[str, Any]:
        """Have it done. JobError."""
        await self._points.reach("make.work")
        asking, answering = os.memfd_create("request"), os.memfd_create("answer")
        try:
            os.write(asking, json.dumps(self.body).encode())
            os.lseek(asking, 0, os.SEEK_SET)
            pid = await asyncio.to_thread(self._spawn, asking, answering)
            try:
                failure = await self._feed(pid, difference)
            finally:
                await _end(pid)
            return _answer(answering, failure)
        finally:
            os.close(asking)
            os.close(answering)

    async def _feed(self, pid: int, difference: Difference | None) -> Exception | None:
        """Feed a worker until it has ended; return what the feeding failed with."""
        failure: Exception | None = None
        if difference is not None and self._upper is not None:
            upper, self._upper = self._upper, None
            self._drop_readers()
            try:
                await difference(upper)
            except Exception as error:  # noqa: BLE001 - a worker that refuses what it reads makes the writer fail
                failure = error
            finally:
                os.close(upper)
        await _ended(pid)
        return failure

    def _drop_readers(self) -> None:
        """Only the worker reads: were it gone, a writer must not wait for us."""
        while self._open:
            os.close(self._open.pop())

    def _spawn(self, asking: int, answering: int) -> int:
        # Descriptors are first moved out of the way of the numbers they are to have.
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)
        ]
        moved = [os.dup(descriptor) for descriptor in (asking, answering, *self._open)]
        high = [_high(descriptor) for descriptor in moved]
        wanted = (_REQUEST, _ANSWER, *range(_FIRST, _FIRST + len(self._open)))
        actions += [(os.POSIX_SPAWN_DUP2, descriptor, number) for descriptor, number in zip(high, wanted, strict=True)]
        try:
            return os.posix_spawn(
                sys.executable,
                [sys.executable, "-c", _START, str(self.work)],
                {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "PYTHONDONTWRITEBYTECODE": "1"},
                file_actions=actions,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        finally:
            for descriptor in high:
                os.close(descriptor)

    def close(self) -> None:
        if self._upper is not None:
            os.close(self._upper)
            self._upper = None
        self._drop_readers()
        shutil.rmtree(self.work, ignore_errors=True)


_START: Final = "import os, sys; os.chdir(sys.argv[1]); from sandboxd.builds.worker import main; main()"


def _high(descriptor: int) -> int:
    made = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(descriptor)
    return made


async def _ended(pid: int) -> None:
    """Wait until a child has ended; it stays to be reaped."""
    pidfd = os.pidfd_open(pid)
    try:
        await pidfds.ended(pidfd)
    finally:
        os.close(pidfd)


async def _end(pid: int) -> None:
    """Make certain that a child has ended, and reap it."""
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)


def _answer(answering: int, failure: Exception | None) -> dict[str, Any]:
    """Return what a worker said. When it was fed badly, what it refuses on its own account counts all the same."""
    torn = JobError(ImageReason.STEP_FAILED, "The sandbox's files could not be read: it ended, or its disk is broken.")
    try:
        answer = _read(answering)
    except JobError as error:
        if failure is None or error.reason is not ImageReason.CORRUPT:
            raise
        raise torn from failure
    if failure is not None:
        raise torn from failure
    return answer


def _read(answering: int) -> dict[str, Any]:
    data = os.pread(answering, _ANSWER_BYTES + 1, 0)
    try:
        answer: Any = json.loads(data) if len(data) <= _ANSWER_BYTES else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise JobError(ImageReason.TOO_LARGE, "The image could not be put together: it took too much memory or time.")
    found = cast("dict[str, Any]", answer)
    if "error" in found:
        raise JobError(_REASONS.get(str(found["error"]), ImageReason.CORRUPT), str(found.get("message"))[:1000])
    return found


def _assemble(built: Path, said: Path, parent: Path | None) -> tuple[Sum, Table]:
    try:
        return assemble(built, said, parent)
    except OSError as error:
        raise JobError(ImageReason.TOO_LARGE, f"The image could not be written: {error.strerror}.") from error
