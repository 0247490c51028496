"""What every runner of a node works with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxd.clock import Clock
from sandboxd.history.decisions import DecisionBook
from sandboxd.history.keeper import Keeper
from sandboxd.history.sampler import Sampler
from sandboxd.hooks.base import FailPoints, Hook
from sandboxd.ledger.base import Ledger
from sandboxd.network.base import Network
from sandboxd.runner.counts import Counts
from sandboxd.runner.failure import KeepFailure, keep_nothing
from sandboxd.runtime.base import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The node's own parts, shared by all runners."""

    runtime: Runtime
    hooks: tuple[Hook, ...]
    """In the order of `prepare`."""
    ledger: Ledger
    network: Network
    clock: Clock
    points: FailPoints
    changed: Callable[[str], None]
    """Told the id of a sandbox whose report has changed."""
    keeper: Keeper
    """Of the logs."""
    sampler: Sampler
    decisions: DecisionBook
    """About sandboxes' traffic."""
    disk_full: Callable[[], bool]
    """Tells whether the file system of the upper directories has no space left."""
    drain_seconds: float
    backstop_margin_seconds: float
    authorities: str = ""
    """Certificates, in PEM, of what is trusted outside: for images that have none."""
    counts: Counts = field(default_factory=Counts)
    keep_failure: KeepFailure = keep_nothing
