"""What happens in a program's own process before it becomes the program: its limits, its user, its view of files.

`python -m infra.launcher.child [--user NAME] -- COMMAND...`. The program ends when its launcher does. With a user, root
is given up for good. Where that user could not reach the code, because somebody cloned it below a private home, the
program gets a mount namespace in which the code is reachable and nothing else of that home is.
"""

import ctypes
import os
import pwd
import resource
import signal
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY
from programs.libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, check, libc, prctl

_CLONE_NEWNS: Final = 0x00020000
_MS_NOSUID: Final = 0x2
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000
_MOST_FILES: Final = 1 << 20


def main(arguments: list[str]) -> None:
    """Become the command; does not return."""
    launcher = os.getppid()
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    _raise_file_limit()
    # Memory of these programs, and of sandboxes, which inherit this, holds keys and tenants' secrets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir("/")
    if options[:1] == ["--user"]:
        account = pwd.getpwnam(options[1])
        hidden = closed_ancestors([REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)])
        if hidden:
            _open_a_view(hidden)
        _become(account)
        prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    # After the change of user, which clears it; and the launcher may have ended before it was set.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM, "pdeathsig")
    if os.getppid() != launcher:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the launcher's own argument list


def closed_ancestors(needed: Iterable[Path]) -> dict[Path, set[Path]]:
    """Return the topmost directories that others cannot pass, each with the needed paths below it."""
    closed: dict[Path, set[Path]] = {}
    for path in needed:
        for ancestor in (*reversed(path.parents), path):
            if not ancestor.stat().st_mode & stat.S_IXOTH:
                closed.setdefault(ancestor, set()).add(path)
                break
    return closed


def _open_a_view(closed: dict[Path, set[Path]]) -> None:
    """In a mount namespace of its own: cover each closed directory by an empty one that shows only what is needed."""
    check(libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    umask = os.umask(0o022)  # the caller's may keep others out of the directories made here
    for directory, needed in closed.items():
        kept = [(path, os.open(path, os.O_PATH)) for path in outermost(needed)]
        _mount(b"tmpfs", os.fsencode(directory), b"tmpfs", _MS_NOSUID, b"mode=755,size=1m")
        for path, descriptor in kept:
            path.mkdir(parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}".encode(), os.fsencode(path), None, _MS_BIND | _MS_REC, None)
            os.close(descriptor)
    os.umask(umask)


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Drop every path that lies below another."""
    kept: list[Path] = []
    for path in sorted(paths):
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return kept


def _become(account: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel's own ceiling may be lower, and a container's root may not go above what it was given.
    for limit in (max(hard, _MOST_FILES), hard):
        with suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
    check(libc.mount(source, target, kind, ctypes.c_ulong(flags), data), f"mount on {os.fsdecode(target)}")


if __name__ == "__main__":
    main(sys.argv[1:])
