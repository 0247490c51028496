"""The gateway against those who mean harm: requests of two readings, endless heads, broken frames, forged tokens."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from gateway_stand import KEY, ONE, PORT, TWO, GatewayStand, gateway_stand
from live_stand import init_of
from tunnels.gateway import connections
from tunnels.tokens import SigningKey


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[GatewayStand]:
    async with gateway_stand(tmp_path) as running:
        running.open()
        yield running


_GET, _POST = b"GET / HTTP/1.1\r\nHost: %h\r\n", b"POST / HTTP/1.1\r\nHost: %h\r\n"
SMUGGLING = {
    "length and chunks": _POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in one": _POST + b"Content-Length: 1, 2\r\n\r\nab",
    "a signed length": _POST + b"Content-Length: +1\r\n\r\na",
    "a negative length": _POST + b"Content-Length: -1\r\n\r\na",
    "a length of letters": _POST + b"Content-Length: 0x1\r\n\r\na",
    "chunks that are not last": _POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": _POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": _GET + b"X: a\r\n b\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nHost: %h\n\n",
    "a bare carriage return": _GET + b"X: a\rY: b\r\n\r\n",
    "a null in a header": _GET + b"X: a\0b\r\n\r\n",
    "a chunk size that overflows": _POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a chunk size of letters": _POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "two hosts": _GET + b"Host: evil\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: %h\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: %h/x\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@%h\r\n\r\n",
    "an absolute target": b"GET http://evil/ HTTP/1.1\r\nHost: %h\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\nHost: %h\r\n\r\n",
    "a target with a fragment": b"GET /a#b HTTP/1.1\r\nHost: %h\r\n\r\n",
    "a tunnel for a proxy": b"CONNECT evil:80 HTTP/1.1\r\nHost: %h\r\n\r\n",
    "no version": b"GET /\r\nHost: %h\r\n\r\n",
    "another version": b"GET / HTTP/3.7\r\nHost: %h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("shape", SMUGGLING)
async def test_a_request_of_two_readings_goes_nowhere(stand: GatewayStand, shape: str) -> None:
    second = f"GET /smuggled HTTP/1.1\r\nHost: {stand.host()}\r\n\r\n".encode()
    answer = await stand.raw(SMUGGLING[shape].replace(b"%h", stand.host().encode()) + second, eof=True)
    assert not answer or answer.split(b" ", 2)[1] in {b"400", b"405"}, answer[:300]
    assert [row["target"] for row in stand.seen] == []


async def test_the_head_of_a_tunnelled_request_reads_the_same_inside(stand: GatewayStand) -> None:
    """One pipelined after the other, with bodies that look like requests: the app sees as many as were sent."""
    body = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /%d HTTP/1.1\r\nHost: {stand.host()}\r\nContent-Length: {len(body)}\r\n\r\n"
    chunked = f"POST /%d HTTP/1.1\r\nHost: {stand.host()}\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = b""
    for n in range(6):
        if n % 2:
            data += (head % n).encode() + body
        else:
            data += (chunked % n).encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    await stand.raw(data + f"GET /end HTTP/1.1\r\nHost: {stand.host()}\r\nConnection: close\r\n\r\n".encode())
    assert [row["target"] for row in stand.seen] == [*(f"/{n}" for n in range(6)), "/end"]
    assert {row["body"] for row in stand.seen} == {body.decode(), ""}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: %h\r\n\r\n",
        _GET + b"X: " + b"a" * 10_000 + b"\r\n\r\n",
        _GET + b"" + b"X: a\r\n" * 200 + b"\r\n",
    ],
    ids=["path", "header", "headers"],
)
async def test_what_surrounds_a_request_has_a_limit(stand: GatewayStand, head: bytes) -> None:
    answer = await stand.raw(head.replace(b"%h", stand.host().encode()), eof=True)
    assert not answer or answer.split(b" ", 2)[1] == b"400"
    assert stand.seen == []


async def test_a_head_is_bounded_as_a_whole_too(stand: GatewayStand) -> None:
    """Many headers, each within its own limit, are held before anybody knows who sends them."""
    rows = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 4000) for number in range(20))
    head = _GET.replace(b"%h", stand.host().encode()) + rows
    answer = await stand.raw(head + b"\r\n", eof=True)
    assert not answer or answer.split(b" ", 2)[1] == b"400"
    assert stand.seen == []
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(head)  # and no end of it
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_who_is_refused_while_sending_much_hears_why(stand: GatewayStand) -> None:
    stand.open(TWO, visibility="token")
    length = 512 * 1024
    head = _POST.replace(b"%h", stand.host(TWO).encode()) + b"Content-Length: %d\r\n\r\n" % length
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(head)
    async with asyncio.timeout(30):
        assert (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1] == b"401"
        for _ in range(length // 65_536):
            writer.write(bytes(65_536))
            await writer.drain()
        writer.write(_GET.replace(b"%h", stand.host(TWO).encode()) + b"\r\n")
        assert (await reader.readuntil(b"HTTP/1.1 401")).startswith(b"{")
    writer.close()


async def test_a_head_that_trickles_in_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with gateway_stand(tmp_path) as stand:
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        async with asyncio.timeout(30):
            writer.write(b"GET / HTTP/1.1\r\nHost: a")
            assert await reader.read() == b""
        writer.close()


async def test_one_address_holds_only_so_many_connections(tmp_path: Path) -> None:
    async with gateway_stand(tmp_path, gateway_connections_per_address=3) as stand:
        stand.open()
        held = [await asyncio.open_connection("127.0.0.1", stand.port) for _ in range(3)]
        with pytest.raises(aiohttp.ClientError):
            await stand.get()
        for _, writer in held:
            writer.close()

        async def served() -> bool:
            try:
                return (await stand.get())[0] == 200
            except aiohttp.ClientError:
                return False

        async with asyncio.timeout(30):
            while not await served():  # noqa: ASYNC110 - the places come free at the other end
                await asyncio.sleep(0.01)


async def test_broken_frames_end_their_own_connection_alone(stand: GatewayStand) -> None:
    handshake = (
        f"GET /socket HTTP/1.1\r\nHost: {stand.host()}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    ).encode()
    async with stand.session.ws_connect(stand.url + "/socket", headers={"Host": stand.host()}) as other:
        for frame in (b"\xff" * 64, b"\x81\x05hello", b"\x82\xff" + b"\xff" * 12, b"\xf1\x80abcd"):
            reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
            writer.write(handshake + frame)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.close()
        await other.send_str("still here")
        assert await other.receive_str(timeout=30) == "still here"


async def test_bytes_behind_a_declined_upgrade_become_no_request_inside(stand: GatewayStand) -> None:
    """The app inside declines; what follows is read as the gateway's next request, with all its checks."""
    data = f"GET /x HTTP/1.1\r\nHost: {stand.host()}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()
    data += b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    await stand.raw(data, eof=True)
    assert "/smuggled" not in [row["target"] for row in stand.seen]


async def test_a_token_of_another_signer_opens_nothing(stand: GatewayStand) -> None:
    stand.node.tunnels.clear()
    stand.open(visibility="token")
    good = stand.token()
    stand.key = SigningKey.from_seed(os.urandom(32))
    forged = stand.token(jti="forged")
    status, _, problem = await stand.get(headers={"Sandlot-Token": forged})
    assert (status, problem["reason"]) == (401, "unknown")
    head, claims, signature = good.split(".")
    for changed in (
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{forged.split('.')[1]}.{signature}",
        f"eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.{signature}",
    ):
        assert (await stand.get(headers={"Sandlot-Token": changed}))[0] == 401
    assert stand.seen == []


DIRECT = [
    ("GET", "/processes", "processes:read", ["processes:read"]),
    ("POST", "/run", "processes:write", ["processes:write"]),
    ("GET", "/files?path=/x", "files:read", ["files:read"]),
    ("PUT", "/files?path=/x", "files:write", ["files"]),
    ("GET", "/ports", "processes:read", ["processes"]),
    ("GET", "/dial?port=1", "tunnels:write", ["tunnels"]),
]


@pytest.mark.parametrize(("method", "path", "needed", "enough"), DIRECT)
async def test_direct_calls_need_their_scope(
    stand: GatewayStand, method: str, path: str, needed: str, enough: list[str]
) -> None:
    url = f"/v1/sandboxes/{ONE}{path}"

    async def ask(token: str | None) -> tuple[int, dict[str, str]]:
        headers = {"Host": "gw"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        status, _, body = await stand.ask(method, url, headers=headers)
        return status, cast("dict[str, str]", body) if isinstance(body, dict) else {}

    assert (await ask(None))[1]["reason"] == "missing"
    assert (await ask(stand.token(TWO)))[1]["reason"] == "wrong_sandbox"
    assert (await ask(stand.token(exp=1)))[1]["reason"] == "expired"
    assert (await ask(stand.token(port=PORT)))[1]["reason"] == "wrong_sandbox"
    other = "egress" if needed.endswith("read") else needed.replace("write", "read")
    status, problem = await ask(stand.token(scp=[other]))
    assert (status, problem["code"], problem["required_scope"]) == (403, "scope_required", needed)
    assert (await ask(stand.token(scp=enough)))[0] not in {401, 403}
    stand.believe(KEY)
    assert (await ask(stand.token(scp=enough)))[1]["reason"] == "revoked"


async def test_a_watcher_cannot_make_itself_a_writer(stand: GatewayStand) -> None:
    """The header by which the api says that a caller may write is nothing that a client can send."""
    url = f"/v1/sandboxes/{ONE}/processes/prc{'a' * 20}/attach"
    token = stand.token(scp=["processes:read"])
    await stand.guest().init(init_of())
    await stand.guest().start({"id": "prc" + "a" * 20, "argv": ["cat"], "stdin": True, "user": None})
    async with stand.session.ws_connect(
        stand.url + url,
        headers={"Authorization": f"Bearer {token}", "Sandlot-May-Write": "true", "Host": "gw"},
        protocols=("sandlot.process.v1",),
    ) as socket:
        await socket.receive_bytes(timeout=30)
        await socket.send_bytes(b"\0\0\0\x02\x41\0\0\0\0\0\0\0\0\0\0\0hi")
        message = await socket.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data != 1000
