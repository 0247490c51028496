"""Uploads: what a project sent, by its SHA-256, in parts. Private to the project; nothing of it is looked into here."""

import asyncio
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from sandboxd.contract.ids import is_id
from sandboxd.contract.images import MAX_UPLOAD_BYTES, UploadState
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field
from sandboxd.images.threads import in_thread

KEPT_SECONDS: Final = 24 * 3600.0
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MOST: Final = 64
_WRITE_BYTES: Final = 1024 * 1024


class Uploads:
    """The uploads of one node."""

    def __init__(self, home: Path, *, reserve_bytes: int = 0) -> None:
        self._home = home
        self._reserve = reserve_bytes
        self._busy: set[Path] = set()

    def path(self, project_id: str, sha256: str) -> Path:
        """Return where a whole upload lies; `upload_not_found`. It is kept a day from now on."""
        whole = self._place(project_id, sha256)
        try:
            os.utime(whole)
        except OSError:
            raise _missing(sha256) from None
        return whole

    def state(self, project_id: str, sha256: str) -> UploadState:
        """Return how much of an upload is here; `upload_not_found`."""
        whole = self._place(project_id, sha256)
        if whole.exists():
            size = whole.stat().st_size
            return UploadState(offset=size, total_bytes=size, complete=True)
        for part in whole.parent.glob(f"{whole.name}.*"):
            with suppress(OSError, ValueError):
                total = int(part.suffix[1:])
                return UploadState(offset=part.stat().st_size, total_bytes=total, complete=False)
        raise _missing(sha256)

    async def put(
        self, project_id: str, sha256: str, *, offset: int, total_bytes: int, body: AsyncIterator[bytes]
    ) -> UploadState:
        """Write a part at `offset`, at most to `total_bytes`; the last one must make the whole what it is called.

        ProblemError: `range_not_satisfiable` for a gap, `invalid_request` for another content, `disk_full`,
        `operation_in_progress` while another part is being written.
        """
        whole = self._place(project_id, sha256)
        if whole.exists():
            os.utime(whole)
            return self.state(project_id, sha256)
        part = whole.with_name(f"{sha256}.{total_bytes}")
        if whole in self._busy:
            raise ProblemError("operation_in_progress", "Another part is being written.", retry_after_seconds=1)
        self._busy.add(whole)
        try:
            await asyncio.to_thread(self._prepare, part, offset, total_bytes)
            size = await _append(part, offset, total_bytes, body)
            if size == total_bytes:
                await self._finish(part, whole)
            return UploadState(offset=size, total_bytes=total_bytes, complete=size == total_bytes)
        finally:
            self._busy.discard(whole)

    def sweep(self) -> None:
        """Remove what nobody has sent to, or used, for a day. Blocks."""
        before = time.time() - KEPT_SECONDS
        for file in self._home.glob("prj*/*"):
            with suppress(OSError):
                if file.stat().st_mtime < before and file.with_suffix("") not in self._busy:
                    file.unlink()
        for directory in self._home.glob("prj*"):
            with suppress(OSError):
                directory.rmdir()

    def _place(self, project_id: str, sha256: str) -> Path:
        if not is_id("prj", project_id) or _SHA256.fullmatch(sha256) is None:
            raise _missing(sha256)
        return self._home / project_id / sha256

    def _prepare(self, part: Path, offset: int, total_bytes: int) -> None:
        self.sweep()
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not 0 < total_bytes <= MAX_UPLOAD_BYTES:
            raise invalid_field("query:total_bytes", "range", f"must be from 1 to {MAX_UPLOAD_BYTES}")
        for other in part.parent.glob(f"{part.stem}.*"):
            if other != part:
                other.unlink()
        here = part.stat().st_size if part.exists() else 0
        if offset > here:
            raise ProblemError("range_not_satisfiable", f"Only {here} bytes are here.", size_bytes=here)
        if len(list(part.parent.iterdir())) >= _MOST and not part.exists():
            raise ProblemError(
                "quota_exceeded",
                f"The project has {_MOST} uploads that no image has used yet.",
                quota="uploads",
                limit=_MOST,
            )
        if total_bytes - here > shutil.disk_usage(self._home).free - self._reserve:
            raise ProblemError("disk_full", "The node has no room for this.", scope="node")

    @staticmethod
    async def _finish(part: Path, whole: Path) -> None:
        digest = await in_thread(lambda: _digest(part))
        if digest != whole.name:
            part.unlink(missing_ok=True)
            raise invalid_field("", "digest", f"the content is {digest}; nothing of it was kept")
        part.chmod(0o644)  # its directory is closed; the program that reads it has no rights of its own
        part.replace(whole)


async def _append(part: Path, offset: int, total_bytes: int, body: AsyncIterator[bytes]) -> int:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        size, waiting = offset, bytearray()
        async for data in body:
            if size + len(waiting) + len(data) > total_bytes:
                raise invalid_field("", "too_long", f"there is more than total_bytes, {total_bytes}")
            waiting += data
            if len(waiting) >= _WRITE_BYTES:
                size += await asyncio.to_thread(_write, descriptor, bytes(waiting))
                waiting.clear()
        size += await asyncio.to_thread(_write, descriptor, bytes(waiting))
        if size == total_bytes:
            await asyncio.to_thread(os.fsync, descriptor)
    except OSError as error:
        raise ProblemError("disk_full", f"The node cannot write it: {error.strerror}.", scope="node") from error
    finally:
        os.close(descriptor)
    return size


def _write(descriptor: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(sha256: str) -> ProblemError:
    return ProblemError("upload_not_found", f"There is no upload {sha256[:64]!r}.")
