"""The launcher's own settings; each program reads its own, from the same environment.

Paths are derived here once, so that launcher, doctor and tests agree with the programs on where things stand.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.setup.places import DEFAULT_CACHE, runsc_path

Instance = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,7}$")]


class LauncherConfig(BaseSettings):
    """Settings of one instance of Sandlot on this machine, from SANDLOT_*."""

    model_config = SettingsConfigDict(env_prefix="SANDLOT_", extra="ignore", frozen=True)

    instance: Instance = "sandlot"
    """Names everything kernel-global, so that several instances can share a machine."""
    data_dir: Path = Path("/var/lib/sandlot")
    run_dir: Path = Path("/run/sandlot")
    cache_dir: Path = Path(DEFAULT_CACHE)
    runsc: Path | None = None
    api_user: str = "sandlot"
    """The api runs as this system user; its group may open the node's socket."""
    gateway_user: str = "sandlot-gateway"
    """The gateway runs as this system user, which owns nothing."""
    api_host: str = "127.0.0.1"
    api_port: int = 7070
    gateway_host: str = "127.0.0.1"
    """The address that the gateway listens on."""
    gateway_port: int = 7080
    """The port of the gateway. 0: a free one; the api tells clients which."""
    log_mib: int = Field(default=16, ge=1, le=4096)
    """A program's log is turned over when it is larger than this."""
    log_files: int = Field(default=4, ge=0, le=99)
    """How many older logs of each program are kept, beside the one being written."""

    @property
    def api_data_dir(self) -> Path:
        return self.data_dir / "api"

    @property
    def key_path(self) -> Path:
        return self.api_data_dir / "root-key"

    @property
    def images_dir(self) -> Path:
        return self.data_dir / "images"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def sockets_dir(self) -> Path:
        return self.run_dir / "api"

    @property
    def node_socket(self) -> Path:
        return self.sockets_dir / "sandboxd.sock"

    @property
    def gateway_sockets_dir(self) -> Path:
        """Where the node listens for the gateway."""
        return self.run_dir / "gateway"

    @property
    def api_socket(self) -> Path:
        return self.sockets_dir / "api.sock"

    @property
    def runtime_dir(self) -> Path:
        return self.run_dir / "runsc"

    @property
    def runsc_path(self) -> Path:
        return (self.runsc or runsc_path(self.cache_dir)).resolve()

    @property
    def netns_dir(self) -> Path:
        return self.runtime_dir / "netns"

    @property
    def url_path(self) -> Path:
        """The api writes the address it listens on here, because a port of 0 means any free one."""
        return self.api_data_dir / "url"

    @property
    def lock_path(self) -> Path:
        return self.run_dir / "up.lock"
