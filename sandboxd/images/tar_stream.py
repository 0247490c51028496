"""Tar archives as streams: ustar, PAX and GNU, sparse files too. Every header is bounded, nothing is remembered.

What is read is hostile: a number that is none, a checksum that does not fit or a size that lies ends the reading with
SourceDamagedError; too many or too long headers with SourceTooLargeError.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Final

from sandboxd.images import tar_sparse
from sandboxd.images.erofs import SourceDamagedError, SourceTooLargeError
from sandboxd.images.pax import HEADER_LIMIT, number, pax_number, pax_records, pax_time
from sandboxd.images.tar_entry import Entry, Kind

BLOCK: Final = 512
PIECE: Final = 1024 * 1024
"""No piece of a file is longer."""
_HEADERS_IN_A_ROW: Final = 16
_ZEROS: Final = bytes(BLOCK)
_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER_DEVICE,
    b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.PIPE,
}
_PAX: Final = b"xX"
_XATTRS: Final = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_OPAQUE: Final = (b"trusted.overlay.opaque", b"user.overlay.opaque")
_LONG: Final = {b"L": b"path", b"K": b"linkpath"}


class ByteStream:
    """Bytes that come in chunks, taken in the amounts that are needed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return this many bytes; fewer only at the end of the stream."""
        end = self._at + count
        if end <= len(self._held):
            taken = self._held[self._at : end]
            self._at = end
            return taken
        parts = [self._held[self._at :]]
        missing = count - len(parts[0])
        self._held, self._at = b"", 0
        for chunk in self._chunks:
            if len(chunk) >= missing:
                parts.append(chunk[:missing])
                self._held, self._at = chunk, missing
                break
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end."""
        self._held, self._at = b"", 0
        for _ in self._chunks:
            pass


class TarStream:
    """One archive. Each entry's data is read, or passed over, before the next one comes."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._defaults: dict[bytes, bytes] = {}
        self._left = 0
        self._padding = 0
        self._sparse: tar_sparse.Map = ()
        self._plain = True
        self.ended = False
        """Whether the archive said that it ends."""

    def __iter__(self) -> Iterator[Entry]:
        first = True
        while True:
            self._pass_over()
            header = self._stream.take(BLOCK)
            if len(header) < BLOCK:
                if header or first:
                    raise SourceDamagedError("no tar archive" if first else "the archive is cut off")
                return
            if header == _ZEROS:
                self.ended = True
                return
            yield self._entry(header)
            first = False

    def whole(self, entry: Entry) -> bytes:
        """Return the data of a file that has at most one piece."""
        if self._plain and self._left == entry.size:
            self._left = 0
            data = self._stream.take(entry.size)
            if len(data) < entry.size:
                raise SourceDamagedError("the archive is cut off")
            return data
        return b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in self.pieces(entry))

    def pieces(self, entry: Entry) -> Generator[bytes | int]:
        """Read a file's data; a number stands for as many zeros."""
        if self._plain:
            while self._left:
                yield self._data(min(PIECE, self._left))
            return
        at = 0
        for offset, length in self._sparse:
            if offset > at:
                yield offset - at
            at = offset + length
            while length:
                piece = self._data(min(PIECE, length))
                length -= len(piece)  # noqa: PLW2901 - what is left of this stretch
                yield piece
        if entry.size > at:
            yield entry.size - at

    def _data(self, count: int) -> bytes:
        data = self._stream.take(count)
        if len(data) < count:
            raise SourceDamagedError("the archive is cut off")
        self._left -= count
        return data

    def _pass_over(self) -> None:
        while self._left:
            self._data(min(PIECE, self._left))
        if self._padding:
            self._stream.take(self._padding)  # archives that end without it are whole nevertheless
            self._padding = 0

    def _entry(self, header: bytes) -> Entry:
        """Read one entry with all headers that come before it."""
        records = dict(self._defaults)
        offsets: list[tuple[bytes, bytes]] = []
        for _ in range(_HEADERS_IN_A_ROW):
            kind = header[156:157]
            if kind in _PAX:
                new = pax_records(self._extended(header))
                offsets += [row for row in new if row[0] in tar_sparse.REPEATED]
                records.update(new)
            elif kind == b"g":
                self._defaults.update(pax_records(self._extended(header)))
                if sum(len(key) + len(value) for key, value in self._defaults.items()) > HEADER_LIMIT:
                    raise SourceTooLargeError("tar has global headers without end")
                records = self._defaults | records
            elif kind in _LONG:
                records[_LONG[kind]] = self._extended(header).split(b"\0", 1)[0]
            else:
                return self._described(header, records, offsets)
            header = self._stream.take(BLOCK)
            if len(header) < BLOCK:
                raise SourceDamagedError("the archive is cut off")
        raise SourceTooLargeError(f"tar has more than {_HEADERS_IN_A_ROW} headers for one file")

    def _extended(self, header: bytes) -> bytes:
        _check_sum(header)
        size = number(header[124:136])
        if not 0 <= size <= HEADER_LIMIT:
            raise SourceTooLargeError(f"tar has a header of {size} bytes")
        data = self._stream.take(size + -size % BLOCK)
        if len(data) < size:
            raise SourceDamagedError("the archive is cut off")
        return data[:size]

    def _described(self, header: bytes, records: dict[bytes, bytes], offsets: list[tuple[bytes, bytes]]) -> Entry:
        _check_sum(header)
        flag = header[156:157]
        name = header[:100].split(b"\0", 1)[0]
        kind = _KINDS.get(flag)
        if kind is None:
            raise SourceDamagedError(f"{shown(name)} is a member of type {flag!r}")
        if header[257:263] == b"ustar\0" and header[345] and flag != b"S":
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
        entry = Entry(
            name=name,
            kind=kind,
            link=header[157:257].split(b"\0", 1)[0],
            mode=number(header[100:108]) & 0o7777,
            uid=number(header[108:116]),
            gid=number(header[116:124]),
            mtime_ns=number(header[136:148]) * 1_000_000_000,
            size=number(header[124:136]),
        )
        if records:
            _apply(entry, records)
        if flag in b"\0" and entry.name.endswith(b"/"):  # as it was before there were directories in tars
            entry.kind = Kind.DIRECTORY
        if entry.size < 0:
            raise SourceDamagedError(f"{shown(entry.name)} has no possible size")
        if entry.kind is not Kind.FILE:
            entry.size = 0
        if entry.kind is Kind.CHARACTER_DEVICE:
            entry.device = number(header[329:337]), number(header[337:345])
        self._left, self._padding, self._plain = entry.size, -entry.size % BLOCK, True
        if flag == b"S" or (records and kind is Kind.FILE and tar_sparse.is_sparse(records)):
            self._spread(entry, header, records, offsets)
        return entry

    def _spread(
        self, entry: Entry, header: bytes, records: dict[bytes, bytes], offsets: list[tuple[bytes, bytes]]
    ) -> None:
        """Learn where the data of a sparse file belongs; `size` becomes what the file has with its holes."""
        self._plain = False
        if header[156:157] == b"S":
            rows, size = tar_sparse.old_gnu(header, lambda: self._stream.take(BLOCK))
        elif records.get(b"GNU.sparse.major") == b"1":
            rows = tar_sparse.leading(lambda: self._data(BLOCK) if self._left >= BLOCK else b"")
            size = pax_number(records.get(b"GNU.sparse.realsize", b""))
            self._padding = -self._left % BLOCK
        else:
            rows = tar_sparse.in_records(records, offsets)
            size = pax_number(records.get(b"GNU.sparse.size", records.get(b"GNU.sparse.realsize", b"")))
        if (real := records.get(b"GNU.sparse.name")) is not None:
            entry.name = real
        self._sparse = tar_sparse.checked(rows, size, self._left, shown(entry.name))
        entry.size = size


def _check_sum(header: bytes) -> None:
    wanted = number(header[148:156])
    total = 256 + sum(header.rstrip(b"\0")) - sum(header[148:156])
    if total != wanted:
        # Some old programs added the bytes as signed ones.
        signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if signed != wanted:
            raise SourceDamagedError("no tar archive, or one that is damaged: a header's checksum is wrong")


def _apply(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Let the records of extended headers stand in the place of the header's own fields."""
    for key, value in records.items():
        if key == b"path":
            entry.name = value or entry.name
        elif key == b"linkpath":
            entry.link = value or entry.link
        elif key == b"size":
            entry.size = pax_number(value)
        elif key == b"uid":
            entry.uid = pax_number(value)
        elif key == b"gid":
            entry.gid = pax_number(value)
        elif key == b"mtime":
            entry.mtime_ns = pax_time(value)
        elif key.startswith(_XATTRS):
            xattr = key.split(b"xattr.", 1)[1]
            if xattr in _OPAQUE:
                entry.opaque = value == b"y"
            else:
                entry.xattrs.append(xattr)


def shown(name: bytes) -> str:
    """Return a name for a sentence: printable, and not without end."""
    text = name[:120].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "�" for letter in text) + ("…" if len(name) > 120 else "")
