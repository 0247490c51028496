"""http tunnels through the gateway: three address forms, who may, what passes, and what is said when nothing does."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway_stand import KEY, ONE, PORT, TWO, GatewayStand, gateway_stand
from sandboxd.contract.problems import CODES
from tunnels.problems import CODES as OWN_CODES


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[GatewayStand]:
    async with gateway_stand(tmp_path) as running:
        yield running


def _headers(row: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in row["headers"]}


@pytest.mark.parametrize("form", ["host", "header", "path"])
async def test_an_app_is_reached_by_all_three_forms(stand: GatewayStand, form: str) -> None:
    stand.open()
    target = "/a%2Fb//c;d?x=%20&y&y=1"
    headers, prefix = {"Host": f"127.0.0.1:{stand.port}"}, ""
    if form == "host":
        headers = {"Host": stand.host()}
    elif form == "header":
        headers |= {"Sandlot-Sandbox-Id": ONE, "Sandlot-Sandbox-Port": str(PORT)}
    else:
        prefix = f"/s/{ONE}/{PORT}"
    status, answered, row = await stand.ask("POST", prefix + target, headers=headers, data=b"\0\xffbody")
    assert status == 200
    assert "Sandlot-Error" not in answered
    assert (row["method"], row["target"], row["body"]) == ("POST", target, "\0\xffbody")
    seen = _headers(row)
    assert seen["host"] == headers["Host"]
    assert (seen["x-sandlot-sandbox"], seen["x-sandlot-client-address"]) == (ONE, "127.0.0.1")
    assert seen.get("x-forwarded-prefix", "") == prefix
    assert "sandlot-sandbox-id" not in seen


async def test_the_root_of_the_path_form_needs_no_slash(stand: GatewayStand) -> None:
    stand.open()
    for given, target in ((f"/s/{ONE}/{PORT}", "/"), (f"/s/{ONE}/{PORT}?a=1", "/?a=1")):
        assert (await stand.ask("GET", given, headers={"Host": "gw"}))[2]["target"] == target


async def test_a_server_that_knows_its_path_is_asked_with_it(stand: GatewayStand) -> None:
    stand.open()
    status, _, row = await stand.ask("GET", f"/w/{ONE}/{PORT}/lab?x")
    assert (status, row["target"]) == (200, f"/w/{ONE}/{PORT}/lab?x")


async def test_a_token_tunnel_opens_to_tokens_of_its_sandbox_alone(stand: GatewayStand) -> None:
    stand.open(visibility="token")
    good = stand.token(identity={"user": "ü"})
    for headers in (
        {"Sandlot-Token": good},
        {"Authorization": f"Bearer {good}"},
        {"Cookie": f"a=1; sandlot_token=nonsense; sandlot_token={good}; b=2"},
    ):
        status, _, row = await stand.get(headers=headers)
        assert status == 200, row
        seen = _headers(row)
        assert good not in json.dumps(row)
        assert json.loads(base64.urlsafe_b64decode(seen["x-sandlot-identity"] + "==")) == {"user": "ü"}
        assert seen.get("cookie") in {None, "a=1; b=2"}
    cases = {
        "missing": None,
        "malformed": "nonsense",
        "wrong_sandbox": stand.token(TWO),
        "expired": stand.token(exp=1),
    }
    for reason, token in cases.items():
        status, headers, problem = await stand.get(headers={} if token is None else {"Sandlot-Token": token})
        assert (status, problem["code"], problem["reason"]) == (401, "unauthenticated", reason)
        assert headers["Sandlot-Error"] == "unauthenticated"
    assert (await stand.get(headers={"Sandlot-Token": stand.token(port=PORT + 1)}))[2]["reason"] == "wrong_sandbox"
    assert (await stand.get(headers={"Sandlot-Token": stand.token(path="/f")}))[2]["reason"] == "wrong_sandbox"
    status, _, problem = await stand.get(headers={"Sandlot-Token": stand.token(scp=["files"])})
    assert (status, problem["required_scope"]) == (403, "tunnels:read")
    stand.believe(KEY)
    assert (await stand.get(headers={"Sandlot-Token": good}))[2]["reason"] == "revoked"


async def test_a_token_in_the_address_becomes_a_cookie(stand: GatewayStand) -> None:
    stand.open(visibility="token")
    token = stand.token(port=PORT)
    status, headers, _ = await stand.get(f"//evil.example/x?a=1&sandlot_token={token}&b=2")
    assert (status, headers["Location"]) == (302, f"http://{stand.host()}//evil.example/x?a=1&b=2")
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"sandlot_token={token}; ")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Domain" not in cookie
    assert stand.seen == []
    status, headers, _ = await stand.ask(
        "GET", f"/s/{ONE}/{PORT}/x?sandlot_token={token}", headers={"Host": f"127.0.0.1:{stand.port}"}
    )
    assert headers["Location"] == f"http://127.0.0.1:{stand.port}/s/{ONE}/{PORT}/x"
    assert f"; Path=/s/{ONE}/{PORT}/;" in headers["Set-Cookie"]
    unbound = await stand.get(f"/?sandlot_token={stand.token()}")
    assert (unbound[0], unbound[2]["reason"]) == (401, "missing")


async def test_behind_a_balancer_with_tls_nothing_leads_back_to_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with gateway_stand(tmp_path, gateway_url="https://gw.example.com", gateway_port=port) as stand:
        stand.url = f"http://127.0.0.1:{port}"
        stand.open(visibility="token")
        token = stand.token(port=PORT)
        _, headers, _ = await stand.get(f"/x?sandlot_token={token}")
        assert headers["Location"] == f"https://{stand.host()}/x"
        assert headers["Set-Cookie"].endswith("; Secure")
        _, _, row = await stand.get("/x", headers={"Sandlot-Token": token})
        assert _headers(row)["x-forwarded-proto"] == "https"


async def test_another_sandboxs_cookie_opens_nothing(stand: GatewayStand) -> None:
    for sandbox in (ONE, TWO):
        stand.open(sandbox, visibility="token")
    of_two = stand.token(TWO, port=PORT)
    status, _, problem = await stand.get(headers={"Cookie": f"sandlot_token={of_two}"})
    assert (status, problem["reason"]) == (401, "wrong_sandbox")
    assert stand.seen == []


async def test_nothing_of_the_platforms_goes_in_and_nothing_comes_out(stand: GatewayStand) -> None:
    stand.open()
    key = "sandlot_" + "a" * 39
    _, _, row = await stand.get(
        f"/?sandlot_token={stand.token()}&keep=1",
        headers={
            "Authorization": f"Bearer {key}",
            "X-API-Key": "e2b_" + "0" * 48,
            "Sandlot-Token": stand.token(TWO),
            "X-Sandlot-Identity": "forged",
            "X_Sandlot_Sandbox": "forged",
            "Sandlot-May-Write": "true",
            "X-Forwarded-For": "1.2.3.4",
            "X-Forwarded-Proto": "https",
            "Forwarded": "for=1.2.3.4",
            "Connection": "X-Sandlot-Sandbox, X-Mine",
            "X-Mine": "hop",
            "X-Kept": "yes",
        },
    )
    seen = _headers(row)
    assert row["target"] == "/?keep=1"
    for word in (key, "e2b_", "forged", "1.2.3.4", "hop", "eyJ"):
        assert word not in json.dumps(row["headers"])
    assert seen["x-sandlot-sandbox"] == ONE
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-kept"] == "yes"
    own = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJhdWQiOiJteS1hcHAifQ.c2lnbmF0dXJl"
    assert _headers((await stand.get(headers={"Authorization": own}))[2])["authorization"] == own
    assert _headers((await stand.get(headers={"Authorization": "Basic YTpi"}))[2])["authorization"] == "Basic YTpi"


async def test_what_comes_out_speaks_for_its_own_sandbox_alone(stand: GatewayStand) -> None:
    stand.open()
    async with stand.session.get(stand.url + "/cookies", headers={"Host": stand.host()}) as answer:
        assert answer.headers.getall("Set-Cookie") == ["a=1; Path=/"]
        assert "Sandlot-Error" not in answer.headers
        assert answer.headers["Service-Worker-Allowed"] == "/"
    async with stand.session.get(f"{stand.url}/s/{ONE}/{PORT}/cookies") as answer:
        assert "Service-Worker-Allowed" not in answer.headers


async def test_both_ways_stream(stand: GatewayStand) -> None:
    stand.open()
    back: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncGenerator[bytes]:
        for n in range(20):
            yield b"%d" % n
            # The next piece goes only once this one has come back: neither way is held until it is whole.
            assert await back.get() == b"%d" % n

    async with (
        asyncio.timeout(30),
        stand.session.post(stand.url + "/stream", data=body(), headers={"Host": stand.host()}) as answer,
    ):
        async for data in answer.content.iter_any():
            back.put_nowait(data)


async def test_much_passes_whole(stand: GatewayStand) -> None:
    stand.open()
    data = bytes(range(256)) * 40_000
    sent, headers = io.BytesIO(data), {"Host": stand.host()}
    async with stand.session.post(stand.url + "/stream", data=sent, headers=headers) as answer:
        assert await answer.read() == data


async def test_a_client_that_has_said_all_may_hang_up_its_side(stand: GatewayStand) -> None:
    stand.open()
    answer = await stand.raw(f"GET /x HTTP/1.1\r\nHost: {stand.host()}\r\n\r\n".encode(), eof=True)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"target": "/x"' in answer


async def test_websockets_pass(stand: GatewayStand) -> None:
    stand.open(visibility="token")
    headers = {"Host": stand.host(), "Cookie": f"sandlot_token={stand.token(port=PORT)}"}
    async with stand.session.ws_connect(
        stand.url + "/socket", headers=headers, protocols=("chat",), max_msg_size=64 << 20
    ) as socket:
        assert socket.protocol == "chat"
        for size in (0, 1, 125, 70_000, 5_000_000):
            await socket.send_bytes(b"x" * size)
            assert await socket.receive_bytes(timeout=30) == b"x" * size
        await socket.send_str("ü")
        assert await socket.receive_str(timeout=30) == "ü"
        await asyncio.gather(*(socket.send_str(str(n)) for n in range(100)))
        assert [await socket.receive_str(timeout=30) for _ in range(100)] == [str(n) for n in range(100)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await stand.session.ws_connect(stand.url + "/socket", headers={"Host": stand.host()})
    assert refused.value.status == 401


async def test_an_upgrade_that_is_declined_is_an_answer(stand: GatewayStand) -> None:
    stand.open()
    status, _, row = await stand.get("/x", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    assert (status, row["target"]) == (200, "/x")


async def test_revoking_a_key_ends_its_streams(stand: GatewayStand) -> None:
    stand.open(visibility="token")
    headers = {"Host": stand.host(), "Sandlot-Token": stand.token()}
    async with stand.session.ws_connect(stand.url + "/socket", headers=headers) as socket:
        await socket.send_str("a")
        assert await socket.receive_str(timeout=30) == "a"
        stand.believe(KEY)
        assert (await socket.receive(timeout=30)).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE}


async def test_closing_a_tunnel_ends_its_streams(stand: GatewayStand) -> None:
    stand.open()
    async with stand.session.ws_connect(stand.url + "/socket", headers={"Host": stand.host()}) as socket:
        await socket.send_str("a")
        assert await socket.receive_str(timeout=30) == "a"
        stand.node.tunnels.clear()
        stand.ways.look_again()
        assert (await socket.receive(timeout=30)).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE}
    assert (await stand.get())[2]["code"] == "tunnel_not_found"


async def test_an_open_stream_counts_as_activity(stand: GatewayStand) -> None:
    stand.open()
    sandbox = stand.node.sandboxes[ONE]
    async with stand.session.ws_connect(stand.url + "/socket", headers={"Host": stand.host()}) as socket:
        await socket.send_str("a")
        await socket.receive_str(timeout=30)
        assert sandbox.users == 1
    async with asyncio.timeout(30):
        while sandbox.users:  # noqa: ASYNC110 - what ends it is at the other end of two sockets
            await asyncio.sleep(0.01)


async def test_every_refusal_says_why(stand: GatewayStand) -> None:
    stand.open(port=None)
    stand.open(TWO, allow_cidrs=["192.0.2.0/24"])
    unknown = "sbx" + "c" * 20
    cases = [
        (stand.host(port=9), 502, "port_not_listening"),
        (stand.host(port=49_979), 404, "tunnel_not_found"),
        (stand.host(TWO, port=9), 404, "tunnel_not_found"),
        (stand.host(TWO), 403, "permission_denied"),
        (stand.host(unknown), 404, "tunnel_not_found"),
        (f"nonsense.localhost:{stand.port}", 404, "sandbox_not_found"),
        (f"70000-{ONE}.localhost", 404, "tunnel_not_found"),
        (f"08000-{ONE}.localhost", 404, "sandbox_not_found"),
        ("127.0.0.1", 404, "route_not_found"),
    ]
    for host, status, code in cases:
        found, headers, problem = await stand.get(headers={"Host": host})
        assert (found, problem["code"], headers["Sandlot-Error"]) == (status, code, code), host
        assert headers["Content-Type"] == "application/problem+json"
        assert problem["hint"]
        found, headers, page = await stand.get(headers={"Host": host, "Accept": "text/html,*/*"})
        assert (found, headers["Content-Type"]) == (status, "text/html; charset=utf-8")
        assert code in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    stand.node.sandboxes[ONE].ended.set()
    status, _, problem = await stand.get()
    assert (status, problem["code"], problem["reason"]) == (410, "sandbox_ended", "out_of_memory")


async def test_a_server_that_speaks_no_http_is_said_so(stand: GatewayStand) -> None:
    stand.open()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\0\1\2 what\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        stand.guest().leads[PORT] = server.sockets[0].getsockname()[1]
        status, _, problem = await stand.get()
    assert (status, problem["code"], problem["reason"]) == (502, "port_not_listening", "broken")


async def test_a_node_that_is_away_is_said_so(tmp_path: Path) -> None:
    async with gateway_stand(tmp_path) as stand:
        for name in ("calls.sock", "streams.sock"):
            (tmp_path / "gateway" / name).unlink()
        status, _, problem = await stand.get()
        assert (status, problem["code"], problem["retryable"]) == (503, "node_unreachable", True)
        status, _, problem = await stand.ask("GET", f"/v1/sandboxes/{ONE}/processes", headers={"Host": "gw"})
        assert (status, problem["code"]) == (503, "node_unreachable")


def test_our_codes_are_the_contracts() -> None:
    for code, (status, title, retryable) in OWN_CODES.items():
        assert (CODES[code].status, CODES[code].title, CODES[code].retryable) == (status, title, retryable)


async def test_one_client_goes_through_one_stream_as_long_as_it_may(stand: GatewayStand) -> None:
    """A stream is its client's alone, for the same port and credentials; what could happen twice has one of its own."""
    tunnel = stand.open(visibility="token")
    other = stand.open(TWO, visibility="token")
    token = stand.token()
    for _ in range(3):
        assert (await stand.get(headers={"Sandlot-Token": token}))[0] == 200
    assert stand.guest().dials == 1
    assert (await stand.get(headers={"Sandlot-Token": "x"}))[0] == 401
    assert (await stand.get(headers={"Sandlot-Token": stand.token(exp=1)}))[0] == 401
    for _ in range(2):
        assert (await stand.ask("POST", "/", headers={"Sandlot-Token": token}, data=b"x"))[0] == 200
    assert stand.guest().dials == 3
    status, _, row = await stand.get(headers={"Host": stand.host(TWO), "Sandlot-Token": stand.token(TWO)})
    assert (status, _headers(row)["x-sandlot-sandbox"]) == (200, TWO)
    assert (await stand.get(headers={"Sandlot-Token": token}))[0] == 200
    stand.node.tunnels[ONE].remove(tunnel)
    stand.ways.look_again()
    assert (await stand.get(headers={"Sandlot-Token": token}))[2]["code"] == "tunnel_not_found"
    assert other in stand.node.tunnels[TWO]


async def test_a_kept_stream_that_was_closed_inside_is_opened_again(stand: GatewayStand) -> None:
    answers = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        await reader.readuntil(b"\r\n\r\n")
        answers += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    stand.open()
    async with server:
        stand.guest().leads[PORT] = server.sockets[0].getsockname()[1]
        for _ in range(5):
            assert (await stand.get())[0] == 200
    assert answers == 5
