"""The ledger seam: one record a sandbox, and the epoch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from sandboxd.contract.messages import SandboxReport, SandboxSpec
from sandboxd.contract.reasons import SandboxReason
from sandboxd.runtime.base import Incarnation

SCHEMA_VERSION: Final = 2


class Phase(StrEnum):
    """How far a sandbox has come, as far as a restart must know."""

    ADMITTED = "admitted"
    """Something of it may exist. Its guest was never told who it is, so a restart buries it without a trace."""
    RUNNING = "running"
    """Its guest acknowledged init: a restart adopts it, or says why it ended."""
    ENDED = "ended"
    """Nothing of it exists; the report is kept until the api acknowledges it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the ledger holds of one sandbox. No secret: `spec` is without `env`, and the nonce is no token."""

    sandbox_id: str
    handle: str
    """What runtime, groups, slot and upper directory know it by; its id, unless it came from the ready pool."""
    generation: int
    spec: SandboxSpec
    phase: Phase
    boot_id: str
    """The host's boot: pids, start times and deadlines mean nothing in another."""
    nonce: str
    """Half of what the guest's token is made of."""
    slot_index: int | None = None
    incarnation: Incarnation | None = None
    address: str | None = None
    user: str | None = None
    cwd: str | None = None
    shell: str | None = None
    started_at: datetime | None = None
    wall_deadline: float | None = None
    """Boot time; None: no limit."""
    last_active: float = 0
    """Boot time of the last sign of use; may lag a few seconds behind."""
    intent: SandboxReason | None = None
    """Why it is being ended; written before anything of it is taken away."""
    message: str | None = None
    cpu_before_seconds: float = 0
    """CPU time its host processes had used before they were its own: not the tenant's."""
    exit_code: int | None = None
    """The entrypoint's, once it has ended."""
    report: SandboxReport | None = None
    """The last word on it, once ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything in the ledger."""

    epoch: int
    records: tuple[Record, ...]


class Ledger(Protocol):
    """Records survive the process, not a power cut within the last second: after that the boot id is another anyway.

    Writes take effect in the order they were asked for, the `_soon` ones included.
    """

    async def open(self) -> Contents:
        """Read everything, once, before anything else. LedgerError: unreadable, or made by a newer release."""
        ...

    async def put(self, record: Record) -> None:
        """Write one record whole; it is written when this returns. LedgerError."""
        ...

    def put_soon(self, record: Record) -> None:
        """Write one record whole, soon. A failure is raised by the next `put`."""
        ...

    def touch_soon(self, last_active: Mapping[str, float]) -> None:
        """Write when sandboxes were last used, soon. Unknown ids are skipped."""
        ...

    async def forget(self, sandbox_ids: Iterable[str]) -> None:
        """Drop records. LedgerError."""
        ...

    async def raise_epoch(self, epoch: int) -> None:
        """Keep the highest epoch ever given. LedgerError."""
        ...

    async def copy(self) -> bytes:
        """Return everything that was written so far as one SQLite file. LedgerError."""
        ...

    @property
    def write_errors(self) -> int:
        """How many writes have failed since `open`."""
        ...

    async def close(self) -> None:
        """Write what is still waiting and let go. Idempotent."""
        ...
