"""What runsc keeps on disk for a sandbox: its state, lock and control socket, and our bundle beside them.

    <run>/runsc/state/    runsc's --root
    <run>/runsc/bundles/  one directory for each sandbox: config.json, rootfs/ (empty), panic.log

All of it is root's alone: who can reach a control socket owns the sandbox.
"""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandboxd.runtime.base import RuntimeFailedError

_PANIC_LIMIT: Final = 64 * 1024
_SOCKET_PATH_LIMIT: Final = 107
_LONGEST_SOCKET_NAME: Final = len("runsc-.sock") + 23
_NULL_NETNS: Final = "null-netns"
_DETACH: Final = 2
_ID_LENGTH: Final = 23


@dataclass(frozen=True, slots=True)
class HostProcesses:
    """The pids in a state file."""

    sentry: int
    gofer: int | None


class Places:
    """Files of the runtime below one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._home = run_dir / "runsc"
        self.root = self._home / "state"
        self._bundles = self._home / "bundles"
        if len(str(self.root)) + 1 + _LONGEST_SOCKET_NAME > _SOCKET_PATH_LIMIT:
            # runsc would put the control socket into /tmp
            raise ValueError(f"run directory has too long a path for control sockets: {run_dir}")

    def make(self) -> None:
        for directory in (self._home, self.root, self._bundles):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)

    def bundle(self, sandbox_id: str) -> Path:
        return self._bundles / sandbox_id

    def panic_log(self, sandbox_id: str) -> Path:
        return self.bundle(sandbox_id) / "panic.log"

    def empty_root(self, sandbox_id: str) -> Path:
        return self.bundle(sandbox_id) / "rootfs"

    def write_bundle(self, sandbox_id: str, configuration: dict[str, Any]) -> None:
        bundle = self.bundle(sandbox_id)
        bundle.mkdir(mode=0o700)
        self.empty_root(sandbox_id).mkdir(mode=0o755)
        (bundle / "config.json").write_text(json.dumps(configuration))

    def host_processes(self, sandbox_id: str) -> HostProcesses:
        """Read the pids of a created sandbox. RuntimeFailedError when there is no state, or none of ours."""
        try:
            state: dict[str, Any] = json.loads((self.root / f"{sandbox_id}_sandbox:{sandbox_id}.state").read_text())
            gofer = int(state.get("goferPid") or 0)
            return HostProcesses(sentry=int(state["sandbox"]["pid"]), gofer=gofer or None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeFailedError(f"runsc's state of {sandbox_id} cannot be read: {error}") from error

    def panicked(self, sandbox_id: str) -> bool:
        text = self.read_panic_log(sandbox_id)
        return b"panic" in text or b"fatal error" in text

    def read_panic_log(self, sandbox_id: str) -> bytes:
        """Return its beginning: the words of the panic come first."""
        try:
            with self.panic_log(sandbox_id).open("rb") as log:
                return log.read(_PANIC_LIMIT)
        except FileNotFoundError:
            return b""

    def ids(self) -> set[str]:
        """List every id of which there is a file."""
        found = {entry.name for entry in _entries(self._bundles)}
        found.update(sandbox_id for entry in _entries(self.root) if (sandbox_id := _id_in(entry.name)) is not None)
        return found

    def forget(self, sandbox_id: str) -> None:
        """Remove every file of a sandbox whose processes are gone."""
        for entry in _entries(self.root):
            if _id_in(entry.name) == sandbox_id:
                entry.unlink(missing_ok=True)
        shutil.rmtree(self.bundle(sandbox_id), ignore_errors=True)

    def clear(self) -> None:
        """Remove it all, and runsc's pin of the empty network namespace that all gofers of this root share."""
        pin = self.root / _NULL_NETNS
        while _unmount(pin):
            pass
        for directory in (self.root, self._bundles):
            shutil.rmtree(directory, ignore_errors=True)


def _entries(directory: Path) -> Iterator[Path]:
    try:
        yield from list(directory.iterdir())
    except FileNotFoundError:
        return


def _id_in(name: str) -> str | None:
    """`<id>_sandbox:<id>.state`, `….lock`, `runsc-<id>.sock`."""
    text = name.removeprefix("runsc-")
    found = text[:_ID_LENGTH]
    return found if text != found and found.isalnum() and not text[_ID_LENGTH].isalnum() else None


def _unmount(path: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.umount2(os.fsencode(path), _DETACH) == 0
