"""What a node believes of sandbox tokens, as the api tells it; and how a node's gateway is reached."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sandboxd.contract.processes import Open, Strict

PublicKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^key[a-z2-7]{20}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]-]{1,255}$")]
Domain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]

MAX_TOKEN_SECONDS = 604_800
"""The longest life of a token: for so long a revoked key must be remembered."""
MAX_REVOKED = 50_000


class Trust(Strict):
    """Body of `PUT /node/v1/trust`, and part of what a report is answered with: whole, never a change of it."""

    revision: str = Field(max_length=64)
    """Differs whenever the rest does."""
    keys: list[PublicKey] = Field(max_length=64)
    """Ed25519 keys whose tokens are good."""
    revoked: list[KeyId] = Field(max_length=MAX_REVOKED)
    """API keys whose tokens are good no longer."""


class GatewayInfo(Strict):
    """How clients reach a node's gateway."""

    url: Origin
    """Where it answers calls of the data plane."""
    domain: Domain | None = None
    """Below it are the names `{port}-{sandbox}`."""
    by_path: bool = False
    """Whether `/s/{sandbox}/{port}/` is served."""
    tls_port: int | None = Field(default=None, ge=1, le=65_535)
    """Where `tls` tunnels are passed on."""


class Accepted(Open):
    """What a node answers to Trust."""

    revision: str
