"""What /proc says of host processes: who one is, and whether it is on its way out."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.runtime.base import ProcessIdentity

_EXITING: Final = 0x4
"""PF_EXITING of the kernel's process flags."""

_KILL_PENDING: Final = 1 << (signal.SIGKILL - 1)


@dataclass(frozen=True, slots=True)
class Stat:
    """Fields of `/proc/<pid>/stat`."""

    state: str
    flags: int
    start_time: int
    pending: int
    """Signals not yet taken, as a bit set."""

    @property
    def dying(self) -> bool:
        """Whether it has ended, is ending, or cannot but end."""
        return self.state in "ZX" or bool(self.flags & _EXITING) or bool(self.pending & _KILL_PENDING)


def stat(pid: int) -> Stat | None:
    """Read one process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may hold anything
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(state=fields[0], flags=int(fields[6]), start_time=int(fields[19]), pending=int(fields[28]))


def identity(pid: int) -> ProcessIdentity | None:
    """Return what tells the process apart from a later one of the same pid."""
    found = stat(pid)
    return None if found is None else ProcessIdentity(pid=pid, start_time=found.start_time)
