"""A guest that was taken over lies about files: nothing of it is believed, held, or put into a header."""

import asyncio
import json
import resource
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp
import pytest

from hostile_guest import (
    ANSWERS,
    HostileGuest,
    Script,
    body,
    chunk,
    flood,
    head,
    raw,
    then_close,
    then_silence,
    trickle,
)
from live_stand import StandSandbox, open_socket, serving
from sandboxd.guest_client.connection import Limits
from sandboxd.guest_client.http import HttpGuest
from sandboxd.processes import live

SHORT: Final = Limits(
    connect_seconds=0.5, answer_seconds=0.5, start_seconds=0.5, stall_seconds=0.5, write_seconds=2, work_seconds=0.5,
    idle_seconds=5, settle_seconds=0.05,
)  # fmt: skip
BOUND_SECONDS: Final = 20
MORE_MEMORY_KIB: Final = 96 * 1024
NDJSON: Final = "application/x-ndjson"
OCTETS: Final = "application/octet-stream"


def info(**changes: Any) -> dict[str, Any]:
    honest: dict[str, Any] = {
        "path": "/tmp/x", "name": "x", "type": "file", "size_bytes": 1, "mode": "0644", "uid": 0, "gid": 0,
        "owner": "root", "group": "root", "modified_at": "2026-11-22T11:00:00.000Z", "etag": '"1"',
    }  # fmt: skip
    return honest | changes


def content(*fields: str, data: bytes = b"hello", etag: str = '"1"') -> bytes:
    known = {field.partition(":")[0] for field in fields}
    rest = {"Content-Length": str(len(data)), "Sandlot-Offset": "0", "Sandlot-Size": str(len(data)), "ETag": etag}
    return head(200, *fields, *(f"{k}: {v}" for k, v in rest.items() if k not in known), content_type=OCTETS) + data


def lines(*rows: Any) -> Script:
    data = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    return raw(head(200, f"Content-Length: {len(data)}", content_type=NDJSON) + data)


@pytest.fixture
async def hostile(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[HostileGuest]:
    monkeypatch.setattr(live, "VERDICT_SECONDS", 0.5)
    async with HostileGuest().serving() as guest:
        yield guest


class Node:
    """A client of a node whose one guest lies."""

    def __init__(self, url: str, session: aiohttp.ClientSession, sandbox: StandSandbox) -> None:
        self.url, self.session, self.sandbox = url, session, sandbox

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Make a call, in bounded time and memory. Raises what a broken answer raises."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with asyncio.timeout(BOUND_SECONDS):
            async with self.session.request(method, self.url + path, **options) as answer:
                data = bytearray()
                async for piece in answer.content.iter_any():
                    data += piece[: 1 << 20]
                    if len(data) > 32 << 20:
                        break
                status, headers, found = answer.status, answer.headers, bytes(data)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MORE_MEMORY_KIB
        return status, headers, found

    async def fails(self, method: str, path: str, **options: Any) -> str:
        """Make a call that must be refused, or break; which."""
        try:
            status, _, data = await self.call(method, path, **options)
        except (aiohttp.ClientError, ConnectionError):
            return "broken"
        assert status >= 400, data[:500]
        return json.loads(data)["code"] if data else str(status)


@pytest.fixture
async def node(hostile: HostileGuest) -> AsyncGenerator[Node]:
    guest = HttpGuest("127.0.0.1", "token", open_socket=open_socket, port=hostile.port, limits=SHORT)
    sandbox = StandSandbox(guest)
    async with serving(sandbox) as url, aiohttp.ClientSession() as session:
        yield Node(url, session, sandbox)
    await guest.close()


STAT: Final = ("GET", "/files/stat?path=/tmp/x")


async def test_an_honest_answer_is_passed_on(hostile: HostileGuest, node: Node) -> None:
    hostile.lie("GET files/*", body(info(extra="dropped")))
    status, headers, data = await node.call(*STAT)
    assert (status, json.loads(data), headers["ETag"]) == (200, info(), '"1"')
    hostile.lie("GET files", raw(content("Set-Cookie: a=b", "Content-Disposition: inline", "Location: http://x/")))
    status, headers, data = await node.call("GET", "/files?path=/tmp/x")
    assert (status, data) == (200, b"hello")
    assert {name.lower() for name in headers} == {
        "content-type", "content-length", "content-disposition", "etag", "accept-ranges", "x-content-type-options",
        "content-security-policy", "date", "server",
    }  # fmt: skip


@pytest.mark.parametrize("lie", ANSWERS)
async def test_no_lie_is_believed(hostile: HostileGuest, node: Node, lie: str) -> None:
    hostile.lie("GET files/*", ANSWERS[lie])
    assert await node.fails(*STAT) == "guest_failed" or "error" in lie
    hostile.lie("PUT files", ANSWERS[lie])
    assert (
        await node.fails("PUT", "/files?path=/x", data=b"x" * 100_000) in {"guest_failed", "broken"} or "error" in lie
    )


INFOS: Final[dict[str, dict[str, Any]]] = {
    "no path": {"path": None},
    "two paths": {"path_base64": "L3g="},
    "a relative path": {"path": "x"},
    "a path with NUL": {"path": "/\0"},
    "a giant path": {"path": "/" + "x" * 5000},
    "a path that is no base64": {"path": None, "path_base64": "<script>"},
    "a giant name": {"name": "x" * 10_000},
    "an unknown type": {"type": "portal"},
    "a size below nothing": {"size_bytes": -1},
    "a size beyond everything": {"size_bytes": 2**70},
    "a size that is text": {"size_bytes": "many"},
    "a mode that is none": {"mode": "rwx"},
    "a uid beyond everything": {"uid": 2**40},
    "an owner of any length": {"owner": "x" * 1000},
    "a time that is none": {"modified_at": "yesterday"},
    "a time without a zone": {"modified_at": "2026-11-22T11:00:00"},
    "a target of any length": {"symlink_target": "x" * 10_000},
    "a tag with a line": {"etag": '"1"\r\nSet-Cookie: a=b'},
    "a tag without quotes": {"etag": "1"},
    "a giant tag": {"etag": f'"{"x" * 1000}"'},
    "a tag that ends in a line": {"etag": '"1"\n'},
}


@pytest.mark.parametrize("lie", INFOS)
async def test_no_file_is_what_it_cannot_be(hostile: HostileGuest, node: Node, lie: str) -> None:
    answer = {name: value for name, value in info(**INFOS[lie]).items() if value is not None}
    for call in ("GET files/*", "GET files", "PATCH files", "POST files/*", "PUT files", "PUT directories"):
        hostile.lie(call, body(answer))
    json_type = {"Content-Type": "application/json"}
    assert await node.fails(*STAT) == "guest_failed"
    assert await node.fails("HEAD", "/files?path=/x") == "502"
    assert await node.fails("PUT", "/files?path=/x", data=b"x") == "guest_failed"
    assert await node.fails("PATCH", "/files", data=b'{"path":"/x"}', headers=json_type) == "guest_failed"
    assert await node.fails("POST", "/files/move", data=b'{"from":"/x","to":"/y"}', headers=json_type) == "guest_failed"
    assert await node.fails("PUT", "/directories", data=b'{"path":"/x"}', headers=json_type) == "guest_failed"
    hostile.lie("GET directories", lines(answer, {"more": False}))
    assert await node.fails("GET", "/directories?path=/x") == "guest_failed"
    assert await node.fails("GET", "/directories?path=/x", headers={"Accept": NDJSON}) == "broken"
    assert node.sandbox.reports


CONTENTS: Final[dict[str, Script]] = {
    "no length": then_close(head(200, "Sandlot-Offset: 0", "Sandlot-Size: 5", 'ETag: "1"') + b"hello"),
    "no size": raw(content("Sandlot-Size: ")),
    "a size below nothing": raw(content("Sandlot-Size: -5")),
    "a giant size": raw(content("Sandlot-Size: " + "9" * 25)),
    "less than the length": raw(content("Sandlot-Size: 3")),
    "an offset beyond": raw(content("Sandlot-Offset: 9")),
    "no tag": raw(content(etag="")),
    "a bad tag": raw(content(etag='"a" "b"')),
    "a chunked body": raw(
        head(200, "Sandlot-Offset: 0", "Sandlot-Size: 5", 'ETag: "1"', "Transfer-Encoding: chunked") + chunk(b"hello")
    ),
    "packed": raw(content("Content-Encoding: gzip")),
    "less than promised": then_close(content("Content-Length: 9", "Sandlot-Size: 9")),
    "nothing of what was promised": then_silence(content("Content-Length: 9", "Sandlot-Size: 9", data=b"")),
    "a byte at a time, then none": then_silence(content("Content-Length: 9", "Sandlot-Size: 9")),
}


@pytest.mark.parametrize("lie", CONTENTS)
async def test_no_content_is_what_it_cannot_be(hostile: HostileGuest, node: Node, lie: str) -> None:
    hostile.lie("GET files", CONTENTS[lie])
    assert await node.fails("GET", "/files?path=/x") in {"guest_failed", "broken"}


async def test_more_than_promised_is_cut_off(hostile: HostileGuest, node: Node) -> None:
    hostile.lie("GET files", flood(content(), b"more " * 10_000))
    for _ in range(3):
        try:
            status, _, data = await node.call("GET", "/files?path=/x")
            assert status == 502 or data == b"hello"
        except aiohttp.ClientError:
            continue


LINES: Final[dict[str, Script]] = {
    "another type": body(b"{}"),
    "nothing": lines(),
    "no end": lines(info()),
    "an end that is none": lines(info(), {"more": 1}),
    "more but nothing": lines({"more": True}),
    "more than was asked for": lines(*[info()] * 1002, {"more": True}),
    "no JSON": lines(b"nonsense", {"more": False}),
    "something behind the end": lines({"more": False}, info()),
    "half a line": raw(head(200, "Content-Length: 5", content_type=NDJSON) + b'{"mor'),
    "a line without end": flood(head(200, content_type=NDJSON), b"x" * 65_536),
    "a deep line": lines(b"[" * 60_000, {"more": False}),
    "cut": then_close(head(200, "Content-Length: 500000", content_type=NDJSON) + json.dumps(info()).encode() + b"\n"),
    "silence": then_silence(head(200, content_type=NDJSON) + json.dumps(info()).encode() + b"\n"),
    "one byte at a time": trickle(head(200, content_type=NDJSON), b" "),
}


@pytest.mark.parametrize("lie", LINES)
async def test_no_listing_is_what_it_cannot_be(hostile: HostileGuest, node: Node, lie: str) -> None:
    hostile.lie("GET directories", LINES[lie])
    if lie == "one byte at a time":
        return  # it never stops, and each byte is one: bounded by who reads
    assert await node.fails("GET", "/directories?path=/x") == "guest_failed"
    if lie == "more than was asked for":
        return  # as NDJSON, there is no limit
    assert await node.fails("GET", "/directories?path=/x", headers={"Accept": NDJSON}) in {"guest_failed", "broken"}


async def test_a_listing_without_end_is_passed_on_and_not_held(hostile: HostileGuest, node: Node) -> None:
    hostile.lie("GET directories", flood(head(200, content_type=NDJSON), (json.dumps(info()).encode() + b"\n") * 1000))
    status, _, data = await node.call("GET", "/directories?path=/x", headers={"Accept": NDJSON})
    assert status == 200
    assert len(data) > 1_000_000
    hostile.lie("GET archive", flood(head(200, content_type=OCTETS), b"x" * 65_536))
    assert (await node.call("GET", "/archive?path=/x"))[0] == 200
    async with asyncio.timeout(10):
        while node.sandbox.users:  # noqa: ASYNC110 - the stand counts
            await asyncio.sleep(0.01)


EVENTS: Final[dict[str, Any]] = {
    "an unknown kind": {"kind": "boom", "path": "/x"},
    "no path": {"kind": "create"},
    "a relative path": {"kind": "create", "path": "x"},
    "a time that is none": {"kind": "create", "path": "/x", "at": "now"},
    "a giant path": {"kind": "create", "path": "/" + "x" * 5000},
    "no object": [],
}


@pytest.mark.parametrize("lie", EVENTS)
@pytest.mark.parametrize("accept", [NDJSON, "text/event-stream"])
async def test_no_event_is_what_it_cannot_be(hostile: HostileGuest, node: Node, lie: str, accept: str) -> None:
    hostile.lie("GET watch", lines({"kind": "ready"}, EVENTS[lie]))
    assert await node.fails("GET", "/watch?path=/x", headers={"Accept": accept}) == "broken"


@pytest.mark.parametrize(
    "answer",
    [
        {"files": -1, "directories": 0, "symlinks": 0, "bytes": 0},
        {"files": 1, "directories": 0, "symlinks": 0, "bytes": 2**70},
        {"files": 1},
        {"files": "1", "directories": "0", "symlinks": "0", "bytes": "<b>"},
    ],
)
async def test_no_extraction_is_what_it_cannot_be(hostile: HostileGuest, node: Node, answer: dict[str, Any]) -> None:
    hostile.lie("PUT archive", body(answer))
    assert await node.fails("PUT", "/archive?path=/x", data=b"x") == "guest_failed"


@pytest.mark.parametrize(
    "problem",
    [
        {"code": "unsafe_archive", "message": "x"},
        {"code": "unsafe_archive", "message": "x", "entry": "x", "extracted_files": {"a": 1}},
        {"code": "range_not_satisfiable", "message": "x", "size_bytes": -1},
        {"code": "generation_mismatch", "message": "x", "etag": 1},
    ],
)
async def test_no_problem_has_members_of_another_kind(hostile: HostileGuest, node: Node, problem: Any) -> None:
    hostile.lie("GET files/*", body(problem, 422))
    assert await node.fails(*STAT) == "guest_failed"


async def test_a_full_disk_is_always_the_sandboxs(hostile: HostileGuest, node: Node) -> None:
    hostile.lie("PUT files", body({"code": "disk_full", "message": "x", "scope": "node"}, 507))
    _, _, data = await node.call("PUT", "/files?path=/x", data=b"x")
    assert json.loads(data)["scope"] == "sandbox"


async def test_a_guest_that_takes_nothing_ends_the_upload(hostile: HostileGuest, node: Node) -> None:
    hostile.takes_no_input = True
    hostile.lie("PUT files", then_silence(b""))

    async def endless() -> AsyncGenerator[bytes]:
        while True:
            yield b"x" * 65_536

    assert await node.fails("PUT", "/files?path=/x", data=endless()) in {"guest_failed", "broken"}
