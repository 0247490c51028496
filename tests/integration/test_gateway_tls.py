"""TLS at gateway and api: shown, renewed under open connections; and passed on by name, undecrypted."""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from api_stand import api
from gateway_stand import ONE, GatewayStand, gateway_stand
from infra.config import LauncherConfig
from infra.launcher import account, certificates
from infra.launcher.certificates import Issued, issue
from tunnels.certificates import Certificate
from tunnels.gateway import passage
from tunnels.hello import HelloError


@pytest.fixture
def issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Issued]:
    monkeypatch.setattr(account, "ensure_account", lambda _: account.pwd.getpwnam("root"))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] - stands for a function
    mask = os.umask(0o077)  # an operator's shell may have any
    try:
        return issue(LauncherConfig(data_dir=tmp_path), ["gw.example.com"])
    finally:
        os.umask(mask)


def trusting(tmp_path: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))


async def serial(port: int, context: ssl.SSLContext) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="gw.example.com")
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return found


def test_the_keys_are_their_programs_own(issued: dict[str, Issued], tmp_path: Path) -> None:
    for files in issued.values():
        assert files.key.stat().st_mode & 0o777 == 0o600
        assert files.certificate.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "tls" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "tls" / "ca.pem").read_bytes()
    assert certificates.issue(LauncherConfig(data_dir=tmp_path), ["other.example.com"])
    assert (tmp_path / "tls" / "ca.pem").read_bytes() == before


async def test_a_renewed_certificate_is_shown_and_open_connections_go_on(
    issued: dict[str, Issued], tmp_path: Path
) -> None:
    files, context = issued["gateway"], trusting(tmp_path)
    async with gateway_stand(tmp_path, gateway_tls_certificate=files.certificate, gateway_tls_key=files.key) as stand:
        stand.open(visibility="token")
        assert stand.url.startswith("https://")
        first = await serial(stand.port, context)
        url = f"https://127.0.0.1:{stand.port}"
        headers = {"Host": stand.host(), "Sandlot-Token": stand.token()}
        async with stand.session.ws_connect(url + "/socket", headers=headers, ssl=context) as socket:
            await socket.send_str("before")
            assert await socket.receive_str(timeout=30) == "before"
            issue(LauncherConfig(data_dir=tmp_path), ["gw.example.com"])
            async with asyncio.timeout(60):
                while await serial(stand.port, context) == first:  # noqa: ASYNC110 - files are looked at now and then
                    await asyncio.sleep(0.1)
            await socket.send_str("after")
            assert await socket.receive_str(timeout=30) == "after"
        async with stand.session.get(
            f"{url}/?sandlot_token={stand.token(port=8000)}", headers={"Host": stand.host()}, ssl=context,
            allow_redirects=False,
        ) as answer:  # fmt: skip
            assert answer.headers["Set-Cookie"].endswith("; Secure")
            assert answer.headers["Location"].startswith("https://")


def test_half_written_files_are_not_taken_up(issued: dict[str, Issued]) -> None:
    files = issued["api"]
    shown = Certificate(*files)
    whole = files.key.read_bytes()
    files.key.write_bytes(whole[:50])
    assert not shown.look()
    files.key.write_bytes(whole)
    assert shown.look()
    assert not shown.look()


async def test_the_api_speaks_tls(issued: dict[str, Issued], tmp_path: Path) -> None:
    files = issued["api"]
    async with api(tmp_path, api_tls_certificate=files.certificate, api_tls_key=files.key) as stand:
        assert stand.url.startswith("https://")
        async with stand.session.get(stand.url + "/healthz", ssl=trusting(tmp_path)) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stand.session.get(stand.url + "/healthz")


@pytest.fixture
async def passing(issued: dict[str, Issued], tmp_path: Path) -> AsyncGenerator[GatewayStand]:
    """A gateway with a port for tls tunnels, and a server inside that speaks TLS itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued["api"])

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    async with server, gateway_stand(tmp_path, gateway_tls_port=0) as stand:
        stand.guest().leads[8443] = server.sockets[0].getsockname()[1]
        yield stand


async def _tls_port(stand: GatewayStand) -> int:
    async with asyncio.timeout(30):
        while (found := stand.trust.gateway()) is None or found.tls_port is None:  # noqa: ASYNC110 - it says so itself
            await asyncio.sleep(0.01)
    return found.tls_port


async def test_tls_is_passed_on_by_its_name(passing: GatewayStand) -> None:
    tunnel = passing.open(port=8443, kind="tls")
    port = await _tls_port(passing)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name = f"8443-{ONE}.localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    data = bytes(range(256)) * 4000
    writer.write(data)
    async with asyncio.timeout(30):
        assert await reader.readexactly(len(data)) == data
    passing.node.tunnels[ONE].remove(tunnel)
    passing.ways.look_again()
    async with asyncio.timeout(30):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
            await reader.readexactly(1)
    writer.transport.abort()


async def test_a_name_of_its_own_leads_to_a_tunnel_and_never_hides_anothers(passing: GatewayStand) -> None:
    passing.open(port=8443, kind="tls", server_name="db.example.com")
    port = await _tls_port(passing)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="db.example.com")
    writer.write(b"hello")
    async with asyncio.timeout(30):
        assert await reader.readexactly(5) == b"hello"
    writer.transport.abort()
    passing.node.tunnels[ONE].clear()
    passing.open(port=8443, kind="tls", server_name=f"8444-{ONE}.localhost")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=f"8444-{ONE}.localhost")


@pytest.mark.parametrize("name", [f"8444-{ONE}.localhost", f"99999-{ONE}.localhost", "other.example.com", "localhost"])
async def test_a_name_that_nobody_has_is_told_so(passing: GatewayStand, name: str) -> None:
    passing.open(port=8443, kind="tls")
    port = await _tls_port(passing)
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)


async def test_what_is_no_tls_is_not_passed_on(passing: GatewayStand) -> None:
    passing.open(port=8443, kind="tls")
    reader, writer = await asyncio.open_connection("127.0.0.1", await _tls_port(passing))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read())[:1] == b"\x15"
    writer.close()
    assert passing.guest().dials == 0


async def test_a_hello_of_crumbs_is_not_read_again_and_again(
    passing: GatewayStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes byte by byte would have to be looked through as often."""
    looked: list[int] = []

    def nothing(data: bytes) -> None:
        looked.append(len(data))

    monkeypatch.setattr(passage, "server_name", nothing)
    reader = asyncio.StreamReader()

    async def feed() -> None:
        for _ in range(1000):
            reader.feed_data(b"x")
            while reader._buffer:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] # noqa: ASYNC110
                await asyncio.sleep(0)
        reader.feed_eof()

    task = asyncio.ensure_future(feed())
    with pytest.raises(HelloError):
        await passage._hello(reader)
    task.cancel()
    assert len(looked) < 100
