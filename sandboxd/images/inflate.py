"""Compressed files read as streams of chunks: bounded in memory, in bytes, and in how far they may expand."""

import bz2
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Final, Protocol

import zstandard

from sandboxd.images.erofs import SourceDamagedError, SourceTooLargeError
from sandboxd.images.tree import ImportLimits

_PIECE: Final = 256 * 1024
_GZIP: Final = 31
_LZMA_MEMORY: Final = 256 * 1024**2
_ZSTD_WINDOW: Final = 128 * 1024**2
_FREE_BYTES: Final = 1024**3
_HEADERS_PER_ENTRY: Final = 2048


class _Decompressor(Protocol):
    """What the library has for a format: fed with input, asked for a bounded amount of output."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Gzip:
    """zlib's interface, made like that of bz2 and lzma: what is left over is kept inside."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_FORMATS: Final[dict[bytes, Callable[[], _Decompressor]]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_MEMORY),
}
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_HEADER: Final = 512
_USTAR_AT: Final = 257


class Inflated:
    """The bytes of a file as they were before it was compressed, by what it is and not by what it is called."""

    def __init__(self, path: Path, limits: ImportLimits, descriptor: int | None = None) -> None:
        """`descriptor`: of a file that is open, read from its start; `path` is what it is called then."""
        self._path = path
        self._descriptor = descriptor
        self._limits = limits
        self._taken = 0
        self._digest = hashlib.sha256()
        self.whole_is_known = True
        """Whether the format itself tells that nothing is missing at the end."""

    @property
    def digest(self) -> str:
        """Of all bytes that came, uncompressed."""
        return f"sha256:{self._digest.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        """Read it once. SourceDamagedError, SourceTooLargeError."""
        most = 2 * self._limits.size_bytes + _HEADERS_PER_ENTRY * self._limits.entries
        given = 0
        with closing(self._chunks()) as chunks:
            try:
                for chunk in chunks:
                    given += len(chunk)
                    if given > most:
                        raise SourceTooLargeError(f"more than {self._limits.size_bytes} bytes")
                    if given > _FREE_BYTES + self._limits.expansion * self._taken:
                        raise SourceTooLargeError(
                            f"{self._path.name} becomes more than {self._limits.expansion} times as large"
                        )
                    self._digest.update(chunk)
                    yield chunk
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
                raise SourceDamagedError(f"{self._path.name} is damaged: {error}") from error
            except OSError as error:
                # The bz2 module has no error of its own; others have a number.
                if error.errno is None:
                    raise SourceDamagedError(f"{self._path.name} is damaged: {error}") from error
                raise

    def _chunks(self) -> Generator[bytes]:
        with self._open() as file:
            start = file.read(_HEADER)
            file.seek(0)
            if start[_USTAR_AT:].startswith(b"ustar"):
                start = b""  # a plain archive, whatever its first file is called
            if start.startswith(_ZSTD):
                yield from self._zstd(file)
                return
            for magic, make in _FORMATS.items():
                if start.startswith(magic):
                    yield from self._members(file, magic, make)
                    return
            while chunk := self._read(file):
                yield chunk

    def _open(self) -> IO[bytes]:
        if self._descriptor is None:
            return self._path.open("rb")
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._descriptor), "rb")

    def _read(self, file: IO[bytes]) -> bytes:
        chunk = file.read(_PIECE)
        self._taken += len(chunk)
        return chunk

    def _members(self, file: IO[bytes], magic: bytes, make: Callable[[], _Decompressor]) -> Generator[bytes]:
        """Read one compressed stream after the other; zeros may follow the last."""
        data = self._read(file)
        while data:
            stream = make()
            while not stream.eof:
                chunk = stream.decompress(data, _PIECE)
                data = b""
                if chunk:
                    yield chunk
                elif not stream.eof:
                    data = self._read(file)
                    if not data:
                        raise EOFError("it is cut off")
            data = stream.unused_data
            while len(data) < len(magic) and (more := self._read(file)):
                data += more
            if not data.startswith(magic):
                self._only_zeros(file, data)
                return

    def _only_zeros(self, file: IO[bytes], data: bytes) -> None:
        while data:
            if data.strip(b"\0"):
                raise SourceDamagedError(f"{self._path.name} is damaged: something else follows")
            data = self._read(file)

    def _zstd(self, file: IO[bytes]) -> Generator[bytes]:
        self.whole_is_known = False
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        with decompressor.stream_reader(file, read_size=_PIECE, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(_PIECE):
                self._taken = file.tell()
                yield chunk
