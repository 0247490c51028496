"""What is kept and told of a sandbox beside its processes: what listens, samples of its meters, lines of its log."""

from typing import Annotated

from pydantic import Field

from sandboxd.contract.processes import Open, Time

PortNumber = Annotated[int, Field(ge=1, le=65535)]


class Port(Open):
    """A socket that listens, by the sandbox's own word."""

    port: PortNumber
    protocol: str
    address: str
    pid: int | None


class PortList(Open):
    """What listens in a sandbox."""

    items: list[Port]


class Sample(Open):
    """A sandbox's meters at one moment, by the node's count; `processes` is the sandbox's own."""

    at: Time
    cpu_used_seconds: float
    cpu_used_percent: float
    """Of one processor, since the sample before."""
    cpus: float
    memory_used_bytes: int
    memory_cache_bytes: int
    memory_limit_bytes: int
    disk_used_bytes: int
    disk_limit_bytes: int
    processes: int
    egress_bytes: int
    ingress_bytes: int


class SampleList(Open):
    """Samples, oldest first."""

    items: list[Sample]
    next_cursor: str | None = None
