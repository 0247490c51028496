"""The files of a stub's sandbox: kept in memory, with the errors and conditions of the API."""

import base64
import hashlib
import io
import queue
import tarfile
from dataclasses import dataclass
from posixpath import basename, dirname, join, normpath
from typing import Any

from stub_wire import NOW, Answer, Raw, Request, problem

HOME = "/home/user"


@dataclass
class Entry:
    """A file, directory or link."""

    type: str
    data: bytes = b""
    mode: str = "0644"
    owner: str = "user"
    target: str | None = None

    @property
    def etag(self) -> str:
        return '"' + hashlib.sha256(self.data).hexdigest()[:16] + '"'


class StubFiles:
    """One file system."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {
            "/": Entry("directory"),
            "/home": Entry("directory"),
            HOME: Entry("directory"),
        }
        self.watches: list[queue.Queue[dict[str, Any] | None]] = []

    def path(self, request: Request, name: str = "path") -> str:
        if f"{name}_base64" in request.query:
            text = base64.b64decode(request.value(f"{name}_base64")).decode(errors="surrogateescape")
        else:
            text = request.value(name)
        return normpath(join(HOME, text))

    def write(self, path: str, data: bytes, mode: str | None = None) -> Entry:
        self.make_directories(dirname(path))
        old = self.entries.get(path)
        entry = Entry("file", data, mode or (old.mode if old else "0644"))
        self.entries[path] = entry
        self.tell({"kind": "write" if old else "create", "path": path, "is_directory": False, "at": NOW})
        return entry

    def make_directories(self, path: str) -> None:
        while path not in self.entries:
            self.entries[path] = Entry("directory", mode="0755")
            self.tell({"kind": "create", "path": path, "is_directory": True, "at": NOW})
            path = dirname(path)

    def tell(self, event: dict[str, Any]) -> None:
        for watch in self.watches:
            watch.put(event)

    def describe(self, path: str) -> dict[str, Any]:
        entry = self.entries[path]
        shown = {"path": path, "name": basename(path)}
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = {"path_base64": base64.b64encode(path.encode(errors="surrogateescape")).decode()}
        return shown | {
            "type": entry.type,
            "size_bytes": len(entry.data),
            "mode": entry.mode,
            "uid": 1000,
            "gid": 1000,
            "owner": entry.owner,
            "group": "user",
            "modified_at": NOW,
            "symlink_target": entry.target,
            "etag": entry.etag,
        }

    def below(self, path: str) -> list[str]:
        return sorted(one for one in self.entries if one != path and one.startswith(path.rstrip("/") + "/"))

    def pack(self, path: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in self.below(path):
                entry = self.entries[name]
                info = tarfile.TarInfo(name[len(path.rstrip("/")) + 1 :])
                info.mode = int(entry.mode, 8)
                if entry.type == "directory":
                    info.type = tarfile.DIRTYPE
                elif entry.type == "symlink":
                    info.type, info.linkname = tarfile.SYMTYPE, entry.target or ""
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
        return buffer.getvalue()

    def unpack(self, path: str, data: bytes) -> dict[str, int]:
        counts = {"files": 0, "directories": 0, "symlinks": 0, "bytes": 0}
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                target = normpath(join(path, member.name))
                if member.isdir():
                    self.make_directories(target)
                    counts["directories"] += 1
                elif member.issym():
                    self.entries[target] = Entry("symlink", target=member.linkname)
                    counts["symlinks"] += 1
                else:
                    source = archive.extractfile(member)
                    assert source is not None
                    self.write(target, source.read(), f"{member.mode:04o}")
                    counts["files"] += 1
                    counts["bytes"] += member.size
        return counts


def file_route(files: StubFiles, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - a table
    """Answer the calls about files, directories and archives."""
    match [request.method, *rest]:
        case ["POST", "files", "move"]:
            return _move(files, request)
        case ["PATCH", "files"]:
            return _patch(files, request)
        case ["PUT", "files"]:
            return _put(files, request)
        case ["PUT", "directories"]:
            path = normpath(join(HOME, request.json["path"]))
            there = path in files.entries
            files.make_directories(path)
            return (200 if there else 201), files.describe(path)
        case ["PUT", "archive"]:
            return 200, files.unpack(files.path(request), request.body)
        case ["DELETE", "files"]:
            return _remove(files, request)
        case _:
            return _look(files, request, rest)


def _look(files: StubFiles, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - a table
    path = files.path(request)
    if path not in files.entries:
        return 404, problem(404, "file_not_found")
    match rest:
        case ["files", "stat"]:
            return 200, files.describe(path)
        case ["files"]:
            return _get(files, request, path)
        case ["directories"]:
            if files.entries[path].type != "directory":
                return 409, problem(409, "not_a_directory")
            depth = int(request.value("depth", "1")) + path.rstrip("/").count("/")
            shown = [one for one in files.below(path) if one.count("/") <= depth]
            start = int(request.value("cursor", "0"))
            following = str(start + 2) if len(shown) > start + 2 else None
            return 200, {"items": [files.describe(one) for one in shown[start : start + 2]], "next_cursor": following}
        case ["archive"]:
            return 200, Raw(files.pack(path), kind="application/x-tar")
        case _:
            return 404, problem(404, "route_not_found")


def _get(files: StubFiles, request: Request, path: str) -> Answer:
    entry = files.entries[path]
    if entry.type == "directory":
        return 409, problem(409, "is_directory")
    headers = {"ETag": entry.etag, "Accept-Ranges": "bytes"}
    asked = request.headers.get("range")
    if asked is None:
        return 200, Raw(entry.data, headers)
    start, size = int(asked.removeprefix("bytes=").removesuffix("-")), len(entry.data)
    if start >= size:
        return 416, problem(416, "range_not_satisfiable", size_bytes=size)
    return 206, Raw(entry.data[start:], headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"})


def _put(files: StubFiles, request: Request) -> Answer:
    path = files.path(request)
    old = files.entries.get(path)
    if old is not None and old.type == "directory":
        return 409, problem(409, "is_directory")
    if request.headers.get("if-none-match") == "*" and old is not None:
        return 412, problem(412, "generation_mismatch")
    if "if-match" in request.headers and (old is None or old.etag != request.headers["if-match"]):
        return 412, problem(412, "generation_mismatch")
    before = old.data if old is not None and request.is_set("append") else b""
    files.write(path, before + request.body, request.value("mode") or None)
    return (200 if old else 201), files.describe(path)


def _patch(files: StubFiles, request: Request) -> Answer:
    body = request.json
    path = normpath(join(HOME, body["path"]))
    if path not in files.entries:
        return 404, problem(404, "file_not_found")
    entry = files.entries[path]
    entry.mode, entry.owner = body.get("mode", entry.mode), body.get("owner", entry.owner)
    return 200, files.describe(path)


def _move(files: StubFiles, request: Request) -> Answer:
    body = request.json
    source, target = (normpath(join(HOME, body[name])) for name in ("from", "to"))
    if source not in files.entries:
        return 404, problem(404, "file_not_found")
    if target in files.entries and not body.get("overwrite"):
        return 409, problem(409, "already_exists")
    files.entries[target] = files.entries.pop(source)
    return 200, files.describe(target)


def _remove(files: StubFiles, request: Request) -> Answer:
    path = files.path(request)
    if path not in files.entries:
        return (204, None) if request.is_set("missing_ok") else (404, problem(404, "file_not_found"))
    inside = files.below(path)
    if inside and not request.is_set("recursive"):
        return 409, problem(409, "directory_not_empty")
    for one in [path, *inside]:
        del files.entries[one]
    return 204, None
