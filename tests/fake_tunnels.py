"""The fake node's tunnels: kept in the report of their sandbox, with public ports that nobody listens on."""

from collections.abc import Callable

from aiohttp import web

from sandboxd.contract.messages import SandboxReport
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import RAW_KINDS, NodeTunnel, PutTunnel, TunnelReport, TunnelReportList

FIRST_PORT = 20_000


class FakeTunnels:
    """Routes over reports that somebody else holds: `look` returns a live one, `keep` replaces it."""

    def __init__(self, look: Callable[[str], SandboxReport], keep: Callable[[SandboxReport], None]) -> None:
        self._look = look
        self._keep = keep
        self._next = FIRST_PORT
        self.refuse: str | None = None
        """Answer changes with this problem code."""
        self.message: str | None = None

    def routes(self) -> list[web.AbstractRouteDef]:
        base = "/node/v1/sandboxes/{id}/tunnels"
        return [
            web.get(base, self._all),
            web.put(base + "/{tunnel}", self._put),
            web.delete(base + "/{tunnel}", self._close),
        ]

    def placed(self, tunnel: NodeTunnel) -> NodeTunnel:
        """Give a raw tunnel its port."""
        if tunnel.kind not in RAW_KINDS or tunnel.public_port is not None:
            return tunnel
        self._next += 1
        return tunnel.model_copy(update={"public_port": self._next})

    async def _all(self, request: web.Request) -> web.Response:
        report = self._look(request.match_info["id"])
        items = [self._said(report.id, tunnel) for tunnel in report.tunnels]
        return _json(TunnelReportList(items=items))

    async def _put(self, request: web.Request) -> web.Response:
        report = self._look(request.match_info["id"])
        if self.refuse is not None:
            raise ProblemError(self.refuse, "As told.")
        asked = PutTunnel.model_validate_json(await request.read())
        tunnel_id = request.match_info["tunnel"]
        known = next((each for each in report.tunnels if each.id == tunnel_id), None)
        tunnel = self.placed(
            NodeTunnel(
                **asked.tunnel.model_dump(),
                id=tunnel_id,
                public_port=known.public_port if known else None,
                created_at_us=asked.created_at_us,
            )
        )
        others = [each for each in report.tunnels if each.id != tunnel_id]
        self._keep(report.model_copy(update={"tunnels": [*others, tunnel]}))
        return _json(self._said(report.id, tunnel))

    async def _close(self, request: web.Request) -> web.Response:
        report = self._look(request.match_info["id"])
        left = [each for each in report.tunnels if each.id != request.match_info["tunnel"]]
        self._keep(report.model_copy(update={"tunnels": left}))
        return web.Response(status=204)

    def _said(self, sandbox_id: str, tunnel: NodeTunnel) -> TunnelReport:
        return TunnelReport(**tunnel.model_dump(), sandbox_id=sandbox_id, in_bytes=7, message=self.message)


def _json(model: TunnelReport | TunnelReportList) -> web.Response:
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")
