"""What was decided about a sandbox's traffic, on its node: positions in it, sealed."""

from api.services.history import LogCursors
from api.services.identity import Caller
from api.services.platform import Platform


class DecisionCursors(LogCursors):
    """Seals positions in one sandbox's decisions as they are read by one project with one filter."""

    def __init__(self, platform: Platform, caller: Caller, sandbox_id: str, verdict: str | None) -> None:
        super().__init__(platform, caller, sandbox_id, None)
        self._scope = f"decisions\0{caller.project_id}\0{sandbox_id}\0{verdict}"
