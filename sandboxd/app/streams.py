"""Streams for the gateway: one connection of a client outside to a port of a sandbox, if a tunnel leads there.

One question comes and one answer goes, then bytes pass both ways, each way until its own end.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network, ip_address
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from sandboxd.app.bounds import Bounds, Most
from sandboxd.app.server import uid_of
from sandboxd.contract.ids import RandomBytes, new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.guest_client.base import Duplex, GuestUnreachableError
from sandboxd.processes.live import END_GRACE_SECONDS, Ending, LiveSandbox, Sandboxes, guarded
from sandboxd.trust import TrustStore
from tunnels.scopes import VISIT
from tunnels.tokens import Claims
from tunnels.ways import LENGTH_BYTES, MOST_BYTES, StreamAnswer, StreamRequest, pack

_log = structlog.get_logger(__name__)
_QUESTION_SECONDS: Final = 5.0
_BUFFER_BYTES: Final = 131_072
_MOST: Final = Most(calls_of_one=1024, calls=16_384)


@dataclass(frozen=True, slots=True)
class Way:
    """A tunnel that a stream may take, to a port of a sandbox."""

    sandbox_id: str
    port: int
    tunnel: NodeTunnel
    closed: Ending
    """Set when the tunnel is closed or narrowed: its streams end with it."""


class Ways(Protocol):
    """The tunnels of this node that a gateway carries."""

    def http(self, sandbox_id: str, port: int) -> Way | None:
        """Return the http tunnel to a port."""
        ...

    def tls(self, server_name: str, sandbox_id: str | None, port: int | None) -> Way | None:
        """Return the tls tunnel of a name, or, where it stands for them, of a port of a sandbox."""
        ...


@dataclass(frozen=True, slots=True)
class Streams:
    """Serves the gateway's questions."""

    sandboxes: Sandboxes
    ways: Ways
    trust: TrustStore
    peers: frozenset[int]
    random_bytes: RandomBytes
    leaving: Ending
    bounds: Bounds = field(default_factory=lambda: Bounds(_MOST))

    @asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncGenerator[None]:
        """Serve while inside."""
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_BUFFER_BYTES)
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if uid_of(writer.transport) not in self.peers:
                return
            async with asyncio.timeout(_QUESTION_SECONDS):
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
                if length > MOST_BYTES:
                    return
                asked = StreamRequest.model_validate_json(await reader.readexactly(length))
            await self._answer(asked, reader, writer)
        except (OSError, EOFError, TimeoutError, ValidationError, GuestUnreachableError):
            pass
        except Exception:  # noqa: BLE001 - the last resort: one stream must not end the program
            _log.exception("stream failed")
        finally:
            writer.transport.abort()

    async def _answer(self, asked: StreamRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with AsyncExitStack() as stack:
            try:
                way, allowed, answer = self._decide(asked)
                stack.enter_context(self.bounds.call(way.sandbox_id))
                sandbox = await stack.enter_async_context(self.sandboxes.use(way.sandbox_id))
                async with guarded(sandbox):
                    inside = await stack.enter_async_context(sandbox.guest.dial(way.port))
            except ProblemError as problem:
                body = problem.body(new_id("req", self.random_bytes))
                writer.write(pack(StreamAnswer(problem=body)))
                await writer.drain()
                return
            writer.write(pack(answer))
            stack.enter_context(self.trust.hold(allowed, writer.transport.abort))
            for ending in (way.closed, self.leaving):
                stack.callback(ending.subscribe(writer.transport.abort))
            await _join(sandbox, inside, reader, writer)

    def _decide(self, asked: StreamRequest) -> tuple[Way, Claims | None, StreamAnswer]:
        if asked.server_name is not None:
            way = self.ways.tls(asked.server_name, asked.sandbox_id, asked.port)
        elif asked.sandbox_id is not None and asked.port is not None:
            way = self.ways.http(asked.sandbox_id, asked.port)
        else:
            way = None
        if way is None:
            # The same for every reason: whether there is such a sandbox is no business of whoever asks.
            raise ProblemError(
                "tunnel_not_found",
                "No tunnel leads there: the sandbox has ended, or has none to this port.",
                hint="Open one: POST /v1/sandboxes/{id}/tunnels. Or ask whoever gave you the address.",
            )
        if not _is_within(asked.client, way.tunnel.allow_cidrs):
            raise ProblemError("permission_denied", "The tunnel is not open to your address.")
        if way.tunnel.visibility == "public":
            return way, None, StreamAnswer(public=True)
        claims, which = self._admitted(asked.tokens, way)
        return way, claims, StreamAnswer(identity=claims.identity, expires_at=claims.exp, token=which)

    def _admitted(self, tokens: list[str], way: Way) -> tuple[Claims, int]:
        """Return what the first token says that is good, and which one it is. Raises why the first is not."""
        refusals: list[ProblemError] = []
        for which, token in enumerate(tokens):
            try:
                claims = self.trust.check(token, way.sandbox_id)
            except ProblemError as problem:
                refusals.append(problem)
                continue
            if not claims.covers_visit(way.port):
                refusals.append(
                    ProblemError("unauthenticated", "The token is for another port, or a file.", reason="wrong_sandbox")
                )
            elif not claims.may(VISIT.area, write=VISIT.write):
                refusals.append(
                    ProblemError("scope_required", f"This needs the scope {VISIT.scope}.", required_scope=VISIT.scope)
                )
            else:
                return claims, which
        raise refusals[0] if refusals else _missing()


def _missing() -> ProblemError:
    return ProblemError(
        "unauthenticated",
        "This is not open to everybody.",
        reason="missing",
        hint="Open the address that POST /v1/sandboxes/{id}/tokens with this port answers, or ask for one.",
    )


def _is_within(client: str, cidrs: list[str]) -> bool:
    if not cidrs:
        return True
    try:
        address = ip_address(client)
    except ValueError:
        return False
    if address.version == 6:
        if address.ipv4_mapped is None:
            return False
        address = address.ipv4_mapped
    try:
        return any(IPv4Address(address) in IPv4Network(cidr) for cidr in cidrs)
    except AddressValueError:
        return False


async def _join(
    sandbox: LiveSandbox, inside: Duplex, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass bytes both ways, until both ways have come to their end, or one breaks, or the sandbox ends."""
    async with asyncio.TaskGroup() as group:
        ways = [group.create_task(_inward(inside, reader)), group.create_task(_outward(inside, writer))]
        watch = group.create_task(_break_at_end(sandbox, writer))
        await asyncio.wait(ways)
        watch.cancel()


async def _inward(inside: Duplex, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(_BUFFER_BYTES):
        await inside.write(data)
    inside.end()


async def _outward(inside: Duplex, writer: asyncio.StreamWriter) -> None:
    while data := await inside.read():
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()


async def _break_at_end(sandbox: LiveSandbox, writer: asyncio.StreamWriter) -> None:
    await sandbox.ended.wait()
    await asyncio.sleep(END_GRACE_SECONDS)
    writer.transport.abort()
