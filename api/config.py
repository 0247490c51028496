"""Settings of the control plane; the only place of `api` that reads the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

VERSION = "0.1.0"
"""The version answers carry; held to the package's by a test."""


class Settings(BaseSettings):
    """Everything an operator may choose, as `SANDLOT_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="SANDLOT_", extra="ignore", frozen=True)

    instance: str = Field(default="sandlot", pattern=r"^[a-z][a-z0-9]{0,7}$")
    """Which of several platforms of this machine this is."""
    data_dir: Path = Path("/var/lib/sandlot")
    """What must outlive a reboot; the api's own part is `api/` below it."""
    run_dir: Path = Path("/run/sandlot")
    """Sockets and what dies with a reboot."""
    api_host: str = "127.0.0.1"
    """The address of the public listener."""
    api_port: int = Field(default=7070, ge=0, le=65535)
    """0: a free one; `<data>/api/url` says which."""
    api_tls_certificate: Path | None = None
    """A PEM file with the chain; with it the public listener speaks TLS. Read again when it changes."""
    api_tls_key: Path | None = None
    """The PEM file with its key, readable by the api's user."""
    api_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """A listener of its own for /metrics, without a key, on `api_host`."""
    api_socket: Path | None = None
    """Where nodes of this box report; `<run>/api/api.sock` unless set."""
    database_url: str | None = None
    """A SQLAlchemy URL; SQLite in `<data>/api/api.db` unless set."""
    default_egress: Literal["open", "blocked"] = "open"
    """What the root project's sandboxes reach when a create does not say."""
    default_registry: str = ""
    """The registry (`host[:port]`) of an image reference that names none; empty: such references are refused."""
    library_registries: tuple[str, ...] = ()
    """Registries where a repository of one part, such as `python`, is short for `library/python`."""
    node_interval_seconds: float = Field(default=5, gt=0)
    """How often a node sends a full report."""
    node_misses: int = Field(default=3, ge=1)
    """Reports a node may miss before its sandboxes are `lost`."""
    lost_grace_seconds: float = Field(default=600, ge=0)
    """How long a sandbox may be `lost` before it is `failed`."""
    start_timeout_seconds: float = Field(default=120, gt=0, le=290)
    """How long a node may take to start a sandbox."""
    log_days: float = Field(default=7, gt=0)
    """How long a log is kept after the end of its sandbox."""
    record_days: int = Field(default=30, ge=1)
    """How long the record of an ended sandbox stays readable."""
    token_key_days: float = Field(default=30, gt=0)
    """How long a key signs sandbox tokens before the next one does."""
    max_secrets: int = Field(default=200, ge=0)
    """How many secrets a project may have."""
    api_drain_seconds: int = Field(default=5, ge=0)
    """How long open answers may go on after a stop was asked for."""

    @property
    def private_dir(self) -> Path:
        """Files of the api's own user."""
        return self.data_dir / "api"

    @property
    def socket_path(self) -> Path:
        """Where nodes of this box send their reports."""
        return self.api_socket or self.run_dir / "api" / "api.sock"

    @property
    def store_url(self) -> str:
        """The database, as a SQLAlchemy URL of a synchronous driver."""
        return self.database_url or f"sqlite:///{self.private_dir / 'api.db'}"

    @property
    def silence_seconds(self) -> float:
        """Silence after which a node counts as out of reach."""
        return self.node_interval_seconds * self.node_misses
