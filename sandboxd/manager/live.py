"""A live sandbox as calls on its processes see it."""

from datetime import datetime
from typing import Any, Final

from sandboxd.contract.problems import ProblemError
from sandboxd.errors import ended_problem
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.history.decisions import DecisionBook
from sandboxd.history.keeper import Keeper
from sandboxd.processes.live import Ending
from sandboxd.runner.life import Life

_DENIED: Final = 20


class Live:
    """One use of one sandbox: the `LiveSandbox` of the processes package."""

    def __init__(self, life: Life, guest: Guest, keeper: Keeper, decisions: DecisionBook) -> None:
        self._life = life
        self._keeper = keeper
        self._decisions = decisions
        self.guest = guest

    @property
    def id(self) -> str:
        return self._life.id

    @property
    def shell(self) -> str | None:
        return self._life.record.shell

    @property
    def ended(self) -> Ending:
        return self._life.ended

    def denied(self, begin: datetime, end: datetime) -> list[dict[str, Any]]:
        begin_ms, end_ms = (int(moment.timestamp() * 1000) for moment in (begin, end))
        return self._decisions.denied(self._life.id, begin_ms, end_ms, _DENIED)

    def end_problem(self) -> ProblemError:
        return ended_problem(self._life.last_word(), self._life.record.spec.resources)

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        self._life.report_guest(error)

    def process_started(self) -> None:
        self._keeper.started(self._life)
