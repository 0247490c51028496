"""The runtime seam: verbs over OCI bundles, with one suite for every implementation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandboxd.contract.messages import Resources
from sandboxd.guest_client.base import Guest

GuestFactory = Callable[[str, str], Guest]
"""Makes the client of the guest at an address, with its token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything a runtime needs to create one sandbox. Holds no secret: it ends in a bundle on disk."""

    sandbox_id: str
    image_path: Path
    """EROFS file, opened read-only by the sentry."""
    hostname: str
    resources: Resources
    netns_path: Path
    address: str
    """The sandbox's own address in its slot."""
    peer: str
    """The only address the guest answers."""
    upper_dir: Path
    """Directory for the disk-backed overlay, this sandbox's alone."""
    guest_dir: Path
    """Directory with the guest binary, bound read-only at /.sandlot."""
    token_sha256: str
    backstop_seconds: float | None
    background: bool = False
    """Nobody waits for it: others' processors go first, until `update` gives it its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A host process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_time: int
    """Field 22 of /proc/<pid>/stat, clock ticks since boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """The host processes of one sandbox; kept in the ledger so that a restart can find them."""

    sentry: ProcessIdentity
    gofer: ProcessIdentity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEnd:
    """How the sandbox's host processes ended. None: not known."""

    exit_code: int | None = None
    signal: int | None = None
    gofer_died_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeUsage:
    """From the host's meters; never the guest's word."""

    cpu_used_seconds: float
    memory_used_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    oom_kills: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeVersion:
    """What the runtime says it is."""

    name: str
    version: str
    platform: str


class RuntimeFailedError(Exception):
    """A verb failed. `str()` is the runtime's own words, without host paths' secrets; for operators."""

    log: str = ""
    """The end of what the command logged, if it was one."""


class ImageUnreadableError(RuntimeFailedError):
    """The runtime could not open or understand the root file system."""


class Runtime(Protocol):
    """Verbs of one runtime. Every verb may be cut off by cancellation: `remove` afterwards leaves nothing.

    `create` and `start` are not idempotent; `kill` and `remove` are. None of them needs another to have succeeded.
    """

    async def open(self) -> None:
        """Make ready: ends every command that an earlier node agent left at work. Sandboxes live on."""
        ...

    async def close(self) -> None:
        """Let go. Sandboxes live on; waiters are left waiting."""
        ...

    async def clear(self) -> None:
        """Undo `open`, at the node's own end, when no sandbox is left."""
        ...

    async def version(self) -> RuntimeVersion:
        """Ask the runtime what it is; RuntimeFailedError if it is missing or too old."""
        ...

    async def create(self, launch: Launch) -> None:
        """Make the sandbox's host processes, cgroup and bundle; nothing of the guest runs yet."""
        ...

    async def start(self, sandbox_id: str) -> Incarnation:
        """Let the guest run, and say which host processes it is."""
        ...

    async def recover(self, sandbox_id: str, incarnation: Incarnation) -> bool:
        """Take over a sandbox that an earlier node agent started. False when it is not alive any more."""
        ...

    async def wait(self, sandbox_id: str) -> RuntimeEnd:
        """Wait until the sandbox's host processes end. Never ends before they do; any number of waiters."""
        ...

    async def kill(self, sandbox_id: str) -> None:
        """End the host processes with SIGKILL, certainly, and wait until they are gone."""
        ...

    async def remove(self, sandbox_id: str) -> None:
        """Undo all of it: processes, cgroups, runtime state, sockets, bundle. Complete and idempotent."""
        ...

    async def known(self) -> set[str]:
        """List every sandbox id of which the runtime still has anything: state, cgroup, bundle or process."""
        ...

    def usage(self, sandbox_id: str) -> RuntimeUsage | None:
        """Read the host's meters; None when they are gone."""
        ...

    def cpu_used_seconds(self, sandbox_id: str) -> float | None:
        """Read one meter of `usage` alone, which is cheap; None when it is gone."""
        ...

    def cached_bytes(self, sandbox_id: str) -> int:
        """Read how much of the memory in use is files' contents."""
        ...

    def panicked(self, sandbox_id: str) -> bool:
        """Tell whether the sentry left a panic log."""
        ...

    def panic_log(self, sandbox_id: str) -> str:
        """Return the beginning of the sentry's panic log; empty when there is none. Hostile input may be in it."""
        ...

    def guest(self, sandbox_id: str, address: str, token: str) -> Guest:
        """Return a client of the sandbox's guest."""
        ...

    async def difference(self, sandbox_id: str, into: int) -> None:
        """Write what a live sandbox has changed in its root file system, as a tar, into a descriptor; it lives on.

        As overlays keep it: what is gone is a character device 0:0. All of it is hostile input, and as long as the
        sandbox makes it: whoever reads bounds it, and ends this by closing the other end.
        """
        ...

    async def update(self, sandbox_id: str, resources: Resources) -> None:
        """Change the limits of a live sandbox."""
        ...
