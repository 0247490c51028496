"""A gateway in this process, in front of a node of fake sandboxes whose ports are servers of this machine."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from live_stand import StandSandbox
from sandboxd.app import data_plane, gateway
from sandboxd.app.server import listen, runner
from sandboxd.app.streams import Streams
from sandboxd.app.ways import NodeWays
from sandboxd.clock import HostClock
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.trust import Trust
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.guest_client.upgrade import UpgradedStream
from sandboxd.processes.live import Ending
from sandboxd.trust import TrustStore
from tunnels.gateway.config import GatewayConfig
from tunnels.gateway.program import serving
from tunnels.tokens import Claims, SigningKey, encode, sign

ONE, TWO = "sbx" + "a" * 20, "sbx" + "b" * 20
KEY = "key" + "a" * 20
PORT = 8000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DialGuest(FakeGuest):
    """A guest whose loopback is this machine's, by a table of ports."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: dict[int, int] = {}
        self.dials = 0

    @asynccontextmanager
    async def _dialled(self, port: int) -> AsyncGenerator[UpgradedStream]:
        if port not in self.leads:
            raise ProblemError("port_not_listening", f"Nothing listens on port {port}.", port=port)
        self.dials += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.leads[port])
        try:
            yield UpgradedStream(reader, writer)
        finally:
            writer.transport.abort()

    def dial(self, port: int) -> Any:
        return self._dialled(port)


@dataclass
class StandNode:
    """The sandboxes and tunnels of a node."""

    sandboxes: dict[str, StandSandbox] = field(default_factory=dict[str, StandSandbox])
    tunnels: dict[str, list[NodeTunnel]] = field(default_factory=dict[str, list[NodeTunnel]])

    @asynccontextmanager
    async def use(self, sandbox_id: str) -> AsyncGenerator[StandSandbox]:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise ProblemError("moved", "not here")
        async with sandbox.use(sandbox_id) as used:
            yield used

    def tunnels_of(self, sandbox_id: str) -> list[NodeTunnel]:
        return self.tunnels.get(sandbox_id, [])


@dataclass
class GatewayStand:
    """What a test has in its hands."""

    url: str
    node: StandNode
    ways: NodeWays
    trust: TrustStore
    key: SigningKey
    session: aiohttp.ClientSession
    seen: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    revisions: int = 0

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def guest(self, sandbox_id: str = ONE) -> DialGuest:
        guest = self.node.sandboxes[sandbox_id].guest
        assert isinstance(guest, DialGuest)
        return guest

    def host(self, sandbox_id: str = ONE, port: int = PORT) -> str:
        return f"{port}-{sandbox_id}.localhost:{self.port}"

    def open(self, sandbox_id: str = ONE, **spec: Any) -> NodeTunnel:
        """Open a tunnel."""
        given = {"port": PORT, "kind": "http", "visibility": "public", "id": new_id("tun", os.urandom)} | spec
        tunnel = NodeTunnel.model_validate(given)
        self.node.tunnels.setdefault(sandbox_id, []).append(tunnel)
        return tunnel

    def token(self, sandbox_id: str = ONE, **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": "sandlot", "aud": "sandlot", "sub": "prj" + "a" * 20, "key": KEY, "sbx": sandbox_id,
            "scp": ["tunnels", "files", "processes"], "iat": now, "exp": now + 900, "jti": "j",
        }  # fmt: skip
        return sign(self.key, Claims.model_validate(claims | changes))

    def believe(self, *revoked: str) -> None:
        self.revisions += 1
        self.trust.learn(Trust(revision=str(self.revisions), keys=[encode(self.key.public)], revoked=list(revoked)))

    async def get(self, path: str = "/", **options: Any) -> tuple[int, dict[str, str], Any]:
        """Ask for a path by the host form; the status, the headers, and JSON or text."""
        return await self.ask("GET", path, **options)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, str], Any]:
        headers = {"Host": self.host()} | options.pop("headers", {})
        async with self.session.request(
            method, self.url + path, headers=headers, allow_redirects=False, **options
        ) as answer:
            is_json = "json" in answer.content_type
            body = await answer.json(content_type=None) if is_json else await answer.text()
            return answer.status, dict(answer.headers), body

    async def raw(self, data: bytes, *, eof: bool = False) -> bytes:
        """Send bytes and return all that comes back until the gateway hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.transport.abort()


def echo_app(seen: list[dict[str, Any]]) -> web.Application:
    """A web app with everything: it tells what it was sent, streams, and speaks WebSocket."""

    async def tell(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        row = {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
        }
        seen.append(row)
        return web.json_response(row)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for data in request.content.iter_any():
            await response.write(data)
        return response

    async def cookies(_request: web.Request) -> web.StreamResponse:
        response = web.Response(text="ok")
        response.headers.add("Set-Cookie", "a=1; Domain=localhost; Path=/")
        response.headers.add("Set-Cookie", "sandlot_token=evil; Path=/")
        response.headers["Sandlot-Error"] = "lie"
        response.headers["Service-Worker-Allowed"] = "/"
        return response

    async def socket(request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse(protocols=("chat",), max_msg_size=64 << 20)
        await response.prepare(request)
        async for message in response:
            if message.type is aiohttp.WSMsgType.TEXT:
                await response.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await response.send_bytes(message.data)
        return response

    app = web.Application(client_max_size=0)
    app.router.add_get("/socket", socket)
    app.router.add_post("/stream", stream)
    app.router.add_get("/cookies", cookies)
    app.router.add_route("*", "/{path:.*}", tell)
    return app


@asynccontextmanager
async def served(app: web.Application) -> AsyncGenerator[int]:
    """Serve an app on a free port of this machine."""
    runs = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runs.setup()
    site = web.TCPSite(runs, "127.0.0.1", 0)
    await site.start()
    try:
        yield runs.addresses[0][1]
    finally:
        await runs.cleanup()


@asynccontextmanager
async def gateway_stand(directory: Path, **changes: Any) -> AsyncGenerator[GatewayStand]:
    """Two sandboxes, each with an app on port 8000, and a gateway in front of them."""
    clock = HostClock()
    trust = TrustStore(clock, silence_seconds=3600)
    node = StandNode({each: StandSandbox(DialGuest(), each) for each in (ONE, TWO)})
    ways, leaving = NodeWays(node.tunnels_of, node.sandboxes.keys), Ending()
    peers = frozenset({os.getuid()})
    config = GatewayConfig.model_validate({"run_dir": directory, "gateway_port": 0, **changes})
    async with AsyncExitStack() as stack:
        serves = runner(gateway.application(peers, trust, data_plane.routes(node, leaving=leaving)))
        await serves.setup()
        stack.push_async_callback(serves.cleanup)
        await web.SockSite(serves, listen(config.node_dir / "calls.sock", "root")).start()
        streams = Streams(node, ways, trust, peers, os.urandom, leaving)
        await stack.enter_async_context(streams.serving(listen(config.node_dir / "streams.sock", "root")))
        stack.callback(leaving.set)
        url = await stack.enter_async_context(serving(config))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        )
        stand = GatewayStand(url, node, ways, trust, SigningKey.from_seed(os.urandom(32)), session)
        stand.believe()
        for each in (ONE, TWO):
            stand.guest(each).leads[PORT] = await stack.enter_async_context(served(echo_app(stand.seen)))
        yield stand


__all__ = ["ONE", "PORT", "TWO", "GatewayStand", "gateway_stand", "served"]
