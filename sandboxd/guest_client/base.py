"""The guest seen from the node: the interface that the HTTP client, and the fake of the fake runtime, fulfil."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandboxd.contract.frames import Batch, Frame
from sandboxd.guest_client.file_calls import GuestFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """What a guest is told after start, claim or restore. Never written to disk by the node: `env` holds secrets."""

    hostname: str
    env: dict[str, str] = field(repr=False)
    secret_env: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """Of processes that want it, over `env`."""
    image_env: dict[str, str]
    user: str | None
    cwd: str | None
    image_user: str | None
    image_cwd: str | None
    address: str
    gateway: str
    resolvers: tuple[str, ...]
    max_processes: int
    memory_bytes: int
    cpus: float
    """What programs inside that look for a quota of their own are to find."""
    now_us: int
    seed: bytes = field(repr=False)
    backstop_seconds: float | None
    token: str | None = field(default=None, repr=False)
    """The token from now on: of a sandbox that was made ready under another name. The old one is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult:
    """What the guest made of it."""

    user: str
    uid: int
    gid: int
    home: str
    cwd: str
    shell: str | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A guest's own word about itself: a hint."""

    version: str
    initialized: bool
    processes_running: int
    last_exit_at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process was started, or joined."""

    process: dict[str, Any]
    """Process without `sandbox_id`, as the guest sent it, not yet validated."""
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRequest:
    """What a reader of the feed knows already, and how much it wants how often."""

    positions: dict[str, int] = field(default_factory=dict[str, int])
    """The next byte of each process that is known and has not ended."""
    ended: list[str] = field(default_factory=list[str])
    """Processes whose end is known."""
    most_bytes: int = 262_144
    """In one batch, the newest bytes first; what does not fit is named by a lost frame."""
    interval_seconds: float = 0.5
    linger_seconds: float = 5
    """How long the feed goes on when nothing runs."""
    keepalive_seconds: float = 30
    follow: bool = True
    """False: what is there now, and no more."""


class GuestError(Exception):
    """The guest broke its protocol, lied beyond belief, or went beyond a bound."""


class GuestUnreachableError(Exception):
    """No answer: refused, reset, or timed out. The sandbox may have ended."""


class FollowedStart(Protocol):
    """A started process and its output from the first byte."""

    @property
    def started(self) -> Started:
        """The process, and whether it was there already."""
        ...

    def batches(self) -> AsyncGenerator[Batch]:
        """Yield whole frames, as reads bring them, until `exit`.

        GuestUnreachableError when the connection breaks or falls silent before. What is in the frames is not checked.
        """
        ...


class GuestAttachment(Protocol):
    """One connection to a process, both ways."""

    def batches(self) -> AsyncGenerator[Batch]:
        """Yield whole frames until `exit`: `attached` first, then output, and what became of input between.

        GuestUnreachableError when the connection breaks or falls silent before. What is in the frames is not checked.
        """
        ...

    async def send(self, frame: bytes) -> None:
        """Send one frame of input. Waits while the guest takes no more."""
        ...

    async def detach(self) -> None:
        """Let the guest take what was sent, and go. Bounded in time."""
        ...


class Duplex(Protocol):
    """A stream of bytes both ways. GuestUnreachableError when it breaks."""

    async def read(self) -> bytes:
        """Return some bytes; none at the end of what the other side says."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes. Waits while the other side takes no more."""
        ...

    def end(self) -> None:
        """Say that no more will be written."""
        ...


class Guest(Protocol):
    """One sandbox's guest agent.

    Every method raises ProblemError for the codes of docs/guest-protocol.md, GuestError for a broken protocol and
    GuestUnreachableError for silence. Streams are bounded in memory and unbounded in length.
    """

    async def listening(self) -> None:
        """Return once it takes connections, however long that takes: the caller bounds it."""
        ...

    async def health(self, timeout_seconds: float = 5) -> Health:
        """Ask whether it answers."""
        ...

    async def init(self, init: Init, timeout_seconds: float = 10) -> InitResult:
        """Tell it who it is. With a token in it, every later call is made by that one."""
        ...

    async def set_backstop(self, seconds: float | None) -> None:
        """Move its own end: seconds from now, or none."""
        ...

    async def start(self, spec: dict[str, Any]) -> Started:
        """Start or join a process (GuestProcessSpec)."""
        ...

    def start_followed(self, spec: dict[str, Any]) -> AbstractAsyncContextManager[FollowedStart]:
        """Start or join a process and follow its output, in one round trip."""
        ...

    async def processes(self, state: str | None, tag: str | None) -> list[dict[str, Any]]:
        """List processes, oldest first."""
        ...

    async def process(self, process_id: str, wait_seconds: float = 0) -> dict[str, Any]:
        """Return one process, after waiting for its end at most that long."""
        ...

    def output(
        self,
        process_id: str,
        *,
        after: int = 0,
        tail_bytes: int | None = None,
        follow: bool = False,
        keepalive_seconds: float = 15,
    ) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        """Open the output of a process from a position: batches as of FollowedStart."""
        ...

    async def head(self, process_id: str) -> list[Frame]:
        """Return the first bytes of each channel (at most 64 KiB each)."""
        ...

    async def write_stdin(
        self, process_id: str, body: AsyncIterator[bytes], *, offset: int | None, close: bool
    ) -> dict[str, Any]:
        """Pass standard input on; `{offset, closed}`."""
        ...

    def attach(
        self, process_id: str, *, after: int = 0, tail_bytes: int | None = None
    ) -> AbstractAsyncContextManager[GuestAttachment]:
        """Attach to a process: its output from a position, and input."""
        ...

    def dial(self, port: int) -> AbstractAsyncContextManager[Duplex]:
        """Connect to a port of the sandbox's loopback; `port_not_listening`."""
        ...

    async def signal(self, process_id: str, signal: str, scope: str, key: str | None) -> None:
        """Send a signal."""
        ...

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        """Resize a terminal."""
        ...

    @property
    def files(self) -> GuestFiles:
        """Its calls on files."""
        ...

    async def metrics(self) -> dict[str, Any]:
        """Return its own view of its use: hints, never billing."""
        ...

    async def ports(self, port: int | None, wait_seconds: float) -> dict[str, Any]:
        """Return what listens, `{items}`, after waiting at most that long for the port, or for any."""
        ...

    def feed(self, request: FeedRequest) -> AbstractAsyncContextManager[AsyncGenerator[Batch]]:
        """Open the newest output of all processes; before the frames of each, an `attached` frame names it."""
        ...

    async def shutdown(self, grace_seconds: float) -> None:
        """End every user process: SIGTERM, then SIGKILL after the grace."""
        ...

    async def close(self) -> None:
        """Drop connections. The guest lives on."""
        ...
