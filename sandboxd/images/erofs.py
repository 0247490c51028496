"""EROFS files as the sentry reads them: uncompressed, no inline data, no xattrs; made by mkfs.erofs, checked here."""

import asyncio
import hashlib
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.images.base import ImageDamagedError

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_BYTES: Final = 128
_MAGIC: Final = 0xE0F5E1E2
_UUID_OFFSET: Final = SUPERBLOCK_OFFSET + 48
_INCOMPATIBLE_OFFSET: Final = 80
_BLOCK_BITS_OFFSET: Final = 12
_PAGE_BITS: Final = 12
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
_CHUNK: Final = 1024 * 1024


class ImageBuildError(Exception):
    """The source cannot become an image; `str()` says why, for the person who asked."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file is known by."""

    digest: str
    size_bytes: int
    superblock: str
    """SHA-256 of the superblock: cheap to look at again before each start."""


async def build(tree: Path, target: Path, newest_mtime: int) -> None:
    """Write the tree as an EROFS file whose bytes depend on nothing but the tree. ImageBuildError."""
    program = await _mkfs(tree, target, newest_mtime)
    if program.returncode != 0:
        raise ImageBuildError(f"mkfs.erofs failed: {program.words}")
    await asyncio.to_thread(_set_uuid, target)


@dataclass(frozen=True, slots=True)
class _Ended:
    returncode: int
    words: str


async def _mkfs(tree: Path, target: Path, newest_mtime: int) -> _Ended:
    with tempfile.TemporaryFile() as words:
        try:
            process = await asyncio.create_subprocess_exec(
                "mkfs.erofs",
                "--quiet",
                "-x-1",
                "-Enoinline_data,nosbcrc",
                f"-U{_NO_UUID}",
                str(target),
                str(tree),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=words,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
                # The time of the build is in the superblock, and a file younger than it would lose its own.
                | {"SOURCE_DATE_EPOCH": str(newest_mtime)},
            )
        except FileNotFoundError as error:
            raise ImageBuildError("mkfs.erofs is not installed (package erofs-utils)") from error
        try:
            returncode = await process.wait()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        words.seek(0)
        return _Ended(returncode, words.read(4096).decode(errors="replace").strip())


def _set_uuid(path: Path) -> None:
    """Name the file system after its content, so that no other can stand in for it at a restore."""
    digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(_UUID_OFFSET)
        file.write(digest.digest()[:16])


def set_apart(path: Path, words: bytes) -> None:
    """Let the name of the file system follow from `words` too: images of one tree with two configs are two images."""
    with path.open("r+b") as file:
        file.seek(_UUID_OFFSET)
        uuid = file.read(16)
        file.seek(_UUID_OFFSET)
        file.write(hashlib.sha256(uuid + words).digest()[:16])


def sum_up(path: Path) -> Sum:
    """Read the whole file. ImageDamagedError when it is no EROFS file that the sentry can read."""
    superblock = read_superblock(path)
    return Sum(digest=f"sha256:{_digest(path).hexdigest()}", size_bytes=path.stat().st_size, superblock=superblock)


def read_superblock(path: Path) -> str:
    """Check the superblock and return its SHA-256. ImageDamagedError."""
    try:
        with path.open("rb") as file:
            file.seek(SUPERBLOCK_OFFSET)
            superblock = file.read(SUPERBLOCK_BYTES)
    except OSError as error:
        raise ImageDamagedError(f"image file cannot be read: {error.strerror}") from error
    if len(superblock) < SUPERBLOCK_BYTES or struct.unpack_from("<I", superblock)[0] != _MAGIC:
        raise ImageDamagedError("image file is no EROFS file system")
    (incompatible,) = struct.unpack_from("<I", superblock, _INCOMPATIBLE_OFFSET)
    if incompatible:
        raise ImageDamagedError(f"image file needs EROFS features that gVisor lacks: {incompatible:#x}")
    if superblock[_BLOCK_BITS_OFFSET] < _PAGE_BITS:
        raise ImageDamagedError("image file has blocks smaller than a page")
    return hashlib.sha256(superblock).hexdigest()


def place(source: Path, target: Path) -> None:
    """Put a file where it belongs, whole or not at all: linked where it can be, else copied."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        try:
            aside.hardlink_to(source)
        except OSError:
            _copy(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(0o444)


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
