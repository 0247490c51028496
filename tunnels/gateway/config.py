"""Settings of the gateway; the only place of it that reads the environment."""

from ipaddress import ip_address
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewayConfig(BaseSettings):
    """Everything an operator may choose, as `SANDLOT_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="SANDLOT_", extra="ignore", frozen=True)

    run_dir: Path = Path("/run/sandlot")
    """Where the node's sockets are."""
    gateway_host: str = "127.0.0.1"
    """The address that the gateway listens on."""
    gateway_port: int = Field(default=7080, ge=0, le=65535)
    """0: a free one; the api tells clients which."""
    gateway_tls_port: int | None = Field(default=None, ge=0, le=65535)
    """A second port, for `tls` tunnels: what comes is passed on by the name in its ClientHello, undecrypted."""
    gateway_url: str | None = Field(default=None, pattern=r"^https?://[A-Za-z0-9.:\[\]-]{1,255}$")
    """How clients reach it, where that is not the address it listens on: behind a balancer, or by name."""
    gateway_domain: str | None = Field(default="localhost", pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    """Below it each port of a sandbox has a name, `{port}-{sandbox}`. Names below `localhost` need no DNS."""
    gateway_paths: bool | None = None
    """Serve `/s/{sandbox}/{port}/` too: all sandboxes are one origin there. Unset: only on a loopback address."""
    gateway_connections: int = Field(default=8192, ge=1)
    """Connections of clients at once."""
    gateway_connections_per_address: int = Field(default=1024, ge=1)
    """Of one address."""
    gateway_tls_certificate: Path | None = None
    """A PEM file with the chain; with it the gateway speaks TLS. Read again when it changes."""
    gateway_tls_key: Path | None = None
    """The PEM file with its key, readable by the gateway's user."""

    @property
    def by_path(self) -> bool:
        """Whether the path form is served."""
        if self.gateway_paths is not None:
            return self.gateway_paths
        try:
            return ip_address(self.gateway_host).is_loopback
        except ValueError:
            return self.gateway_host == "localhost"

    @property
    def node_dir(self) -> Path:
        """Where the node listens for its gateway."""
        return self.run_dir / "gateway"
