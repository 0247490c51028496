"""The api's calls to nodes: typed for the control plane, byte for byte for the data plane.

What a call can come to:

| seen | means |
|---|---|
| a report | it is so |
| a problem with a known code | the node's last word; NodeProblem |
| no connection could be made | nothing was asked; NodeUnreachable(sent=False) |
| anything else: broken, timed out, not understood | unknown; NodeUnreachable(sent=True): ask the same node again |
"""

import asyncio
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from sandboxd.contract.messages import (
    EgressExplained,
    EgressReport,
    EnsureSandbox,
    ExplainOnNode,
    PatchSandbox,
    PutEgress,
    SandboxReport,
)
from sandboxd.contract.problems import CODES, MEDIA_TYPE, ProblemError
from sandboxd.contract.trust import Accepted, Trust
from sandboxd.contract.tunnels import PutTunnel, TunnelReport, TunnelReportList

REQUEST_ID: Final = "Sandlot-Request-Id"
_READ_BUFFER: Final = 512 * 1024
_SLACK_SECONDS: Final = 5.0
"""A node ends its own work at the deadline; this long its answer may take."""
_TRUST_SECONDS: Final = 2.0
_TUNNEL_SECONDS: Final = 40.0
"""A node waits some time for a sandbox that is on its way."""
_BASE: Final = "http://node"
_UNKNOWN: Final = frozenset({"internal", "operation_in_progress", "sandbox_not_ready"})
"""Problems that do not say what has become of the sandbox."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class NodeProblemError(Exception):
    """The node's answer is a problem."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(str(body.get("code")))
        self.body = body
        self.code = str(body["code"])

    def problem(self, **members: object) -> ProblemError:
        """Return it as ours, for the client."""
        known = {"type", "title", "status", "detail", "code", "reason", "hint", "retryable", "request_id"}
        extra = {key: value for key, value in self.body.items() if key not in known}
        extra.pop("retry_after_seconds", None)
        reason, hint, retry = (self.body.get(key) for key in ("reason", "hint", "retry_after_seconds"))
        return ProblemError(
            self.code,
            str(self.body.get("detail", "")),
            reason=reason if isinstance(reason, str) else None,
            hint=hint if isinstance(hint, str) else None,
            retry_after_seconds=retry if isinstance(retry, int | float) else None,
            **(extra | members),
        )


class NodeUnreachableError(Exception):
    """No answer that can be understood."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class NodeClient:
    """Connections to nodes, pooled by address."""

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def session(self, address: str) -> aiohttp.ClientSession:
        """Return the pool of an address, `unix:<path>`."""
        session = self._sessions.get(address)
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=address.removeprefix("unix:"), limit=0, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=2),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._sessions[address] = session
        return session

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def ensure(self, address: str, sandbox_id: str, body: EnsureSandbox) -> SandboxReport:
        return await self._call(
            address,
            "PUT",
            f"/node/v1/sandboxes/{sandbox_id}",
            seconds=body.deadline_seconds + _SLACK_SECONDS,
            body=body,
        )

    async def report(self, address: str, sandbox_id: str) -> SandboxReport:
        return await self._call(address, "GET", f"/node/v1/sandboxes/{sandbox_id}", seconds=10)

    async def patch(self, address: str, sandbox_id: str, body: PatchSandbox) -> SandboxReport:
        return await self._call(address, "PATCH", f"/node/v1/sandboxes/{sandbox_id}", seconds=10, body=body)

    async def put_egress(self, address: str, sandbox_id: str, body: PutEgress) -> EgressReport:
        path = f"/node/v1/sandboxes/{sandbox_id}/egress"
        return await self._call_for(EgressReport, address, "PUT", path, seconds=30, body=body)

    async def explain_egress(self, address: str, sandbox_id: str, body: ExplainOnNode) -> EgressExplained:
        path = f"/node/v1/sandboxes/{sandbox_id}/egress/explain"
        return await self._call_for(EgressExplained, address, "POST", path, seconds=5, body=body)

    async def stop(
        self, address: str, sandbox_id: str, *, generation: int, epoch: int, grace_seconds: float, wait_seconds: float
    ) -> SandboxReport:
        query = {
            "grace_seconds": f"{grace_seconds:g}",
            "wait_seconds": f"{wait_seconds:g}",
            "reason": "requested",
            "generation": str(generation),
            "epoch": str(epoch),
        }
        seconds = wait_seconds + _SLACK_SECONDS
        return await self._call(address, "DELETE", f"/node/v1/sandboxes/{sandbox_id}", seconds=seconds, query=query)

    async def trust(self, address: str, trust: Trust) -> None:
        """Say what is to be believed of tokens."""
        await self._call_for(Accepted, address, "PUT", "/node/v1/trust", seconds=_TRUST_SECONDS, body=trust)

    async def put_tunnel(self, address: str, sandbox_id: str, tunnel_id: str, body: PutTunnel) -> TunnelReport:
        path = f"/node/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}"
        return await self._call_for(TunnelReport, address, "PUT", path, seconds=_TUNNEL_SECONDS, body=body)

    async def close_tunnel(self, address: str, sandbox_id: str, tunnel_id: str, *, epoch: int) -> None:
        path = f"/node/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}"
        query = {"epoch": str(epoch)}
        await self._call_for(_Nothing, address, "DELETE", path, seconds=_TUNNEL_SECONDS, query=query)

    async def tunnels(self, address: str, sandbox_id: str) -> list[TunnelReport]:
        path = f"/node/v1/sandboxes/{sandbox_id}/tunnels"
        return (await self._call_for(TunnelReportList, address, "GET", path, seconds=10)).items

    async def _call(
        self,
        address: str,
        method: str,
        path: str,
        *,
        seconds: float,
        body: BaseModel | None = None,
        query: dict[str, str] | None = None,
    ) -> SandboxReport:
        return await self._call_for(SandboxReport, address, method, path, seconds=seconds, body=body, query=query)

    async def _call_for(
        self,
        model: type[ModelT],
        address: str,
        method: str,
        path: str,
        *,
        seconds: float,
        body: BaseModel | None = None,
        query: dict[str, str] | None = None,
    ) -> ModelT:
        data = None if body is None else body.model_dump_json(exclude_unset=method == "PATCH").encode()
        headers = None if body is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                async with self.session(address).request(
                    method, URL(_BASE + path), data=data, headers=headers, params=query, allow_redirects=False
                ) as answer:
                    payload = await answer.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NodeUnreachableError(str(error), sent=False) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NodeUnreachableError(type(error).__name__, sent=True) from error
        return _understand(model, answer, payload)


def _understand(model: type[ModelT], answer: aiohttp.ClientResponse, payload: bytes) -> ModelT:
    if answer.status in {200, 204}:
        return _parse(model, payload or b"{}")
    if answer.content_type == MEDIA_TYPE:
        body = _parse(_Problem, payload)
        if body.code in CODES and body.code not in _UNKNOWN:
            raise NodeProblemError(body.model_dump())
    raise NodeUnreachableError(f"answered {answer.status}", sent=True)


class _Nothing(BaseModel):
    """The content of a 204."""


class _Problem(BaseModel, extra="allow"):
    code: str


def _parse(model: type[ModelT], payload: bytes) -> ModelT:
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise NodeUnreachableError("not understood", sent=True) from error
