"""Requests that nobody's client library would send, byte by byte, to the api's public address."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.app import protocol
from api_stand import PATIENCE_SECONDS, Stand, api

_PIECE = 65_536
_FLOOD_BYTES = 64 * 1024 * 1024


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


class Wire:
    """A connection that says exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Read one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *rows = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, json.loads(body) if body else None

    async def over(self) -> bool:
        """Wait until the server hangs up; False when it says something instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def wire(stand: Stand) -> AsyncGenerator[Wire]:
    host, port = stand.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_SECONDS):
        connection = Wire(*await asyncio.open_connection(host, int(port)))
        try:
            yield connection
        finally:
            connection.writer.transport.abort()


async def said(stand: Stand, text: str) -> tuple[int, dict[str, str], Any]:
    async with wire(stand) as connection:
        connection.writer.write(text.encode("latin-1"))
        return await connection.answer()


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /v1/run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"POST /v1/run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
)
async def test_nobody_makes_the_api_hold_an_endless_head(stand: Stand, beginning: bytes) -> None:
    """Without a key, and whichever part of a request is endless, the connection ends long before memory does."""
    piece = b"x: y\r\n" * (_PIECE // 6) if beginning.endswith(b"1.1\r\n") else b"a" * _PIECE
    async with wire(stand) as connection:
        connection.writer.write(beginning)
        sent = 0
        try:
            while sent < _FLOOD_BYTES and not connection.reader.at_eof():
                connection.writer.write(piece)
                sent += len(piece)
                await connection.writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
    assert sent < _FLOOD_BYTES


async def test_a_head_that_trickles_in_is_cut_off(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    for beginning in (b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"):
        async with wire(stand) as connection:
            connection.writer.write(beginning)
            status, headers, body = await connection.answer()
            assert (status, headers["connection"], body["code"]) == (400, "close", "malformed_request")
            assert await connection.over()


async def test_one_address_holds_only_so_many_connections_of_the_api(tmp_path: Path) -> None:
    async with api(tmp_path, api_connections_per_address=3) as stand, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(wire(stand)) for _ in range(3)]
        for each in held:
            each.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await each.answer())[0] == 200
        async with wire(stand) as one_more:
            assert await one_more.over()
        held[0].writer.close()

        async def served() -> bool:
            async with wire(stand) as again:
                again.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                return not await again.over()

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await served():  # noqa: ASYNC110 - the place comes free at the other end
                await asyncio.sleep(0.01)


async def test_a_body_may_take_its_time(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is the head's: a long call outlives it."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}?wait_for=stopped&wait_seconds=0.5"
    answer = await stand.root.call("GET", path)
    assert answer.status == 200


@pytest.mark.parametrize(
    "head",
    [
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: +4",
        "Content-Length: 4, 4",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "X: a\r\n folded",
        "X: a\0b",
        "X: a\rAuthorization: b",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
    ],
)
async def test_a_request_ends_in_one_place_only(stand: Stand, head: str) -> None:
    """What two programs could cut in two ways is not taken at all, and nothing behind it is read."""
    request = f"POST /v1/run HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with wire(stand) as connection:
        connection.writer.write(request.encode("latin-1"))
        status, headers, body = await connection.answer()
        assert (status, headers["connection"], body["code"]) == (400, "close", "malformed_request")
        assert await connection.over()


async def test_nothing_behind_an_upgrade_is_a_request(stand: Stand) -> None:
    async with wire(stand) as connection:
        connection.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        await asyncio.sleep(0)
        connection.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await connection.over()


async def test_pipelined_requests_are_answered_in_order(stand: Stand) -> None:
    async with wire(stand) as connection:
        connection.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await connection.answer())[0] == 200
        assert (await connection.answer())[0] == 404


@pytest.mark.parametrize(
    "line", ["GET /{long} HTTP/1.1", "GET /healthz?x={long} HTTP/1.1", "GET / HTTP/1.1\r\nX: {long}"]
)
async def test_a_line_longer_than_a_node_takes_is_refused_here(stand: Stand, line: str) -> None:
    status, _, body = await said(stand, line.format(long="a" * 8200) + "\r\nHost: x\r\n\r\n")
    assert (status, body["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    "target",
    [
        "/node/v1/report",
        "//node/v1/report",
        "http://node/node/v1/report",
        "/internal/v1/node-reports",
        "/v1/sandboxes/{id}/processes/../../../../node/v1/report",
        "/v1/sandboxes/{id}/processes/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fnode%2fv1%2freport",
        "/v1/sandboxes/{id}/processes/..%2f..%2f..%2f..%2fnode%2fv1%2freport/output",
        "/v1/sandboxes/{id}/../{other}/processes",
        "/v1/sandboxes/{id}%2f..%2f{other}/processes",
        "/v1/sandboxes/{id}/processes/%00/output",
        "/V1/sandboxes/{id}/processes",
    ],
)
async def test_no_path_leads_past_the_routes(stand: Stand, target: str) -> None:
    """The node's own calls and another's sandbox cannot be named through one's own."""
    own, other = await stand.root.create(), await stand.root.create()
    before = len(stand.node.requests)
    target = target.replace("{id}", own["id"]).replace("{other}", other["id"])
    status, _, body = await said(
        stand, f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {stand.root.headers['Authorization']}\r\n\r\n"
    )
    assert status == 404, body
    asked = [request.raw_path for request in stand.node.requests[before:]]
    assert not [path for path in asked if other["id"] in path or "report" in path], asked


@pytest.mark.parametrize("text", ["/v1/sandboxes?name=\xff", "/v1/sandboxes/\xff", "/v1/sandboxes/%ff/processes"])
async def test_what_is_no_text_is_no_fault_of_ours(stand: Stand, text: str) -> None:
    status, _, _ = await said(
        stand, f"GET {text} HTTP/1.1\r\nHost: x\r\nAuthorization: {stand.root.headers['Authorization']}\r\n\r\n"
    )
    assert status in {400, 404, 422}


async def test_a_node_is_told_what_a_call_needs_and_no_more(stand: Stand) -> None:
    sandbox = await stand.root.create()
    headers = {
        "Cookie": "a=b",
        "X-Forwarded-For": "10.0.0.1",
        "Sandlot-Request-Id": "req" + "a" * 20,
        "Sandlot-Anything": "x",
        "Connection": "keep-alive, accept",
        "Upgrade": "x",
        "Idempotency-Key": "k",
    }
    answer = await stand.root.call("GET", f"/v1/sandboxes/{sandbox['id']}/processes", headers=headers)
    asked = stand.node.requests[-1]
    assert asked.path.endswith("/processes")
    assert {name.lower() for name in asked.headers} <= {"host", "accept", "idempotency-key", "sandlot-request-id"}
    assert asked.headers["Sandlot-Request-Id"] == answer.headers["Sandlot-Request-Id"] != headers["Sandlot-Request-Id"]


KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
BEHIND = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def attachment(stand: Stand) -> tuple[str, str]:
    """A process's address for WebSockets, and the header of a key that may attach."""
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/processes"
    process = (await stand.root.call("POST", path, {"argv": ["cat"]})).expect(201)
    return f"{path}/{process['id']}/attach", f"Authorization: {stand.root.headers['Authorization']}\r\n"


@pytest.mark.parametrize("path", ["/healthz", "/v1/sandboxes", "/v1/me", "/nowhere"])
async def test_an_upgrade_is_one_on_the_routes_of_websockets_alone(stand: Stand, path: str) -> None:
    key = f"Authorization: {stand.root.headers['Authorization']}\r\n"
    async with wire(stand) as connection:
        connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{key}{HANDSHAKE}\r\n{BEHIND}".encode())
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (404 if path == "/nowhere" else 200, "close")
        assert await connection.over()


@pytest.mark.parametrize(
    "key", ["", "Authorization: Bearer nonsense\r\n", "Sec-WebSocket-Protocol: sandlot.bearer.x\r\n"]
)
async def test_before_it_is_known_who_asks_there_is_no_upgrade(stand: Stand, key: str) -> None:
    path, _ = await attachment(stand)
    before = len(stand.node.requests)
    async with wire(stand) as connection:
        connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{key}{HANDSHAKE}\r\n{BEHIND}".encode())
        status, headers, body = await connection.answer()
        assert (status, headers["connection"], body["code"]) == (401, "close", "unauthenticated")
        assert await connection.over()
    assert len(stand.node.requests) == before


async def test_what_is_said_before_the_switch_goes_nowhere(stand: Stand) -> None:
    """Neither a request nor the beginning of the stream: the node sees none of it."""
    path, key = await attachment(stand)
    async with wire(stand) as connection:
        connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{key}{HANDSHAKE}\r\n{BEHIND}".encode())
        status, headers, body = await connection.answer()
        assert (status, headers["connection"]) == (400, "close"), body
        assert await connection.over()
    asked = [request.path for request in stand.node.requests]
    assert "/healthz" not in asked


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("POST", HANDSHAKE),
        ("GET", HANDSHAKE.replace("websocket", "h2c")),
        ("GET", HANDSHAKE.replace("websocket", "websocket, h2c")),
        ("GET", HANDSHAKE.replace("13", "8")),
        ("GET", HANDSHAKE.replace(KEY, "short")),
        ("GET", HANDSHAKE.replace(KEY, KEY + "\r\nSec-WebSocket-Key: " + KEY)),
        ("GET", HANDSHAKE + "Content-Length: 5\r\n"),
        ("GET", HANDSHAKE + "Transfer-Encoding: chunked\r\n"),
        ("GET", HANDSHAKE + "Sec-WebSocket-Protocol: sandlot.tcp.v1\r\n"),
    ],
)
async def test_a_handshake_that_two_could_read_in_two_ways_is_none(stand: Stand, method: str, head: str) -> None:
    path, key = await attachment(stand)
    before = len(stand.node.requests)
    async with wire(stand) as connection:
        connection.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{key}{head}\r\n{BEHIND}".encode())
        status, headers, _ = await connection.answer()
        assert status in {400, 405}
        assert headers["connection"] == "close"
        assert await connection.over()
    assert len(stand.node.requests) == before
