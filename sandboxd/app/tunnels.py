"""The api's calls on a sandbox's tunnels: have one, look, close. With each, what keeps it from working."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from sandboxd.app.answers import json_answer
from sandboxd.app.query import Query
from sandboxd.contract.history import Port
from sandboxd.contract.ids import is_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import RAW_KINDS, NodeTunnel, PutTunnel, TunnelReport, TunnelReportList
from sandboxd.contract.validation import invalid
from sandboxd.errors import not_found
from sandboxd.manager.manager import Manager
from sandboxd.manager.tunnels import Tunnels
from sandboxd.network.base import Network
from sandboxd.processes.live import LiveSandbox
from sandboxd.processes.ports import listening

_MAX_BODY_BYTES: Final = 65_536
_LOOK_SECONDS: Final = 1.0
"""How long a guest may take to say what listens: nobody's tunnel waits for it longer."""
_MOST: Final = 2**53
_LOOPBACK_ONLY: Final = (
    "What listens on port {port} is bound to {address} alone, where no {kind} tunnel comes out: bind it to 0.0.0.0, or"
    " open an http or tls tunnel."
)


def routes(manager: Manager, tunnels: Tunnels, network: Network) -> list[web.AbstractRouteDef]:
    """Return the routes of `/node/v1/sandboxes/{id}/tunnels`."""
    calls = _Calls(manager, tunnels, network)
    base = "/node/v1/sandboxes/{sandbox_id}/tunnels"
    return [
        web.get(base, calls.all, allow_head=False),
        web.put(base + "/{tunnel_id}", calls.put),
        web.get(base + "/{tunnel_id}", calls.one, allow_head=False),
        web.delete(base + "/{tunnel_id}", calls.close),
    ]


class _Calls:
    def __init__(self, manager: Manager, tunnels: Tunnels, network: Network) -> None:
        self._manager = manager
        self._tunnels = tunnels
        self._network = network

    async def put(self, request: web.Request) -> web.Response:
        sandbox_id, tunnel_id = _ids(request)
        Query(request).check()
        asked = await _body(request)
        tunnel = await self._tunnels.put(sandbox_id, tunnel_id, asked)
        return json_answer((await self._reports(sandbox_id, [tunnel])).items[0])

    async def one(self, request: web.Request) -> web.Response:
        sandbox_id, tunnel_id = _ids(request)
        Query(request).check()
        await self._manager.ready(sandbox_id)
        found = [tunnel for tunnel in self._tunnels.of(sandbox_id) if tunnel.id == tunnel_id]
        if not found:
            raise ProblemError("tunnel_not_found", f"Sandbox {sandbox_id} has no tunnel {tunnel_id}.")
        return json_answer((await self._reports(sandbox_id, found)).items[0])

    async def all(self, request: web.Request) -> web.Response:
        sandbox_id = _sandbox_id(request)
        Query(request).check()
        await self._manager.ready(sandbox_id)
        return json_answer(await self._reports(sandbox_id, self._tunnels.of(sandbox_id)))

    async def close(self, request: web.Request) -> web.Response:
        sandbox_id, tunnel_id = _ids(request)
        query = Query(request)
        epoch = query.optional_integer("epoch", 0, _MOST)
        query.check()
        await self._tunnels.close(sandbox_id, tunnel_id, self._manager.epoch if epoch is None else epoch)
        return web.Response(status=204)

    async def _reports(self, sandbox_id: str, tunnels: Sequence[NodeTunnel]) -> TunnelReportList:
        raw = any(tunnel.kind in RAW_KINDS for tunnel in tunnels)
        counts = await self._network.tunnel_bytes() if raw else {}
        ports = await self._listening(sandbox_id) if raw else None
        items = [
            TunnelReport(
                **tunnel.model_dump(),
                sandbox_id=sandbox_id,
                in_bytes=counts.get(tunnel.id, (0, 0))[0],
                out_bytes=counts.get(tunnel.id, (0, 0))[1],
                message=None if ports is None else hindrance(tunnel, ports),
            )
            for tunnel in tunnels
        ]
        return TunnelReportList(items=items)

    async def _listening(self, sandbox_id: str) -> list[Port] | None:
        """Ask the guest what listens: a hint, so that none is as good as a late one."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS), self._manager.use(sandbox_id) as sandbox:
                return await _ports(sandbox)
        except (TimeoutError, ProblemError):
            return None


async def _ports(sandbox: LiveSandbox) -> list[Port]:
    return (await listening(sandbox, None, 0)).items


def hindrance(tunnel: NodeTunnel, ports: Sequence[Port]) -> str | None:
    """Say why nobody can come through a raw tunnel, if that is so: what listens does so on loopback alone."""
    if tunnel.kind not in RAW_KINDS:
        return None
    there = [each for each in ports if each.port == tunnel.port and each.protocol == tunnel.kind]
    if not there or not all(ip_address(each.address).is_loopback for each in there):
        return None
    return _LOOPBACK_ONLY.format(port=tunnel.port, address=there[0].address, kind=tunnel.kind)


def _sandbox_id(request: web.Request) -> str:
    sandbox_id = request.match_info["sandbox_id"]
    if not is_id("sbx", sandbox_id):
        raise not_found(sandbox_id[:64])
    return sandbox_id


def _ids(request: web.Request) -> tuple[str, str]:
    sandbox_id, tunnel_id = _sandbox_id(request), request.match_info["tunnel_id"]
    if not is_id("tun", tunnel_id):
        raise ProblemError("tunnel_not_found", f"No such tunnel: {tunnel_id[:64]!r}")
    return sandbox_id, tunnel_id


async def _body(request: web.Request) -> PutTunnel:
    if (request.content_length or 0) > _MAX_BODY_BYTES:
        raise _too_large()
    body = await request.read()
    if len(body) > _MAX_BODY_BYTES:
        raise _too_large()
    try:
        return PutTunnel.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def _too_large() -> ProblemError:
    return ProblemError(
        "body_too_large", f"The body is larger than {_MAX_BODY_BYTES} bytes.", limit_bytes=_MAX_BODY_BYTES
    )
