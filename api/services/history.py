"""What is kept of a sandbox, on its node: where to ask for it, also after its end."""

from typing import Final

from api.services import cursors
from api.services.cursors import Position
from api.services.identity import Caller
from api.services.platform import Platform
from api.services.sandboxes import lost_problem, node_unreachable
from api.services.views import ended_problem
from api.services.waiting import wait_until
from api.store import sandboxes as store
from api.store.tables import Sandbox
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.states import SandboxState

METRICS_SECONDS: Final = 300
"""How far back samples reach when nobody says."""
_DAY_US: Final = 86_400_000_000
_NOT_YET: Final = frozenset({SandboxState.PENDING, SandboxState.STARTING})


async def find(platform: Platform, caller: Caller, sandbox_id: str) -> Sandbox:
    """Return a sandbox of the caller's, an ended one too. Raises `sandbox_not_found`."""
    return await platform.database.read(store.get, caller.project_id, sandbox_id)


async def begun(platform: Platform, sandbox: Sandbox, *, wait_seconds: float) -> Sandbox:
    """Return a sandbox once it runs or has ended; `sandbox_not_ready` when that takes too long."""
    found = await wait_until(platform, sandbox, lambda row: row.state not in _NOT_YET, seconds=wait_seconds)
    if found.state in _NOT_YET:
        raise ProblemError("sandbox_not_ready", f"Sandbox {sandbox.id} is {found.state}.", retry_after_seconds=1)
    return found


def require_logs_kept(platform: Platform, sandbox: Sandbox) -> None:
    """Raise `sandbox_ended` where the log was kept long enough."""
    if sandbox.ended_at is not None:
        age_us = platform.sources.now_us() - sandbox.ended_at
        if age_us > platform.settings.log_days * _DAY_US:
            problem = ended_problem(sandbox)
            problem.hint = f"Logs are kept for {platform.settings.log_days:g} days after the end."
            raise problem


def address_of(platform: Platform, sandbox: Sandbox) -> str:
    """Return where the node of a sandbox answers. Raises `sandbox_lost`, `node_unreachable`."""
    if sandbox.state == SandboxState.LOST:
        raise lost_problem(sandbox)
    member = platform.fleet.members.get(sandbox.node_id)
    if member is None or member.silent:
        raise node_unreachable(sandbox)
    return member.address


class LogCursors:
    """Seals positions in one log as it is read by one project with one filter."""

    def __init__(self, platform: Platform, caller: Caller, sandbox_id: str, process_id: str | None) -> None:
        self._platform = platform
        self._scope = f"logs\0{caller.project_id}\0{sandbox_id}\0{process_id}"
        self._sandbox_id = sandbox_id

    def seal(self, position: int) -> bytes:
        """Return the cursor of a position."""
        now_us = self._platform.sources.now_us()
        place = Position(position, self._sandbox_id)
        return cursors.seal(self._platform.secret, self._scope, place, now_us).encode()

    def unseal(self, cursor: str) -> int:
        """Return the position of a cursor. Raises `invalid_cursor`."""
        return cursors.unseal(self._platform.secret, self._scope, cursor, self._platform.sources.now_us()).created_at


def metrics_span(platform: Platform, sandbox: Sandbox, start_us: int | None, end_us: int | None) -> tuple[int, int]:
    """Return the span of samples asked for in ms: by default the last five minutes, of an ended one's life."""
    now_us = platform.sources.now_us()
    end = end_us if end_us is not None else sandbox.ended_at or now_us
    start = start_us if start_us is not None else end - METRICS_SECONDS * 1_000_000
    # An end that nobody named is the present: what is sampled for this very call belongs to it.
    slack_us = 1_000_000 if end_us is None else 0
    return max(0, start // 1000), max(0, (end + slack_us) // 1000)
