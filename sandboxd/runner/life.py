"""What is known of one sandbox while the agent has it: record, state, parts, and the report made of them."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from sandboxd.clock import Clock
from sandboxd.contract.messages import MAX_ENTRYPOINT_BYTES, SandboxReport, SandboxSpec
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import ROW_OF, SandboxReason
from sandboxd.contract.states import SandboxState, require_legal
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.history.sampler import Sampled
from sandboxd.hooks.base import Parts
from sandboxd.ledger.base import Record
from sandboxd.processes.live import Ending
from sandboxd.runner.activity import Activity
from sandboxd.runtime.base import RuntimeEnd, RuntimeUsage

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What made a sandbox's end begin. The first one counts."""

    intent: SandboxReason | None = None
    message: str | None = None
    grace_seconds: float | None = None
    """None: there is nobody to tell any more, or not yet."""
    end: RuntimeEnd | None = None
    error: Exception | None = None
    """Why it could not be started or recovered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why it ended, decided once, before anything of it is taken away."""

    reason: SandboxReason
    message: str
    at: datetime

    @property
    def state(self) -> SandboxState:
        """The terminal state that follows."""
        return ROW_OF[self.reason].ends_as


class Life:
    """One sandbox's present. Changed by its runner alone; anybody may read."""

    def __init__(self, record: Record, parts: Parts, clock: Clock, state: SandboxState) -> None:
        self.record = record
        self.parts = parts
        self.state = state
        self.activity = Activity(clock, record.last_active)
        self.cause: Cause | None = None
        self.caused = asyncio.Event()
        self.cut: Callable[[], None] | None = None
        """Breaks off what must not go on once its end has begun."""
        self.settled = asyncio.Event()
        """Starting is over, one way or the other."""
        self.adopted = asyncio.Event()
        """After a restart of the agent: it is known whether it runs on."""
        self.rescheduled = asyncio.Event()
        """A deadline was moved."""
        self.verdict: Verdict | None = None
        self.ended = Ending()
        """Nothing more comes from the guest."""
        self.over = asyncio.Event()
        """The terminal state is reached and, as far as possible, nothing is left."""
        self.start_problem: ProblemError | None = None
        self.guest_misbehaved = False
        self.usage: RuntimeUsage | None = None
        self.leftover = False
        """Something could not be undone; the manager goes on trying."""
        self.awaiting = 0
        """Callers who are told at once, by the answer to their own call, how the start went."""
        self.egress_turn = asyncio.Lock()
        """One change at a time of what it may reach."""
        self._clock = clock
        self._made_at = clock.now()
        if state is not SandboxState.STARTING:
            self.settled.set()

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.record.sandbox_id

    @property
    def handle(self) -> str:
        """What the node's own parts know it by."""
        return self.record.handle

    @property
    def guest(self) -> Guest | None:
        """A client of its guest, once there is one."""
        return self.parts.guest

    @property
    def began_us(self) -> int:
        """When it was started, in µs since 1970; nothing of it is older."""
        at = self.record.started_at or self._made_at
        return int(at.timestamp() * 1_000_000)

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        """Remember a lie as evidence; silence is none, it may be load."""
        _log.warning("guest failed a call", sandbox_id=self.id, error=f"{type(error).__name__}: {error}")
        if isinstance(error, GuestError):
            self.guest_misbehaved = True

    def sampled(self, processes: int) -> Sampled:
        """Return where its meters are; `processes` as it says itself."""
        host = self.record.incarnation
        identities = () if host is None else (host.sentry, host.gofer)
        resources = self.record.spec.resources
        return Sampled(
            id=self.id,
            handle=self.handle,
            cpu_before_seconds=self.record.cpu_before_seconds,
            cpus=resources.cpus,
            disk_limit=resources.disk_mib * 1024 * 1024,
            interface=self.parts.slot.interface if self.parts.slot else None,
            pids=tuple(each.pid for each in identities if each is not None),
            processes=processes,
        )

    def write(self, **changes: Any) -> Record:
        """Change fields of the record; returns it, to be put into the ledger."""
        self.record = replace(self.record, **changes)
        return self.record

    def move(self, state: SandboxState) -> None:
        """Go to another state; IllegalTransitionError where the table has no row."""
        if state is not self.state:
            require_legal(self.state, state)
            self.state = state

    @contextmanager
    def awaited(self) -> Generator[None]:
        """Wait inside for the start."""
        self.awaiting += 1
        try:
            yield
        finally:
            self.awaiting -= 1

    def begin_end(self, cause: Cause) -> None:
        """Let its end begin; only the first cause counts."""
        if self.cause is None:
            self.cause = cause
            self.caused.set()
            if self.cut is not None:
                self.cut()

    def absorb(self) -> bool:
        """Take from the parts what the record keeps; tells whether that changed anything."""
        parts = self.parts
        known = (self.record.slot_index, self.record.incarnation)
        if (parts.slot_index, parts.incarnation) == known:
            return False
        address = parts.slot.address if parts.slot else None
        self.write(slot_index=parts.slot_index, incarnation=parts.incarnation, address=address)
        return True

    def report(self, usage: RuntimeUsage | None) -> SandboxReport:
        """Say how it is. `usage`: the host's meters, if they could be read just now."""
        record = self.record
        if record.report is not None:
            return record.report
        used = usage or self.usage
        remaining = None
        if record.wall_deadline is not None and self.verdict is None:
            remaining = max(0.0, record.wall_deadline - self._clock.boottime())
        return SandboxReport(
            id=record.sandbox_id,
            generation=record.generation,
            state=self.state,
            reason=self.verdict.reason if self.verdict else record.intent,
            message=self.verdict.message if self.verdict else record.message,
            exit_code=record.exit_code,
            entrypoint=_shown(record.spec),
            user=record.user,
            cwd=record.cwd,
            shell=record.shell,
            address=record.address,
            started_at=record.started_at,
            ended_at=self.verdict.at if self.verdict and self.over.is_set() else None,
            expires_at=None if remaining is None else self._clock.now() + timedelta(seconds=remaining),
            remaining_seconds=remaining,
            last_active_at=self._last_active_at(),
            tunnels=[] if self.verdict else record.spec.tunnels,
            cpu_used_seconds=max(0.0, used.cpu_used_seconds - record.cpu_before_seconds) if used else 0,
            memory_peak_bytes=used.memory_peak_bytes if used else 0,
            egress_generation=self.parts.egress_applied,
            egress_closed=self.parts.egress_closed,
            credentials_missing=self.verdict is None and _lacks(self.parts),
        )

    def last_word(self) -> SandboxReport:
        """Say how it ended. Only with a verdict."""
        if self.verdict is None:
            msg = f"sandbox {self.id} has not ended"
            raise RuntimeError(msg)
        verdict = self.verdict
        return self.report(None).model_copy(
            update={"state": verdict.state, "ended_at": verdict.at, "expires_at": None, "remaining_seconds": None}
        )

    def _last_active_at(self) -> datetime | None:
        if self.record.started_at is None:
            return None
        ago = max(0.0, self._clock.boottime() - self.activity.last_active())
        return self._clock.now() - timedelta(seconds=ago)


def _lacks(parts: Parts) -> bool:
    wanted = {entry.value_from.get("secret") for entry in parts.spec.egress.inject}
    return bool(wanted) and (parts.credentials is None or not wanted <= parts.credentials.values.keys())


def _shown(spec: SandboxSpec) -> list[str] | None:
    """Return the entrypoint that the image brought; what a caller gave is known to the api."""
    argv = spec.entrypoint if spec.use_image_entrypoint else None
    return argv if argv is None or sum(map(len, argv)) <= MAX_ENTRYPOINT_BYTES // 8 else [argv[0][:4096], "…"]
