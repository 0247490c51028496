"""Tunnels: ways from outside to a port of a sandbox, as clients ask for them and as a node has them.

The kernel of the node carries `tcp` and `udp`; `tls` and `http` are kept here for the gateway, which asks the node what
a sandbox has open on a port (`tunnel_to`).
"""

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from sandboxd.contract.ids import SandboxId, TunnelId
from sandboxd.contract.processes import Open, Strict

GUEST_PORT: Final = 49979
"""The reserved port of every sandbox, where its guest listens; no tunnel, gateway route or dial may name it."""
MAX_TUNNELS: Final = 64
"""Of one sandbox at once."""
MAX_CIDRS: Final = 64
"""Of one tunnel."""

TunnelKind = Literal["tcp", "udp", "tls", "http"]
Visibility = Literal["token", "public"]
RAW_KINDS: Final = ("tcp", "udp")
"""Kinds that the kernel carries, on a public port of the node."""
_EPOCH_MOST: Final = 2**53


def _cidr(text: str) -> str:
    """Return a network as it is written by everybody: `10.1.2.3` is `10.1.2.3/32`."""
    try:
        return str(IPv4Network(text))
    except (AddressValueError, NetmaskValueError, ValueError):
        msg = "must be an IPv4 address or network such as 203.0.113.0/24, without bits set beyond its length"
        raise ValueError(msg) from None


def _not_the_guests(port: int) -> int:
    if port == GUEST_PORT:
        msg = "is the port of the sandbox's own agent, which no tunnel reaches"
        raise ValueError(msg)
    return port


Cidr = Annotated[str, StringConstraints(max_length=43), AfterValidator(_cidr)]
TunnelPort = Annotated[int, Field(ge=1, le=65535), AfterValidator(_not_the_guests)]
ServerName = Annotated[
    str,
    StringConstraints(
        max_length=253, pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
    ),
]
"""A host name, in the form in which it is compared."""


class TunnelSpec(Strict):
    """A tunnel as it is asked for."""

    port: TunnelPort | None
    """Of the sandbox. Null, with `http` only: every port that has no tunnel of its own."""
    kind: TunnelKind
    visibility: Visibility = "token"
    """Who may use it: with `http`, `token` or `public`. The other kinds are `public`, within `allow_cidrs`."""
    allow_cidrs: Annotated[list[Cidr], Field(max_length=MAX_CIDRS)] = Field(default_factory=list[str])
    """Whence it may be used; empty: from everywhere."""
    server_name: ServerName | None = None
    """Of a `tls` tunnel, where it is not the platform's own name for it."""

    @model_validator(mode="before")
    @classmethod
    def _public_unless_http(cls, given: Any) -> Any:
        if isinstance(given, dict) and "visibility" not in given:
            fields = cast("dict[str, Any]", given)
            if fields.get("kind") != "http":
                return fields | {"visibility": "public"}
        return cast("Any", given)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "TunnelSpec":
        problem = None
        if self.kind != "http" and self.port is None:
            problem = "a port is needed: only an http tunnel may leave it open"
        elif self.kind != "http" and self.visibility != "public":
            problem = f"nobody could check a token on a {self.kind} tunnel: leave visibility out, or narrow allow_cidrs"
        elif self.kind != "tls" and self.server_name is not None:
            problem = "server_name is for tls tunnels"
        if problem is not None:
            raise ValueError(problem)
        return self

    def spec(self) -> "TunnelSpec":
        """Return only what was asked for, of whatever carries more."""
        return TunnelSpec.model_construct(**{name: getattr(self, name) for name in TunnelSpec.model_fields})


class NodeTunnel(TunnelSpec):
    """A tunnel of one sandbox on its node."""

    id: TunnelId
    public_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Of the node, for `tcp` and `udp`; null until the node has picked it."""
    created_at_us: Annotated[int, Field(ge=0, le=2**60)] = 0
    """When it was first asked for, by the api's clock."""


class PutTunnel(Strict):
    """Body of `PUT /node/v1/sandboxes/{id}/tunnels/{tun}`: have it so, however often it is asked."""

    epoch: Annotated[int, Field(ge=0, le=_EPOCH_MOST)]
    tunnel: TunnelSpec
    created_at_us: Annotated[int, Field(ge=0, le=2**60)] = 0


class TunnelReport(Open):
    """What a node says of a tunnel that is open."""

    id: TunnelId
    sandbox_id: SandboxId
    port: int | None
    kind: TunnelKind
    visibility: Visibility
    allow_cidrs: list[str]
    server_name: str | None
    public_port: int | None
    in_bytes: int = 0
    """Carried into the sandbox, by the kernel's count since the node agent loaded its rules; `tcp` and `udp` only."""
    out_bytes: int = 0
    message: str | None = None
    """What keeps it from working, as far as the node can see."""


class TunnelReportList(Open):
    """The tunnels of one sandbox, in the order in which they were opened."""

    items: list[TunnelReport]


AnyTunnel = TypeVar("AnyTunnel", bound=TunnelSpec)


def tunnel_to(tunnels: Iterable[AnyTunnel], port: int, kind: TunnelKind) -> AnyTunnel | None:
    """Return the tunnel of a kind that leads to a port: its own, else the one of every port. Never the guest's."""
    if port == GUEST_PORT:
        return None
    of_kind = [tunnel for tunnel in tunnels if tunnel.kind == kind]
    exact = next((tunnel for tunnel in of_kind if tunnel.port == port), None)
    return exact or next((tunnel for tunnel in of_kind if tunnel.port is None), None)
