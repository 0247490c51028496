"""A live sandbox as calls on its processes see it."""

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.errors import ended_problem
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.processes.live import Ending
from sandboxd.runner.life import Life

_log = structlog.get_logger(__name__)


class Live:
    """One use of one sandbox: the `LiveSandbox` of the processes package."""

    def __init__(self, life: Life, guest: Guest) -> None:
        self._life = life
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

    def end_problem(self) -> ProblemError:
        return ended_problem(self._life.last_word(), self._life.record.spec.resources)

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        """Remember a lie as evidence; silence is none, it may be load."""
        _log.warning("guest failed a call", sandbox_id=self.id, error=f"{type(error).__name__}: {error}")
        if isinstance(error, GuestError):
            self._life.guest_misbehaved = True
