"""Listens: the public address, the internal socket of this box's nodes, and metrics where they are wanted."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.app.platform import SOURCES, open_platform
from api.app.protocol import PublicProtocol
from api.app.public import internal_app, on, public_app
from api.config import Settings
from api.services.platform import Platform, Sources
from programs.running import run, told_to_end
from tunnels.certificates import Certificate
from tunnels.limits import Limits

_log = structlog.get_logger()
_BACKLOG: Final = 2048
_CREDENTIALS: Final = struct.Struct("3i")


class _PeerProtocol(HttpToolsProtocol):
    """Serves root and this user alone: who else can open the socket must not speak for a node."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        connection: socket.socket = transport.get_extra_info("socket")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        super().connection_made(transport)
        if uid not in {0, os.geteuid()}:
            _log.warning("peer refused", uid=uid)
            transport.abort()


class _Server(uvicorn.Server):
    """A server among several in one program, which handles signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _server(
    app: ASGIApp,
    settings: Settings,
    protocol: Callable[..., asyncio.Protocol],
    certificate: Certificate | None = None,
) -> _Server:
    server = _Server(
        uvicorn.Config(
            app,
            http=protocol,  # pyright: ignore[reportArgumentType] - makes one, which is all that is asked of it
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=settings.api_drain_seconds,
        )
    )
    if certificate is not None:
        server.config.load()
        server.config.ssl = certificate.context
    return server


def _bounded(settings: Settings) -> Callable[..., asyncio.Protocol]:
    """Return what serves a connection of one listener: its clients are counted apart from those of others."""
    limits = Limits(most=settings.api_connections, most_of_one=settings.api_connections_per_address)
    return partial(PublicProtocol, limits)


def _tcp_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _unix_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener


def _certificate(settings: Settings) -> Certificate | None:
    if settings.api_tls_certificate is None or settings.api_tls_key is None:
        return None
    return Certificate(settings.api_tls_certificate, settings.api_tls_key)


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@asynccontextmanager
async def serving(settings: Settings, sources: Sources = SOURCES) -> AsyncGenerator[tuple[Platform, str]]:
    """Serve while the context lasts; yields the platform and the public address. On leaving, open answers may end."""
    async with open_platform(settings, sources) as platform:
        certificate = _certificate(settings)
        public = _tcp_socket(settings.api_host, settings.api_port)
        listeners = [
            (_server(on(platform, public_app()), settings, _bounded(settings), certificate), public),
            (
                _server(on(platform, internal_app(reports=True)), settings, _PeerProtocol),
                _unix_socket(settings.socket_path),
            ),
        ]
        if settings.api_metrics_port is not None:
            metrics = _tcp_socket(settings.api_host, settings.api_metrics_port)
            listeners.append(
                (_server(on(platform, internal_app(reports=False)), settings, _bounded(settings)), metrics)
            )
        url = _url(public, "http" if certificate is None else "https")
        async with asyncio.TaskGroup() as group:
            following = None if certificate is None else group.create_task(certificate.follow())
            for server, listener in listeners:
                group.create_task(server.serve(sockets=[listener]))
            try:
                (settings.private_dir / "url").write_text(url + "\n", encoding="ascii")
                _log.info("serving", url=url, internal=str(settings.socket_path))
                yield platform, url
            finally:
                if following is not None:
                    following.cancel()
                for server, _ in listeners:
                    server.should_exit = True
        settings.socket_path.unlink(missing_ok=True)


async def _serve(settings: Settings) -> None:
    told = told_to_end()
    async with serving(settings):
        await told.wait()
    _log.info("stopped")


def main() -> None:
    """Run until SIGTERM or SIGINT. Sandboxes live on."""
    run(_serve(Settings()))
