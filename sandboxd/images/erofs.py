"""EROFS files as the sentry reads them, uncompressed and without xattrs: checked, summed up, put in place."""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.images.base import ImageDamagedError

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_BYTES: Final = 128
_MAGIC: Final = 0xE0F5E1E2
_INCOMPATIBLE_OFFSET: Final = 80
_BLOCK_BITS_OFFSET: Final = 12
_PAGE_BITS: Final = 12
_CHUNK: Final = 1024 * 1024


class ImageBuildError(Exception):
    """The source cannot become an image; `str()` says why, for the person who asked."""


class SourceDamagedError(ImageBuildError):
    """What came is cut off, or not what its format or its digest says."""


class SourceTooLargeError(ImageBuildError):
    """More of it than the limits allow."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file is known by."""

    digest: str
    size_bytes: int
    superblock: str
    """SHA-256 of the superblock: cheap to look at again before each start."""


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
