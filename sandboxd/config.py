"""The node agent's settings, read from `SANDLOT_*` in the environment; the only place that reads them."""

import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from netpolicy.platform import Platform, check_exception
from netpolicy.tunnels import HIGHEST_PORT, LOWEST_PORT

ReachableNetwork = Annotated[IPv4Network, AfterValidator(check_exception)]

InstanceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,7}$")]


def _port_range(text: str) -> str:
    first, last = (int(part) for part in text.split("-"))
    if not LOWEST_PORT <= first <= last <= HIGHEST_PORT:
        msg = f"must be first-last, within {LOWEST_PORT} and {HIGHEST_PORT}"
        raise ValueError(msg)
    return text


PortRange = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}-[0-9]{1,5}$"), AfterValidator(_port_range)]


class NodeConfig(BaseSettings):
    """Settings of one node. Two instances on one machine differ in `instance` and in their three directories."""

    model_config = SettingsConfigDict(env_prefix="SANDLOT_", extra="ignore", frozen=True)

    instance: InstanceName = "sandlot"
    """Names everything that is global in the kernel: cgroups, links, tables."""
    data_dir: Path = Path("/var/lib/sandlot")
    """What must outlive a reboot: ledger, images, what sandboxes write, the node's key."""
    run_dir: Path = Path("/run/sandlot")
    """What must not: the runtime's state, sockets, pins of network namespaces."""
    cache_dir: Path = Path("/var/lib/sandlot/cache")
    """What set-up made: runsc, guest, the default image. Read only."""
    node_name: str = Field(default_factory=socket.gethostname, min_length=1)
    """What people call the node."""

    runtime: Literal["runsc", "fake"] = "runsc"
    """`fake` runs nothing: for work on the api, and for measuring what surrounds the runtime."""
    runsc: Path | None = None
    """The runsc to run; default `<cache>/runsc/current/runsc`."""
    guest_dir: Path | None = None
    """The directory with the guest binary; default `<cache>/guest/current`."""

    api_user: str = "sandlot"
    """The user the api runs as; it, root and the agent's own user may call the node."""
    api_socket: Path | None = None
    """Where the api listens for reports; default `<run>/api/api.sock`."""
    node_socket: Path | None = None
    """Where the node listens for the api; default `<run>/api/sandboxd.sock`."""
    gateway_user: str = "sandlot-gateway"
    """The user the gateway runs as; it, root and the agent's own user may bring it clients' calls."""
    token_silence_seconds: float = Field(default=30, gt=0)
    """How long sandbox tokens are believed when the api falls silent: keys may have been revoked meanwhile."""
    node_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """A listener for the node's /metrics, without a key, on `node_metrics_host`."""
    node_metrics_host: str = "127.0.0.1"
    """The address of that listener. Whoever reaches it reads numbers, no names."""
    heartbeat_seconds: float = Field(default=5, gt=0)
    """How often everything is reported, and everything is looked after."""

    max_sandboxes: int = Field(default=1000, ge=1)
    """How many sandboxes at most."""
    max_starts: int = Field(default=8, ge=1)
    """Cold creates under way at once; the others wait in line. More of them only make each slower."""
    cpu_overcommit: float = Field(default=1024, ge=1)
    """A sandbox's cpus are what it may use at most, and nearly all are idle nearly always."""
    memory_overcommit: float = Field(default=64, ge=1)
    """Promised against present memory: most sandboxes use little; pressure closes admission (memory_floor_mib)."""
    disk_overcommit: float = Field(default=256, ge=1)
    """Promised against present disk; the watermark is what holds when all of them write at once."""
    memory_reserve_mib: int = Field(default=512, ge=0)
    """Kept from all sandboxes together, for the platform."""
    memory_floor_mib: int = Field(default=384, ge=0)
    """With less than this available nothing more is admitted."""
    disk_reserve_mib: int = Field(default=2048, ge=0)
    """With less than this left free nothing more is admitted."""
    disk_watermark_mib: int = Field(default=1024, ge=0)
    """With less than this left free the sandbox that wrote most is stopped."""

    pool_size: int = Field(default=4, ge=0)
    """How many sandboxes of `pool_image` at the default size always stand ready, to be claimed in milliseconds."""
    pool_image: str = "base"
    """The name of the image of which some always stand ready."""
    pool_max: int = Field(default=16, ge=0)
    """How many stand ready at most, of whatever was asked for lately; each takes some 16 MiB. 0: none, ever."""
    pool_bridge_seconds: float = Field(default=10, ge=0)
    """How long the demand of the last minute is to be met out of the pool, while nothing is made anew."""
    pool_boots: int = Field(default=1, ge=1)
    """How many are booted at once; none is while a create waits for a cold start."""
    pool_pause_seconds: float = Field(default=0.2, ge=0)
    """Before each boot, so that whoever got the last one has the processors."""

    slot_pool_size: int = Field(default=8, ge=0)
    """How many networks are kept ready."""
    uplink_range: IPv4Network = IPv4Network("10.230.0.0/16")
    """Where the link between the host and the router namespace finds a free pair of addresses."""
    sandbox_range: IPv4Network = IPv4Network("10.231.0.0/16")
    """Sandbox addresses. They exist in the router namespace only, so instances may share them."""
    tunnel_ports: PortRange = "20000-29999"
    """The public ports of tcp and udp tunnels: `first-last`, not above 32767, where Linux takes its own."""
    tunnel_host: str | None = Field(default=None, min_length=1, max_length=253)
    """The name or address by which the node's public ports are reached; default: its address towards the internet."""
    resolvers: tuple[str, ...] = ("1.1.1.1", "8.8.8.8")
    """What a sandbox asks for names; public addresses, because no private one is reachable. Where its policy has names,
    the node answers in their place."""
    egress_exceptions: tuple[ReachableNetwork, ...] = ()
    """Private networks that policies may allow all the same. Never the host's own addresses, loopback or link-local."""
    egress_denied: tuple[IPv4Network, ...] = ()
    """Networks that no sandbox reaches, beside the private ones."""
    inject_authorities_file: Path | None = None
    """Certificates (PEM), beside the host's own, by which a server is verified before it gets a secret."""
    upstream_resolvers: tuple[str, ...] = ()
    """What the node itself asks for the names that sandboxes may reach; default: the host's /etc/resolv.conf."""

    default_registry: str = ""
    """The registry (`host[:port]`) of an image reference that names none; empty: such references are refused."""
    library_registries: tuple[str, ...] = ()
    """Registries where a repository of one part, such as `python`, is short for `library/python`."""
    insecure_registries: tuple[str, ...] = ()
    """Registries (`host[:port]`) that are spoken to in plain HTTP; they count as private too."""
    private_registries: tuple[str, ...] = ()
    """Registries that may be at a private address, and may send on to one. No other download reaches such addresses."""
    registry_mirrors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For a registry, those asked before it, as JSON: `{"registry.example.com": ["mirror.example.com"]}`."""
    registry_auth_file: Path | None = None
    """Credentials of registries in the form of `docker login` (`auths`), in a file of mode 600."""

    image_store: str | None = None
    """What keeps images for all nodes: a directory, or `s3://bucket/prefix`; default `<data>/image-store`."""
    image_store_endpoint: str | None = None
    """Where the bucket is, as `https://host:port`; default: Amazon's, for the region."""
    image_store_region: str = "us-east-1"
    """The bucket's region."""
    image_store_auth_file: Path | None = None
    """The bucket's credentials: JSON with `access_key_id` and `secret_access_key`, in a file of mode 600."""
    image_cache_mib: int = Field(default=0, ge=0)
    """What files of images take here at most, if the store has them: the longest unused go first; 0: no limit."""
    image_scrub_hours: float = Field(default=24, ge=0)
    """How often each image's file is read whole and compared with its digest; 0: never."""
    image_jobs: int = Field(default=4, ge=1, le=64)
    """How many images are fetched or built at once; others wait for their turn."""
    image_seconds: float = Field(default=7200, gt=0)
    """An image that takes longer to fetch is given up."""
    image_largest_mib: int = Field(default=65_536, ge=1)
    """A larger image is refused, and so is one that would become larger."""
    image_first_uid: int = Field(default=65_200, ge=1, le=2**31 - 65)
    """Images are fetched and put together by users of no name, 65 from this number on; nobody else may have those."""
    build_steps: int = Field(default=2, ge=1, le=64)
    """How many steps of builds run at once, each in a sandbox."""
    build_egress: Literal["open", "blocked"] = "open"
    """What steps of builds may reach where neither the build nor its project says."""

    sandbox_log_mib: int = Field(default=64, ge=0, le=65_536)
    """What is kept of a sandbox's output in its log, at most; 0: there are no logs."""
    log_days: float = Field(default=7, gt=0)
    """How long a log is kept after the end of its sandbox."""
    log_disk_mib: int = Field(default=2048, ge=1)
    """What all logs take together, at most: those that ended longest ago go first."""
    log_kib_per_second: int = Field(default=512, ge=8, le=1_048_576)
    """What is read of one sandbox's output for its log; of more than that the newest, and how much is missing."""
    decisions_disk_mib: int = Field(default=256, ge=1)
    """What the decisions about all sandboxes' traffic take, at most: the oldest go first."""
    metrics_disk_mib: int = Field(default=512, ge=0)
    """What the samples of all sandboxes' meters take, at most; 0: no samples are taken."""

    stop_drain_seconds: float = Field(default=2, ge=0)
    """After its processes ended, how long a stop waits for open streams to read their last bytes."""
    backstop_margin_seconds: float = Field(default=60, ge=1)
    """How much later than the node the guest ends itself."""
    exit_seconds: float = Field(default=10, ge=0)
    """When told to exit, how long the agent lets starts and stops under way finish."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""

    @property
    def public_ports(self) -> range:
        """The ports of `tunnel_ports`."""
        first, last = (int(part) for part in self.tunnel_ports.split("-"))
        return range(first, last + 1)

    @property
    def runsc_path(self) -> Path:
        """The runsc to run, links resolved: an update of the cache must not change it under a live node."""
        return (self.runsc or self.cache_dir / "runsc" / "current" / "runsc").resolve()

    @property
    def guest_path(self) -> Path:
        """The directory with the guest binary, links resolved for the same reason."""
        return (self.guest_dir or self.cache_dir / "guest" / "current").resolve()

    @property
    def platform(self) -> Platform:
        """What no sandbox of this node reaches, but for the host's own addresses, which are seen, not set."""
        denied = (*self.egress_denied, self.sandbox_range, self.uplink_range)
        return Platform(extra_denied=denied, exceptions=self.egress_exceptions)

    @property
    def api_socket_path(self) -> Path:
        """Where the api listens for node reports."""
        return self.api_socket or self.run_dir / "api" / "api.sock"

    @property
    def node_socket_path(self) -> Path:
        """Where the node listens."""
        return self.node_socket or self.run_dir / "api" / "sandboxd.sock"

    @property
    def gateway_dir(self) -> Path:
        """Where the gateway finds the node's two sockets for it."""
        return self.run_dir / "gateway"

    @property
    def history_dir(self) -> Path:
        """What is kept of sandboxes and outlives them."""
        return self.data_dir / "history"

    @property
    def sandbox_logs_dir(self) -> Path:
        """What sandboxes' programs wrote, a directory each."""
        return self.history_dir / "logs"

    @property
    def metrics_path(self) -> Path:
        """Samples of sandboxes' meters."""
        return self.history_dir / "metrics.db"

    @property
    def images_dir(self) -> Path:
        """The files of this node's images."""
        return self.data_dir / "images"

    @property
    def image_store_place(self) -> str:
        """What keeps images for all nodes."""
        return self.image_store or str(self.data_dir / "image-store")

    @property
    def image_jobs_dir(self) -> Path:
        """Records and logs of image jobs, a directory each."""
        return self.data_dir / "image-jobs"

    @property
    def build_uid(self) -> int:
        """Who puts images together: none of those that fetch them."""
        return self.image_first_uid + 64

    @property
    def build_cache_dir(self) -> Path:
        """Which image came of which step of a build."""
        return self.data_dir / "build-cache"

    @property
    def image_work_dir(self) -> Path:
        """What image jobs that are under way have, a directory each."""
        return self.data_dir / "image-work"

    @property
    def uploads_dir(self) -> Path:
        """What projects uploaded, a directory each."""
        return self.data_dir / "uploads"

    @property
    def upper_dir(self) -> Path:
        """The directory of what sandboxes write, one directory each."""
        return self.data_dir / "upper"
