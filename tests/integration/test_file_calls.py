"""The calls of clients on files, over HTTP and a fake guest: what is accepted, refused, streamed and described."""

import asyncio
import base64
import gzip
import io
import json
import tarfile
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest

from live_stand import StandSandbox, init_of, serving
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.guest_client.fake import FakeGuest

ODD = b"/tmp/caf\xe9"


class Node:
    """A client of one stand."""

    def __init__(self, url: str, session: aiohttp.ClientSession, sandbox: StandSandbox, guest: FakeGuest) -> None:
        self.url, self.session, self.sandbox, self.guest = url, session, sandbox, guest

    def ask(self, method: str, path: str, **options: Any) -> Any:
        if "json" in options:
            options["data"] = json.dumps(options.pop("json")).encode()
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        return self.session.request(method, self.url + path, **options)

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.ask(method, path, **options) as response:
            data = await response.read()
            return response.status, json.loads(data) if "json" in response.content_type and data else data

    async def refused(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        status, body = await self.call(method, path, **options)
        assert body["type"] == f"/errors/{body['code']}"
        assert body["hint"]
        return status, body["code"]

    async def put(self, path: str, data: bytes = b"x", **query: Any) -> tuple[int, Any]:
        return await self.call("PUT", "/files", params={"path": path, **query}, data=data)


@pytest.fixture
async def node() -> AsyncGenerator[Node]:
    guest = FakeGuest()
    await guest.init(init_of())
    sandbox = StandSandbox(guest)
    async with serving(sandbox) as url, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Node(url, session, sandbox, guest)


async def test_a_file_goes_in_and_comes_out(node: Node) -> None:
    data = bytes(range(256)) * 4000
    status, info = await node.put("/tmp/a/b", data, mode="0600")
    assert status == 201
    assert (info["path"], info["name"], info["type"], info["size_bytes"], info["mode"]) == (
        "/tmp/a/b", "b", "file", len(data), "0600",
    )  # fmt: skip
    assert (await node.put("/tmp/a/b", data))[0] == 200
    async with node.ask("GET", "/files", params={"path": "/tmp/a/b"}) as response:
        assert await response.read() == data
        assert response.status == 200
        headers = response.headers
    assert headers["Content-Length"] == str(len(data))
    assert headers["ETag"] == (await node.call("GET", "/files/stat", params={"path": "/tmp/a/b"}))[1]["etag"]
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox"
    assert headers["Content-Disposition"] == "attachment; filename=\"b\"; filename*=UTF-8''b"
    async with node.ask("HEAD", "/files", params={"path": "/tmp/a/b"}) as response:
        assert response.status == 200
        same = ("Content-Length", "ETag", "Accept-Ranges", "Content-Disposition")
        assert [response.headers[name] for name in same] == [headers[name] for name in same]
        assert await response.read() == b""


@pytest.mark.parametrize(
    ("asked", "status", "content", "first"),
    [
        ("bytes=0-3", 206, b"0123", "0-3"),
        ("bytes=7-", 206, b"789", "7-9"),
        ("bytes=-2", 206, b"89", "8-9"),
        ("bytes=0-99", 206, b"0123456789", "0-9"),
        ("bytes=-99", 206, b"0123456789", "0-9"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=10-", 416, None, None),
        ("bytes=-0", 416, None, None),
    ],
)
async def test_ranges(node: Node, asked: str, status: int, content: bytes | None, first: str | None) -> None:
    await node.put("/tmp/ten", b"0123456789")
    async with node.ask("GET", "/files", params={"path": "/tmp/ten"}, headers={"Range": asked}) as response:
        body = await response.read()
        assert response.status == status
        assert response.headers.get("Content-Range") == (first and f"bytes {first}/10")
        if content is None:
            assert json.loads(body)["size_bytes"] == 10
        else:
            assert body == content


async def test_conditions(node: Node) -> None:
    _, info = await node.put("/tmp/x")
    params = {"path": "/tmp/x"}
    for method in ("GET", "HEAD"):
        async with node.ask(method, "/files", params=params, headers={"If-None-Match": info["etag"]}) as response:
            assert (response.status, response.headers["ETag"], await response.read()) == (304, info["etag"], b"")
        async with node.ask(method, "/files", params=params, headers={"If-None-Match": '"other"'}) as response:
            assert response.status == 200

    async def put(**headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await node.call("PUT", "/files", params=params, data=b"y", headers=named)

    status, problem = await put(If_None_Match="*")
    assert (status, problem["code"], problem["etag"]) == (412, "generation_mismatch", info["etag"])
    assert (await put(If_Match='"other"'))[0] == 412
    assert (await put(If_Match=info["etag"]))[0] == 200
    status, problem = await put(If_Match="unquoted")
    assert (status, problem["errors"][0]["path"]) == (422, "header:If-Match")


async def test_packed_bodies_go_in_as_they_are(node: Node) -> None:
    packed = gzip.compress(b"text" * 1000)
    status, info = await node.call(
        "PUT", "/files", params={"path": "/tmp/x"}, data=packed, headers={"Content-Encoding": "gzip"}
    )
    assert (status, info["size_bytes"]) == (201, 4000)
    for encoding in ("br", "gzip, zstd", "deflate"):
        options: dict[str, Any] = {"params": {"path": "/tmp/x"}, "data": b"", "headers": {"Content-Encoding": encoding}}
        assert await node.refused("PUT", "/files", **options) == (415, "unsupported_media_type")
        assert await node.refused("PUT", "/archive", **options) == (415, "unsupported_media_type")


async def test_names_that_are_not_utf8(node: Node) -> None:
    encoded = base64.b64encode(ODD).decode()
    status, info = await node.call("PUT", "/files", params={"path_base64": encoded}, data=b"x")
    assert (status, info["path_base64"], info["name"]) == (201, encoded, "caf\ufffd")
    assert "path" not in info
    assert (await node.call("GET", "/files", params={"path_base64": encoded}))[1] == b"x"
    assert (await node.call("GET", "/directories", params={"path": "/tmp"}))[1]["items"] == [info]
    _, moved = await node.call("POST", "/files/move", json={"from_base64": encoded, "to": "/tmp/plain"})
    assert moved["path"] == "/tmp/plain"
    async with node.session.get(node.url + "/files?path=/tmp/caf%E9") as response:
        assert response.status == 422
    for params in ({}, {"path": "/x", "path_base64": encoded}, {"path_base64": "?"}):
        assert await node.refused("GET", "/files", params=params) == (422, "invalid_request")


@pytest.mark.parametrize("path", ["", "a" * 256, "/" + "a/" * 2050, "a\0b"])
async def test_paths_no_file_system_takes(node: Node, path: str) -> None:
    assert await node.refused("GET", "/files", params={"path": path}) == (400, "invalid_path")
    assert await node.refused("PATCH", "/files", json={"path": path}) == (400, "invalid_path")


async def test_files_are_changed_moved_and_removed(node: Node) -> None:
    await node.put("/tmp/d/x")
    body = {
        "path": "/tmp/d",
        "mode": "0700",
        "owner": "7",
        "modified_at": "2001-02-03T04:05:06.789Z",
        "recursive": True,
    }
    status, info = await node.call("PATCH", "/files", json=body)
    assert (status, info["mode"], info["uid"], info["modified_at"]) == (200, "0700", 7, "2001-02-03T04:05:06.789Z")
    merge = {"Content-Type": "application/merge-patch+json"}
    assert (await node.call("PATCH", "/files", json={"path": "/tmp/d", "mode": "700"}, headers=merge))[0] == 200
    await node.put("/tmp/y")
    assert await node.refused("POST", "/files/move", json={"from": "/tmp/y", "to": "/tmp/d/x"}) == (
        409, "already_exists",
    )  # fmt: skip
    move = {"from": "/tmp/y", "to": "/tmp/d/x", "overwrite": True}
    assert (await node.call("POST", "/files/move", json=move))[1]["path"] == "/tmp/d/x"
    assert await node.refused("DELETE", "/files", params={"path": "/tmp/d"}) == (409, "directory_not_empty")
    assert (await node.call("DELETE", "/files", params={"path": "/tmp/d", "recursive": "true"}))[0] == 204
    assert await node.refused("DELETE", "/files", params={"path": "/tmp/d"}) == (404, "file_not_found")
    assert (await node.call("DELETE", "/files", params={"path": "/tmp/d", "missing_ok": "true"}))[0] == 204


async def test_directories_are_made_and_listed(node: Node) -> None:
    status, info = await node.call("PUT", "/directories", json={"path": "/tmp/d/e", "mode": "0711"})
    assert (status, info["type"], info["mode"]) == (201, "directory", "0711")
    assert (await node.call("PUT", "/directories", json={"path": "/tmp/d/e"}))[0] == 200
    assert await node.refused("PUT", "/directories", json={"path": "/tmp/x/y", "parents": False}) == (
        404, "file_not_found",
    )  # fmt: skip
    for number in range(25):
        await node.put(f"/tmp/d/f{number}")
    whole = [f"/tmp/d/{name}" for name in sorted(["e", *(f"f{number}" for number in range(25))])]
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        _, page = await node.call("GET", "/directories", params={"path": "/tmp/d", "limit": "7", **cursor})
        found += [row["path"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == whole
    other = {"path": "/tmp", "limit": "7", **cursor}
    assert await node.refused("GET", "/directories", params=other) == (400, "invalid_cursor")
    assert await node.refused("GET", "/directories", params=other | {"cursor": "x"}) == (400, "invalid_cursor")
    async with node.ask(
        "GET", "/directories", params={"path": "/tmp/d"}, headers={"Accept": "application/x-ndjson"}
    ) as response:
        assert response.content_type == "application/x-ndjson"
        rows = [json.loads(line) async for line in response.content]
    assert [row["path"] for row in rows] == whole
    params = {"path": "/tmp/d", "limit": "7"}
    ndjson = {"Accept": "application/x-ndjson"}
    assert await node.refused("GET", "/directories", params=params, headers=ndjson) == (422, "invalid_request")


async def test_archives_in_and_out(node: Node) -> None:
    await node.put("/tmp/from/a")
    await node.put("/tmp/from/b/c", b"yy")
    async with node.ask("GET", "/archive", params={"path": "/tmp/from"}) as response:
        data = await response.read()
        assert response.content_type == "application/x-tar"
        assert "from.tar" in response.headers["Content-Disposition"]
    status, result = await node.call("PUT", "/archive", params={"path": "/tmp/to"}, data=data)
    assert (status, result) == (200, {"files": 2, "directories": 1, "symlinks": 0, "bytes": 3})
    assert (await node.call("GET", "/files", params={"path": "/tmp/to/b/c"}))[1] == b"yy"
    async with node.session.get(node.url + "/archive?path=/tmp/from&exclude=a&exclude=c") as response:
        with tarfile.open(fileobj=io.BytesIO(await response.read())) as archive:
            assert archive.getnames() == ["b"]
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("fine"))
        archive.addfile(tarfile.TarInfo("../evil"))
    status, problem = await node.call("PUT", "/archive", params={"path": "/tmp/to"}, data=evil.getvalue())
    assert (status, problem["code"], problem["entry"]) == (422, "unsafe_archive", "../evil")
    assert problem["extracted"] == {"files": 1, "directories": 0, "symlinks": 0, "bytes": 0}
    for params in ({"format": "zip"}, {"strip_components": "-1"}, {"strip_components": "65"}, {"exclude": "x"}):
        assert await node.refused("PUT", "/archive", params={"path": "/x", **params}) == (422, "invalid_request")


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
async def test_a_watch_begins_with_ready(node: Node, accept: str) -> None:
    async with node.ask("GET", "/watch", params={"path": "/tmp"}, headers={"Accept": accept}) as response:
        assert response.content_type == accept
        text = ""
        while "ready" not in text:
            text += (await response.content.readline()).decode()
        await node.put("/tmp/seen")
        while '"path":"/tmp/seen"' not in text:
            text += (await response.content.readline()).decode()
    assert ("event: create\ndata: {" in text) == (accept == "text/event-stream")
    async with asyncio.timeout(10):
        while node.sandbox.users:  # noqa: ASYNC110 - the stand counts
            await asyncio.sleep(0.01)


async def test_requests_are_strict(node: Node) -> None:
    await node.put("/tmp/x")
    for method, path, options in (
        ("PUT", "/files", {"params": {"path": "/x", "paths": "y"}}),
        ("PUT", "/files", {"params": {"path": "/x", "mode": "rw"}}),
        ("PUT", "/files", {"params": {"path": "/x", "append": "1"}}),
        ("GET", "/files", {"params": {"path": "/x", "user": "a b"}}),
        ("GET", "/directories", {"params": {"path": "/x", "depth": "65"}}),
        ("GET", "/directories", {"params": {"path": "/x", "limit": "10001"}}),
        ("PATCH", "/files", {"json": {"path": "/x", "mod": "0644"}}),
        ("PATCH", "/files", {"json": {"path": "/x", "modified_at": "2001-02-03T04:05:06"}}),
        ("POST", "/files/move", {"json": {"from": "/x"}}),
        ("POST", "/files/move", {"json": {"from": "/x", "to": "/y", "to_base64": "eA=="}}),
        ("PUT", "/directories", {"json": {"path": "/x", "mode": "9"}}),
    ):
        assert await node.refused(method, path, **options) == (422, "invalid_request"), (method, path, options)
    assert await node.refused("GET", "/files", params={"path": "/x", "user": "nobody-here"}) == (422, "user_not_found")
    text = {"Content-Type": "text/plain"}
    assert await node.refused("PATCH", "/files", data=b"{}", headers=text) == (415, "unsupported_media_type")


async def test_an_upload_that_breaks_changes_nothing(node: Node) -> None:
    await node.put("/tmp/x", b"before")

    async def breaks() -> AsyncGenerator[bytes]:
        yield b"after"
        raise ConnectionResetError

    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        await node.call("PUT", "/files", params={"path": "/tmp/x"}, data=breaks())
    async with asyncio.timeout(10):
        while node.sandbox.users:  # noqa: ASYNC110 - the stand counts
            await asyncio.sleep(0.01)
    assert node.guest.files["/tmp/x"] == b"before"


async def test_a_full_disk_says_whose(node: Node) -> None:
    node.guest.fail("write", ProblemError("disk_full", "no space left", scope="sandbox"))
    status, problem = await node.put("/tmp/x")
    assert (status, problem["code"], problem["scope"]) == (507, "disk_full", "sandbox")


async def test_a_silent_guest_is_the_guests_fault_until_the_sandbox_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxd.processes.live.VERDICT_SECONDS", 0.1)
    node.guest.fail("stat", GuestUnreachableError("gone"))
    assert await node.refused("GET", "/files/stat", params={"path": "/tmp"}) == (502, "guest_failed")
    node.guest.hang("write")
    upload = asyncio.ensure_future(node.put("/tmp/x"))
    async with asyncio.timeout(10):
        while not node.guest.calls["write"]:  # noqa: ASYNC110 - the fake counts
            await asyncio.sleep(0.01)
    node.sandbox.ended.set()
    assert (await upload)[1]["code"] == "sandbox_ended"
