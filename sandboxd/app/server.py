"""The node's listener: a unix socket for the api alone, and what surrounds every call."""

import asyncio
import grp
import logging
import os
import pwd
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandboxd.app.answers import problem_answer, problems, request_id
from sandboxd.contract.problems import ProblemError

_log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Above every limit of a call of its own, which answers better."""
_PEER: Final = struct.Struct("3i")
_SHUTDOWN_SECONDS: Final = 2.0
_READ_BYTES: Final = 256 * 1024
"""Of one body, before its sender has to wait: what is on its way into a sandbox passes in pieces of this size."""


def application(peers: Iterable[int], routes: Iterable[web.AbstractRouteDef]) -> web.Application:
    """Make the application; only the users in `peers` are served."""
    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[_logged, only(frozenset(peers), "the api"), problems]
    )
    app.add_routes(routes)
    return app


def runner(app: web.Application) -> web.AppRunner:
    """Make what serves an application: a handler whose client has gone is cancelled."""
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,  # what is small here must not be large there: compressed bodies are refused
        shutdown_timeout=_SHUTDOWN_SECONDS,
        keepalive_timeout=75,
        read_bufsize=_READ_BYTES,
    )


def allowed_peers(api_user: str) -> frozenset[int]:
    """Return who may call: root, whoever runs this program, and the api's user if there is one."""
    peers = {0, os.getuid()}
    try:
        peers.add(pwd.getpwnam(api_user).pw_uid)
    except KeyError:
        _log.warning("no such user", user=api_user)
    return frozenset(peers)


def listen(path: Path, user: str) -> socket.socket:
    """Bind a unix socket that a user's group may use, replacing a stale one in one move."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(aside))
        # Never reachable by others, not even before the modes are right: it has not got its name yet.
        os.chown(aside, -1, _group(user))
        aside.chmod(0o660)
        listener.listen(512)
        aside.rename(path)
    except BaseException:
        listener.close()
        aside.unlink(missing_ok=True)
        raise
    return listener


def _group(user: str) -> int:
    try:
        return grp.getgrnam(user).gr_gid
    except KeyError:
        return os.getgid()


def peer_of(request: web.Request) -> int:
    """Return the user who calls. ConnectionResetError when the client has gone."""
    if request.transport is None:
        raise ConnectionResetError("the client has gone")
    return uid_of(request.transport)


def uid_of(transport: asyncio.BaseTransport) -> int:
    """Return the user at the other end of a unix socket. ConnectionResetError when it has gone."""
    peer = transport.get_extra_info("socket")
    if peer is None:
        raise ConnectionResetError("the client has gone")
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid


def only(peers: frozenset[int], whose: str) -> Middleware:
    """Let in some users alone; `whose` socket it is, others are told."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        uid = peer_of(request)
        if uid not in peers:
            _log.warning("stranger refused", uid=uid)
            return problem_answer(
                ProblemError("unauthenticated", f"This socket is for {whose}.", reason="wrong_user"), request
            )
        return await handler(request)

    return check


@web.middleware
async def _logged(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log each call without query, headers or bodies: they may hold secrets."""
    began = time.monotonic()
    status = 499
    try:
        answer = await handler(request)
        status = answer.status
        return answer
    finally:
        if _log.is_enabled_for(logging.DEBUG):
            _log.debug(
                "call",
                method=request.method,
                path=request.path,
                status=status,
                seconds=round(time.monotonic() - began, 4),
                request_id=request_id(request),
            )
