"""Files in memory, for the fake guest: one user who may do everything, symbolic links not followed on the way."""

import asyncio
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final

from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.file_calls import Content, ExtractOptions, Part, Target, WriteOptions, encoded

_PIECE: Final = 65_536
_HOME: Final = b"/home/user"


@dataclass(slots=True)
class FakeNode:
    """One file, directory or link."""

    number: int
    data: bytes | None = None
    target: bytes | None = None
    mode: str = "0644"
    uid: int = 1000
    gid: int = 1000
    modified_at: str = "2026-11-22T11:00:00.000Z"
    changes: int = 0

    @property
    def type(self) -> str:
        if self.target is not None:
            return "symlink"
        return "directory" if self.data is None else "file"

    @property
    def etag(self) -> str:
        seen = hashlib.sha256(self.data or b"").hexdigest()[:16]
        return f'"{self.number:x}-{self.changes:x}-{seen}"'


class FakeFiles(Mapping[str, bytes]):
    """GuestFiles without a disk; a mapping of the files there are."""

    def __init__(self, enter: Callable[[str], Awaitable[None]], now: Callable[[], datetime]) -> None:
        self._enter = enter
        self._now = now
        self._count = 0
        self._nodes: dict[bytes, FakeNode] = {}
        self._watches: set[asyncio.Queue[bytes]] = set()
        for path in (b"/", b"/home", _HOME, b"/tmp"):
            self._nodes[path] = self._new(mode="0755")

    def __getitem__(self, path: str) -> bytes:
        node = self._nodes[_absolute(path.encode())]
        if node.data is None:
            raise KeyError(path)
        return node.data

    def put(self, path: str, content: bytes) -> None:
        """Have a file, and the directories above it."""
        place = _absolute(path.encode())
        self._parents(place, make=True)
        self._nodes[place] = self._new(data=content)

    def __iter__(self) -> Iterator[str]:
        return (path.decode(errors="replace") for path, node in self._nodes.items() if node.data is not None)

    def __len__(self) -> int:
        return sum(node.data is not None for node in self._nodes.values())

    async def stat(self, target: Target, *, follow: bool) -> dict[str, Any]:
        await self._enter("stat")
        path = self._place(target, follow=follow)
        return self._describe(path, self._find(path))

    async def readable(self, target: Target) -> dict[str, Any]:
        await self._enter("readable")
        path = self._place(target, follow=True)
        self._content(path)
        return self._describe(path, self._find(path))

    def read(self, target: Target, part: Part, unless: str | None) -> AbstractAsyncContextManager[Content]:
        return self._read(target, part, unless)

    @asynccontextmanager
    async def _read(self, target: Target, part: Part, unless: str | None) -> AsyncGenerator[Content]:
        await self._enter("read")
        path = self._place(target, follow=True)
        data, node = self._content(path), self._find(path)
        if unless is not None and _matches(unless, node.etag):
            yield Content(etag=node.etag, unchanged=True)
            return
        first, end = _span(part, len(data))
        piece = data[first:end]
        yield Content(etag=node.etag, offset=str(first), size=str(len(data)), length=len(piece), pieces=_pieces(piece))

    async def write(
        self, target: Target, body: AsyncIterator[bytes], options: WriteOptions
    ) -> tuple[dict[str, Any], bool]:
        await self._enter("write")
        path = self._place(target, follow=options.append)
        self._expect(path, options)
        self._parents(path, make=options.parents)
        present = self._nodes.get(path)
        if present is not None and present.type == "directory":
            raise ProblemError("is_directory", "it is a directory")
        data = await _whole(body, options.encoding)
        self._expect(path, options)
        if present is not None and present.data is not None:
            node = present
            node.data = (present.data if options.append else b"") + data
            node.changes += 1
        else:
            node = self._nodes[path] = self._new(data=data)
        node.mode = _mode(options.mode) or node.mode
        self._tell("write" if present else "create", path)
        return self._describe(path, node), present is None

    async def change(self, target: Target, changes: dict[str, str], *, recursive: bool) -> dict[str, Any]:
        await self._enter("change")
        path = self._place(target, follow=True)
        self._find(path)
        for each, node in self._nodes.items():
            if each == path or (recursive and each.startswith(_inside(path))):
                node.mode = _mode(changes.get("mode")) or node.mode
                node.uid = _number(changes.get("owner")) or node.uid
                node.gid = _number(changes.get("group")) or node.gid
                node.modified_at = changes.get("modified_at") or node.modified_at
                node.changes += 1
        self._tell("chmod", path)
        return self._describe(path, self._find(path))

    async def remove(self, target: Target, *, recursive: bool, missing_ok: bool) -> None:
        await self._enter("remove")
        path = self._place(target, follow=False)
        if path not in self._nodes:
            if missing_ok:
                return
            self._find(path)
        if path == b"/":
            raise ProblemError("in_use", "it is the root")
        below = self._below(path)
        if below and not recursive:
            raise ProblemError("directory_not_empty", "it is not empty")
        for each in (path, *below):
            del self._nodes[each]
        self._tell("remove", path)

    async def move(self, target: Target, to: bytes, *, overwrite: bool) -> dict[str, Any]:
        await self._enter("move")
        path, goal = self._place(target, follow=False), _absolute(to)
        self._find(path)
        self._parents(goal, make=False)
        if goal in self._nodes and not overwrite:
            raise ProblemError("already_exists", "there is something of that name")
        if self._below(goal):
            raise ProblemError("directory_not_empty", "it is not empty")
        for each in (path, *self._below(path)):
            self._nodes[goal + each[len(path) :]] = self._nodes.pop(each)
        self._tell("rename", path, goal)
        return self._describe(goal, self._find(goal))

    async def make_directory(self, target: Target, mode: str | None, *, parents: bool) -> tuple[dict[str, Any], bool]:
        await self._enter("make_directory")
        path = self._place(target, follow=True)
        self._parents(path, make=parents)
        present = self._nodes.get(path)
        if present is not None and present.type != "directory":
            raise ProblemError("not_a_directory", "it is a file")
        node = present or self._new(mode=_mode(mode) or "0755")
        self._nodes[path] = node
        return self._describe(path, node), present is None

    def listing(
        self, target: Target, *, depth: int, limit: int, after: bytes
    ) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        return self._listing(target, depth, limit, after)

    @asynccontextmanager
    async def _listing(
        self, target: Target, depth: int, limit: int, after: bytes
    ) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        await self._enter("listing")
        path = self._place(target, follow=True)
        if self._find(path).type != "directory":
            raise ProblemError("not_a_directory", "it is a file")
        found = [each for each in sorted(self._below(path)) if each[len(_inside(path)) :].count(b"/") < depth]
        rest = [each for each in found if each > after]
        shown = rest[:limit] if limit else rest
        lines = [json.dumps(self._describe(each, self._nodes[each])).encode() for each in shown]
        yield _batches([*lines, json.dumps({"more": len(shown) < len(rest)}).encode()])

    def pack(
        self, target: Target, archive_format: str, exclude: list[str]
    ) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
        return self._pack(target, archive_format, exclude)

    @asynccontextmanager
    async def _pack(
        self, target: Target, archive_format: str, exclude: list[str]
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        await self._enter("pack")
        path = self._place(target, follow=True)
        root = self._find(path)
        base = _inside(path) if root.type == "directory" else path.rpartition(b"/")[0] + b"/"
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz" if archive_format == "tar.gz" else "w") as archive:
            for each in sorted(self._below(path)) or [path] * (root.type == "file"):
                name = each[len(base) :].decode(errors="surrogateescape")
                if not any(fnmatchcase(part, glob) for glob in exclude for part in (*name.split("/"), name)):
                    _add(archive, name, self._nodes[each])
        yield _pieces(out.getvalue())

    async def unpack(self, target: Target, body: AsyncIterator[bytes], options: ExtractOptions) -> dict[str, Any]:
        await self._enter("unpack")
        path = self._place(target, follow=True)
        data = await _whole(body, "gzip" if options.archive_format == "tar.gz" else None)
        counted = {"files": 0, "directories": 0, "symlinks": 0, "bytes": 0}
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for entry in archive:
                    self._extract(path, archive, entry, options, counted)
        except tarfile.TarError:
            raise ProblemError("malformed_request", "this is no archive") from None
        return counted

    def _extract(
        self,
        path: bytes,
        archive: tarfile.TarFile,
        entry: tarfile.TarInfo,
        options: ExtractOptions,
        counted: dict[str, int],
    ) -> None:
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if entry.name.startswith("/") or ".." in parts or entry.isdev():
            raise ProblemError("unsafe_archive", "it leads outside", entry=entry.name, extracted=dict(counted))
        if len(parts) <= options.strip:
            return
        place = _inside(path) + "/".join(parts[options.strip :]).encode(errors="surrogateescape")
        self._parents(place, make=True)
        if entry.isdir():
            self._nodes.setdefault(place, self._new(mode="0755"))
            counted["directories"] += 1
            return
        if place in self._nodes and not options.overwrite:
            raise ProblemError("already_exists", "it is there already")
        if entry.issym():
            self._nodes[place] = self._new(target=entry.linkname.encode(errors="surrogateescape"))
            counted["symlinks"] += 1
            return
        content = archive.extractfile(entry)
        data = b"" if content is None else content.read()
        self._nodes[place] = self._new(data=data, mode=f"{entry.mode & 0o777:04o}")
        counted["files"] += 1
        counted["bytes"] += len(data)

    def watch(self, target: Target, *, recursive: bool) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        return self._watch(target, recursive=recursive)

    @asynccontextmanager
    async def _watch(self, target: Target, *, recursive: bool) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        del recursive
        await self._enter("watch")
        self._find(self._place(target, follow=True))
        if len(self._watches) >= 64:
            raise ProblemError("too_many_streams", "there are 64 watches already", limit=64)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        queue.put_nowait(b'{"kind":"ready"}')
        self._watches.add(queue)
        try:
            yield self._told(queue)
        finally:
            self._watches.discard(queue)

    async def _told(self, queue: asyncio.Queue[bytes]) -> AsyncGenerator[list[bytes]]:
        while True:
            yield [await queue.get()]

    def _tell(self, kind: str, path: bytes, to: bytes | None = None) -> None:
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        event = {"kind": kind, "is_directory": False, "at": at} | _named("path", path)
        event |= {} if to is None else _named("to", to)
        for queue in self._watches:
            queue.put_nowait(json.dumps(event).encode())

    def _new(self, **fields: Any) -> FakeNode:
        self._count += 1
        return FakeNode(self._count, **fields)

    def _place(self, target: Target, *, follow: bool) -> bytes:
        if target.user == "nobody-here":
            raise ProblemError("user_not_found", f"no such user: {target.user}")
        path = _absolute(target.path)
        node = self._nodes.get(path)
        if follow and node is not None and node.target is not None:
            return _absolute(path.rpartition(b"/")[0] + b"/" + node.target)
        return path

    def _find(self, path: bytes) -> FakeNode:
        node = self._nodes.get(path)
        if node is None:
            self._parents(path, make=False)
            raise ProblemError("file_not_found", "there is no such file")
        return node

    def _content(self, path: bytes) -> bytes:
        node = self._find(path)
        if node.data is None:
            raise ProblemError("is_directory", "it is a directory")
        return node.data

    def _parents(self, path: bytes, *, make: bool) -> None:
        parts = path.split(b"/")[1:-1]
        for count in range(1, len(parts) + 1):
            parent = b"/" + b"/".join(parts[:count])
            node = self._nodes.get(parent)
            if node is None and make:
                self._nodes[parent] = self._new(mode="0755")
            elif node is None:
                raise ProblemError("file_not_found", "there is no such directory")
            elif node.type != "directory":
                raise ProblemError("not_a_directory", "a part of the path is a file")

    def _below(self, path: bytes) -> list[bytes]:
        return [each for each in self._nodes if each != b"/" and each.startswith(_inside(path))]

    def _expect(self, path: bytes, options: WriteOptions) -> None:
        node = self._nodes.get(path)
        etag = "" if node is None else node.etag
        wanted = options.match is None or _matches(options.match, etag)
        if not wanted or (options.non_match is not None and _matches(options.non_match, etag)):
            raise ProblemError("generation_mismatch", "it is not as expected", etag=etag)

    def _describe(self, path: bytes, node: FakeNode) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": path.rpartition(b"/")[2].decode(errors="replace") or "/", "type": node.type,
            "size_bytes": len(node.data or b""), "mode": node.mode, "uid": node.uid, "gid": node.gid,
            "owner": _owner(node.uid), "group": _owner(node.gid),
            "modified_at": node.modified_at, "etag": node.etag,
        }  # fmt: skip
        return found | _named("path", path) | ({} if node.target is None else _named("symlink_target", node.target))


def _owner(number: int) -> str:
    return "user" if number == 1000 else str(number)


def _named(name: str, path: bytes) -> dict[str, str]:
    try:
        return {name: path.decode()}
    except UnicodeDecodeError:
        return {name + "_base64": encoded(path)}


def _absolute(path: bytes) -> bytes:
    whole = path if path.startswith(b"/") else _HOME + b"/" + path
    parts: list[bytes] = []
    for part in whole.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


def _inside(path: bytes) -> bytes:
    return path.rstrip(b"/") + b"/"


def _matches(header: str, etag: str) -> bool:
    return bool(etag) and (header == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(",")))


def _mode(text: str | None) -> str | None:
    return None if text is None else f"{int(text, 8):04o}"


def _number(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise ProblemError("user_not_found", f"no such user: {text}")
    return None if text is None else int(text)


def _span(part: Part, size: int) -> tuple[int, int]:
    if part.suffix is not None and part.suffix > 0 and size:
        return max(0, size - part.suffix), size
    if part == Part():
        return 0, size
    if part.first is not None and part.first < size:
        return part.first, size if part.last is None else min(size, part.last + 1)
    raise ProblemError("range_not_satisfiable", f"there are {size} bytes", size_bytes=size)


def _add(archive: tarfile.TarFile, name: str, node: FakeNode) -> None:
    info = tarfile.TarInfo(name)
    info.mode = int(node.mode, 8)
    if node.target is not None:
        info.type, info.linkname = tarfile.SYMTYPE, node.target.decode(errors="surrogateescape")
    elif node.data is None:
        info.type = tarfile.DIRTYPE
    info.size = len(node.data or b"")
    archive.addfile(info, io.BytesIO(node.data or b""))


async def _whole(body: AsyncIterator[bytes], encoding: str | None) -> bytes:
    data = b"".join([piece async for piece in body])
    if encoding is None:
        return data
    try:
        return zlib.decompress(data, wbits=31)
    except zlib.error:
        raise ProblemError("malformed_request", "the body cannot be unpacked") from None


async def _pieces(data: bytes) -> AsyncGenerator[bytes]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]


async def _batches(lines: list[bytes]) -> AsyncGenerator[list[bytes]]:
    for at in range(0, len(lines), 1024):
        yield lines[at : at + 1024]
