"""The system user of the unprivileged programs, and the directories with who may do what in them."""

import os
import pwd
import subprocess
from pathlib import Path

from infra.config import LauncherConfig


class LauncherError(Exception):
    """The launcher cannot go on. `fix` says what the person at the keyboard does about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def require_root() -> None:
    if os.geteuid() != 0:
        raise LauncherError("namespaces, cgroups and runsc need root", "run it as root, for example with sudo")


def ensure_account(name: str) -> pwd.struct_passwd:
    """Return the system user `name`, making it and its group if missing."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    made = subprocess.run(
        ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        # Whoever made it first, it is there.
        return pwd.getpwnam(name)
    except KeyError:
        raise LauncherError(
            f"the user {name} could not be made: {made.stderr.strip()}", f"useradd --system {name}"
        ) from None


def ensure_directories(config: LauncherConfig, account: pwd.struct_passwd) -> None:
    """Make the instance's directories with their modes; correct those of a directory that is there."""
    group = account.pw_gid
    gateways = ensure_account(config.gateway_user).pw_gid
    for path, uid, gid, mode in (
        (config.data_dir, 0, 0, 0o755),
        (config.logs_dir, 0, 0, 0o750),
        (config.api_data_dir, account.pw_uid, group, 0o700),
        (config.run_dir, 0, 0, 0o755),
        (config.runtime_dir, 0, 0, 0o700),
        # The api binds a socket here too, but must not replace the node's: sticky.
        (config.sockets_dir, 0, group, 0o1770),
        (config.gateway_sockets_dir, 0, gateways, 0o750),
    ):
        _ensure_directory(path, uid, gid, mode)


def _ensure_directory(path: Path, uid: int, gid: int, mode: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(path, uid, gid, follow_symlinks=False)
        path.chmod(mode)
    except OSError as error:
        raise LauncherError(
            f"{path}: {error.strerror}", "make room or move what is in the way, then try again"
        ) from error
