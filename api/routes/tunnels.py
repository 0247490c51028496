"""Tunnels: ways from outside to a port of a sandbox."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Response

from api.routes.answers import REPLAYED, json_answer
from api.routes.calls import MERGE_PATCH, Call, scoped
from api.routes.data_plane import SANDBOX_CODES
from api.routes.operations import IDEMPOTENCY, json_body, json_of, operation
from api.routes.sandboxes import SandboxPath
from api.services import tunnels
from api.services.requests import PatchTunnel
from api.services.tunnel_views import Tunnel, TunnelList
from sandboxd.contract.ids import is_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import TunnelSpec

router = APIRouter()

TunnelPath = Annotated[str, Path(json_schema_extra={"pattern": "^tun[a-z2-7]{20}$"})]
Read = Annotated[Call, Depends(scoped("tunnels", write=False))]
Write = Annotated[Call, Depends(scoped("tunnels", write=True))]
_TAGS: Final = ("tunnels",)
_TUNNEL: Final = json_of(Tunnel)
_CHANGE_CODES: Final = (*SANDBOX_CODES, "stale_generation", "body_too_large", "unsupported_media_type", "disk_full")


@router.post(
    "/v1/sandboxes/{sandbox_id}/tunnels",
    **operation(
        answers={201: ("It is open.", _TUNNEL), 200: ("It was open already.", _TUNNEL)},
        codes=[*_CHANGE_CODES, "already_exists", "no_capacity", "idempotency_in_flight", "idempotency_mismatch"],
        body=json_body(TunnelSpec),
        parameters=[IDEMPOTENCY],
        tags=_TAGS,
    ),
)
async def open_tunnel(call: Write, sandbox_id: SandboxPath) -> Response:
    """Open a tunnel to a port of a sandbox.

    `tcp` and `udp` are carried by the node's kernel: connect to `host`:`public_port`; whoever listens in the sandbox
    sees the client's own address. Asked again with the same settings, it is the same tunnel.
    """
    call.no_query()
    body, raw = await call.body(TunnelSpec)
    key = call.idempotency_key("open_tunnel", raw)
    tunnel, status, replayed = await tunnels.open_tunnel(call.platform, call.caller, sandbox_id, body, key)
    return json_answer(tunnel, status, {REPLAYED: "true"} if replayed else None)


@router.get(
    "/v1/sandboxes/{sandbox_id}/tunnels",
    **operation(answers={200: ("The tunnels.", json_of(TunnelList))}, codes=SANDBOX_CODES, tags=_TAGS),
)
async def list_tunnels(call: Read, sandbox_id: SandboxPath) -> Response:
    """List the tunnels of a sandbox, the oldest first."""
    call.no_query()
    items = await tunnels.list_tunnels(call.platform, call.caller, sandbox_id)
    return json_answer(TunnelList.model_construct(items=items))


@router.get(
    "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}",
    **operation(answers={200: ("The tunnel.", _TUNNEL)}, codes=[*SANDBOX_CODES, "tunnel_not_found"], tags=_TAGS),
)
async def get_tunnel(call: Read, sandbox_id: SandboxPath, tunnel_id: TunnelPath) -> Response:
    """Get a tunnel, with the bytes it has carried and what keeps it from working."""
    call.no_query()
    return json_answer(await tunnels.get(call.platform, call.caller, sandbox_id, _checked(tunnel_id)))


@router.patch(
    "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}",
    **operation(
        answers={200: ("The tunnel as changed.", _TUNNEL)},
        codes=[*_CHANGE_CODES, "tunnel_not_found"],
        body=json_body(PatchTunnel, "application/json", "application/merge-patch+json"),
        tags=_TAGS,
    ),
)
async def patch_tunnel(call: Write, sandbox_id: SandboxPath, tunnel_id: TunnelPath) -> Response:
    """Change who may use a tunnel, by JSON merge patch. Connections of whoever may not any more are dead then."""
    call.no_query()
    body, _ = await call.body(PatchTunnel, kinds=MERGE_PATCH)
    return json_answer(await tunnels.patch(call.platform, call.caller, sandbox_id, _checked(tunnel_id), body))


@router.delete(
    "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}",
    **operation(
        answers={204: ("It is closed, and its connections are dead.", None)},
        codes=[*SANDBOX_CODES, "stale_generation", "tunnel_not_found", "disk_full"],
        tags=_TAGS,
    ),
)
async def close_tunnel(call: Write, sandbox_id: SandboxPath, tunnel_id: TunnelPath) -> Response:
    """Close a tunnel. Its public port is not used again for 240 seconds."""
    call.no_query()
    await tunnels.close(call.platform, call.caller, sandbox_id, _checked(tunnel_id))
    return Response(status_code=204)


def _checked(tunnel_id: str) -> str:
    if not is_id("tun", tunnel_id):
        raise ProblemError("tunnel_not_found", f"There is no tunnel {tunnel_id[:64]!r}.")
    return tunnel_id
