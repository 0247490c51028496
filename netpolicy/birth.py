"""How a program of the router namespace comes to be: `python -I -m netpolicy.birth PROGRAM ROOT USER FILES`.

It begins as root with three inherited descriptors: the namespace, the channel to sandboxd, a socket for upstream
questions. It loads the program's code, enters the namespace, binds what the program listens on, and gives up
everything: root, capabilities, the file system, the right to make processes. Only then does it read a byte that
somebody else wrote.

There is no second exec, so the program needs no file that its user could read: not even its own code.
"""

import asyncio
import ctypes
import importlib
import logging
import os
import resource
import signal
import socket
import sys
from typing import Final

import uvloop

from netpolicy.program import Given, ProgramCode
from programs.libc import (
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
    check,
    libc,
    prctl,
)

NETNS_FD: Final = 3
CHANNEL_FD: Final = 4
UPSTREAM_FD: Final = 5

_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWIPC: Final = 0x08000000
_SECURE_ALL_LOCKED: Final = 0b11101111
"""No root privileges for user 0, no fixing up of capabilities, none kept over a change of user; all locked."""
_LAST_CAPABILITY: Final = 63
_INVALID: Final = 22
_WORDS_BYTES: Final = 1 << 16
_MOST_DESCRIPTORS: Final = 1 << 20


def main(arguments: list[str]) -> None:
    """Become the program; returns when it has ended."""
    name, root, user, files_text = arguments
    os.closerange(UPSTREAM_FD + 1, _MOST_DESCRIPTORS)
    code = _load(name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = min(int(files_text), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    check(libc.setns(NETNS_FD, _CLONE_NEWNET), "setns")
    os.close(NETNS_FD)
    listeners = code.bind()
    channel = socket.socket(fileno=CHANNEL_FD)
    upstream = socket.socket(fileno=UPSTREAM_FD)
    give_up(root, int(user))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is sandboxd's to act on
    logging.raiseExceptions = False
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_over(code, Given(channel, upstream, listeners)))


def give_up(root: str, user: int) -> None:
    """Keep nothing but what is open: no root, no capability ever, no file, no new process."""
    check(libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC), "unshare")
    os.chroot(root)
    os.chdir("/")
    for capability in range(_LAST_CAPABILITY + 1):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 and ctypes.get_errno() != _INVALID:
            check(-1, "capability bounding set")
    prctl(PR_SET_SECUREBITS, _SECURE_ALL_LOCKED, "securebits")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    # Nobody else of the same user may look into it either.
    prctl(PR_SET_DUMPABLE, 0, "dumpable")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # Its last words, in memory; there is no file that it could write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_WORDS_BYTES, _WORDS_BYTES))


async def _until_over(code: ProgramCode, given: Given) -> None:
    await code.run(given)


def _load(name: str) -> ProgramCode:
    # Only modules of this package, and only by whoever may start a program as root.
    module = importlib.import_module(f"netpolicy.{name}")
    code = module.PROGRAM
    if not isinstance(code, ProgramCode):
        raise TypeError(f"{name} is no program")
    return code


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _drop_capabilities() -> None:
    header = _CapabilityHeader(0x20080522, 0)
    check(libc.capset(ctypes.byref(header), (_CapabilityData * 2)()), "capset")


if __name__ == "__main__":
    main(sys.argv[1:])
