"""WebSockets: attaching to a process, and connecting to a port inside. Served by the node, passed through unread."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response

from api.routes.calls import Call, call_of, credential_of
from api.routes.data_plane import NOT_READY_SECONDS, SANDBOX_CODES
from api.routes.operations import operation, query
from api.routes.passage import SWITCH
from api.routes.processes import ProcessPath
from api.routes.sandboxes import SandboxPath
from api.routes.socket_answer import Handshake, SocketAnswer, no_socket
from api.services import sandboxes
from api.services.identity import unauthenticated
from api.services.node_client import REQUEST_ID
from sandboxd.contract.ids import is_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.sockets import BEARER_PREFIX, MAY_WRITE, PROCESS_PROTOCOL, TCP_PROTOCOL

router = APIRouter()

_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_VERSION: Final = "13"


def _offered(request: Request) -> list[str]:
    """Return the subprotocols that a handshake offers."""
    words = ",".join(request.headers.getlist("sec-websocket-protocol")).split(",")
    return [word.strip() for word in words if word.strip()]


def _credential(request: Request) -> str:
    """Return the credential of a handshake: in a header as ever, or, for browsers, as a subprotocol."""
    tokens = {one.removeprefix(BEARER_PREFIX) for one in _offered(request) if one.startswith(BEARER_PREFIX)}
    if not tokens:
        return credential_of(request)
    if request.headers.get("authorization") is not None or request.headers.get("x-api-key") is not None:
        tokens.add(credential_of(request))
    if len(tokens) > 1:
        raise unauthenticated("malformed", "The handshake carries different credentials.")
    return tokens.pop()


def _socket_scoped(area: str, *, write: bool) -> Callable[[Request], Awaitable[Call]]:
    async def dependency(request: Request) -> Call:
        call = await call_of(request, _credential(request))
        call.caller.require(area, write=write)
        return call

    return dependency


Attach = Annotated[Call, Depends(_socket_scoped("processes", write=False))]
Dial = Annotated[Call, Depends(_socket_scoped("tunnels", write=True))]


@router.get(
    "/v1/sandboxes/{sandbox_id}/processes/{process_id}/attach",
    **operation(
        answers={101: (f"The WebSocket `{PROCESS_PROTOCOL}`.", None)},
        codes=[*SANDBOX_CODES, "malformed_request", "process_not_found", "too_many_streams", "seq_out_of_range"],
        parameters=[
            query("after", {"type": "integer", "minimum": 0, "default": 0}, "Go on from this position."),
            query("tail_bytes", {"type": "integer", "minimum": 0}, "Not together with `after`."),
        ],
        tags=["processes"],
    ),
)
async def attach_process(call: Attach, sandbox_id: SandboxPath, process_id: ProcessPath) -> Response:
    """Attach to a process by WebSocket: output from any position, and input if the key may write."""
    if not is_id("prc", process_id):
        raise ProblemError("process_not_found", f"There is no process {process_id[:64]!r}.")
    path = f"processes/{process_id}/attach"
    may_write = call.caller.may("processes", write=True)
    return await _pass_on(call, sandbox_id, path, PROCESS_PROTOCOL, {MAY_WRITE: "true"} if may_write else {})


@router.get(
    "/v1/sandboxes/{sandbox_id}/dial",
    **operation(
        answers={101: (f"The WebSocket `{TCP_PROTOCOL}`.", None)},
        codes=[*SANDBOX_CODES, "malformed_request", "too_many_streams"],
        parameters=[query("port", {"type": "integer", "minimum": 1, "maximum": 65_535}, "Required.")],
        tags=["processes"],
    ),
)
async def dial_port(call: Dial, sandbox_id: SandboxPath) -> Response:
    """Connect to a port of the sandbox's loopback by WebSocket."""
    return await _pass_on(call, sandbox_id, "dial", TCP_PROTOCOL, {})


async def _pass_on(call: Call, sandbox_id: str, path: str, protocol: str, more: dict[str, str]) -> Response:
    platform, caller, request = call.platform, call.caller, call.request
    address = await sandboxes.data_plane_address(platform, caller, sandbox_id, wait_seconds=NOT_READY_SECONDS)
    headers = _handshake_headers(request, protocol) | more

    async def explain() -> ProblemError:
        return await sandboxes.data_plane_problem(platform, caller, sandbox_id)

    question = request.scope["query_string"].decode("ascii")
    target = f"/v1/sandboxes/{sandbox_id}/{path}" + (f"?{question}" if question else "")
    return SocketAnswer(request, Handshake(address, target, headers), explain, call.recheck)


def _handshake_headers(request: Request, protocol: str) -> dict[str, str]:
    """Return what a node is told of a handshake: only what this program has understood, and no credential."""
    keys = request.headers.getlist("sec-websocket-key")
    offered = [one for one in _offered(request) if not one.startswith(BEARER_PREFIX)]
    whole = (
        SWITCH in request.scope
        and len(keys) == 1
        and _KEY.fullmatch(keys[0]) is not None
        and request.headers.getlist("sec-websocket-version") == [_VERSION]
    )
    if not whole or (offered and protocol not in offered):
        no_socket(f"Open this address as a WebSocket, version {_VERSION}, with the subprotocol {protocol}.")
    headers = {
        "Sec-WebSocket-Key": keys[0],
        "Sec-WebSocket-Version": _VERSION,
        REQUEST_ID: request.scope["sandlot.request_id"],
    }
    if offered:
        headers["Sec-WebSocket-Protocol"] = protocol
    trace = request.headers.get("traceparent", "")
    if _TRACE.fullmatch(trace) is not None:
        headers["traceparent"] = trace
    return headers
