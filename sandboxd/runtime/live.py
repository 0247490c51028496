"""The host processes of one live sandbox, watched by descriptor until both have ended."""

import asyncio
import os
import signal

from sandboxd.cgroups import pidfds
from sandboxd.runtime import procfs
from sandboxd.runtime.base import Incarnation, ProcessIdentity, RuntimeEnd


class Live:
    """Watches a sentry and its gofer. Neither is of use without the other: when one ends, the other is ended.

    `claimed` is where the pids stand whose exit status is taken here.
    """

    def __init__(self, incarnation: Incarnation, claimed: set[int]) -> None:
        self.incarnation = incarnation
        self.over = asyncio.Event()
        self.end = RuntimeEnd()
        self._claimed = claimed
        self._open: dict[int, int] = {}
        self._sentry_status: os.waitid_result | None = None
        self._gofer_died_first = False
        self._deliberate = False

    def expect_end(self) -> None:
        """Both are about to be killed: whichever goes first means nothing."""
        self._deliberate = True

    def begin(self) -> bool:
        """Begin to watch. False when the sentry is not there any more, or somebody else has its pid."""
        sentry = _open(self.incarnation.sentry)
        if sentry is None:
            return False
        self._watch(self.incarnation.sentry.pid, sentry)
        if self.incarnation.gofer is not None:
            gofer = _open(self.incarnation.gofer)
            if gofer is not None:
                self._watch(self.incarnation.gofer.pid, gofer)
            else:
                # it ended while nobody looked
                self._gofer_died_first = self._died_by_itself(None)
                pidfds.send_kill(sentry)
        return True

    def stop(self) -> None:
        """Watch no longer."""
        for pid in list(self._open):
            self._drop(pid)

    def _watch(self, pid: int, pidfd: int) -> None:
        self._open[pid] = pidfd
        self._claimed.add(pid)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pid)

    def _ended(self, pid: int) -> None:
        status = pidfds.reap(self._open[pid])
        self._drop(pid)
        if pid == self.incarnation.sentry.pid:
            self._sentry_status = status
        elif self._open and not self._deliberate:
            self._gofer_died_first = self._died_by_itself(status)
        for other in self._open.values():
            pidfds.send_kill(other)
        if not self._open:
            self.end = self._describe()
            self.over.set()

    def _died_by_itself(self, gofer: os.waitid_result | None) -> bool:
        """Tell a gofer's own death from that of a pair.

        A sentry on its way out drops its connections long before it is gone, whereupon its gofer ends quietly; and when
        memory runs out the kernel may take both.
        """
        if gofer is not None and gofer.si_code == os.CLD_EXITED and gofer.si_status == 0:
            return False
        sentry = procfs.stat(self.incarnation.sentry.pid)
        return sentry is not None and not sentry.dying

    def _describe(self) -> RuntimeEnd:
        status = self._sentry_status
        if status is None:
            return RuntimeEnd(gofer_died_first=self._gofer_died_first)
        if status.si_code == os.CLD_EXITED:
            return RuntimeEnd(exit_code=status.si_status)
        first = self._gofer_died_first and status.si_status == signal.SIGKILL
        return RuntimeEnd(signal=status.si_status, gofer_died_first=first)

    def _drop(self, pid: int) -> None:
        pidfd = self._open.pop(pid)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._claimed.discard(pid)


def _open(process: ProcessIdentity) -> int | None:
    pidfd = pidfds.open_pidfd(process.pid)
    if pidfd is None:
        return None
    # what the descriptor names is settled now; whether it is the right one is asked afterwards
    found = procfs.stat(process.pid)
    if found is None or found.start_time != process.start_time or found.state in "ZX":
        os.close(pidfd)
        return None
    return pidfd
