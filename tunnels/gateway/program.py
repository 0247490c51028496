"""The program: listens, tells its node, and lets go when told to."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog

from programs.running import run, told_to_end
from tunnels.certificates import Certificate
from tunnels.gateway.config import GatewayConfig
from tunnels.gateway.connections import Server
from tunnels.gateway.handler import Handler, say_hello
from tunnels.gateway.node import NodeLink
from tunnels.gateway.passage import BUFFER_BYTES, Passage
from tunnels.limits import Limits
from tunnels.routing import Names

_log = structlog.get_logger()
_BACKLOG = 2048
_HELLO_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10.0
"""Until it is done a connection counts as nobody's."""
_DRAIN_SECONDS = 2.0
_ELSEWHERE = ("192.0.2.1", 9)


@asynccontextmanager
async def serving(config: GatewayConfig) -> AsyncGenerator[str]:
    """Serve while inside; yields the address that clients are told."""
    async with AsyncExitStack() as stack:
        certificate = _certificate(config)
        listener = _listen(config.gateway_host, config.gateway_port)
        scheme = "http" if certificate is None else "https"
        url = config.gateway_url or _url(scheme, listener)
        node = NodeLink(config.node_dir)
        stack.push_async_callback(node.close)
        names = Names(config.gateway_domain, by_path=config.by_path)
        limits = Limits(most=config.gateway_connections, most_of_one=config.gateway_connections_per_address)
        # Clients may come by TLS that ends in front of us.
        server = Server(Handler(names, node, urlsplit(url).scheme), limits)
        loop = asyncio.get_running_loop()
        context = None if certificate is None else certificate.context
        patience = None if context is None else _HANDSHAKE_SECONDS
        accepting = await loop.create_server(
            server, sock=listener, backlog=_BACKLOG, ssl=context, ssl_handshake_timeout=patience
        )
        passing = await _passing_tls(config, node, names, limits)
        hello: dict[str, object] = {
            "url": url,
            "domain": names.domain,
            "by_path": names.by_path,
            "tls_port": None if passing is None else passing.sockets[0].getsockname()[1],
        }
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(say_hello(node, hello, every_seconds=_HELLO_SECONDS))]
        if certificate is not None:
            tasks.append(group.create_task(certificate.follow()))
        try:
            yield url
        finally:
            for task in tasks:
                task.cancel()
            accepting.close()
            if passing is not None:
                passing.close()
            server.pre_shutdown()
            await server.shutdown(_DRAIN_SECONDS)


def _certificate(config: GatewayConfig) -> Certificate | None:
    if config.gateway_tls_certificate is None or config.gateway_tls_key is None:
        return None
    return Certificate(config.gateway_tls_certificate, config.gateway_tls_key)


async def _passing_tls(config: GatewayConfig, node: NodeLink, names: Names, limits: Limits) -> asyncio.Server | None:
    """Listen for what is passed on by its name, where a port is set for that."""
    if config.gateway_tls_port is None:
        return None
    listener = _listen(config.gateway_host, config.gateway_tls_port)
    passage = Passage(node, names, limits)
    return await asyncio.start_server(passage.serve, sock=listener, backlog=_BACKLOG, limit=BUFFER_BYTES)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener


def _url(scheme: str, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = _own_address()
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _own_address() -> str:
    """Return this machine's address on its default route: what stands for all of them to clients elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(_ELSEWHERE)  # nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(route.getsockname()[0])


async def _serve(config: GatewayConfig) -> None:
    told = told_to_end()
    async with serving(config) as url:
        _log.info("serving", url=url, node=str(config.node_dir))
        await told.wait()
    _log.info("stopped")


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    run(_serve(GatewayConfig()))
