"""The end of an instance on this machine: programs, things in the kernel, units, and, if asked, data."""

import asyncio
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from infra import residue
from infra.config import LauncherConfig
from infra.launcher import account, box, lock, units
from infra.launcher.account import LauncherError
from netpolicy import firewall
from sandboxd.cgroups import Cgroups
from sandboxd.network import coexistence

_RUN_NAMES: Final = ("api", "gateway", "runsc", "up.lock")
_DATA_NAMES: Final = (
    *("api", "failures", "history", "logs", "tls", "uploads", "upper"),
    *("build-cache", "image-jobs", "image-store", "image-work", "images"),
    *("ledger.db", "ledger.db-wal", "ledger.db-shm"),
    *("node.key", "node.json", "settings.restored", "replaced-*", ".backup-*", ".restore-*", ".swap.json*"),
)
_CACHE_NAMES: Final = ("guest", "images", "runsc", "uv", "go", "logs")
_LEAVE_SECONDS: Final = 200.0
_DETACH: Final = 2


class Plan(NamedTuple):
    """What would go."""

    kernel: list[str]
    units: list[Path]
    files: list[Path]

    @property
    def is_empty(self) -> bool:
        return not (self.kernel or self.units or self.files)


def plan(config: LauncherConfig, *, purge: bool, unit_dir: Path = units.UNIT_DIR) -> Plan:
    """Return what an uninstall would remove now."""
    files = _there(config.run_dir, _RUN_NAMES)
    if purge:
        files += _there(config.data_dir, _DATA_NAMES)
        files += [] if cache_is_shared(config) else _there(config.cache_dir, _CACHE_NAMES)
        settings = units.settings_of(config)
        files += [settings] if settings.exists() else []
    return Plan(sorted(map(str, _residue(config))), units.installed(config, unit_dir=unit_dir), files)


def uninstall(
    config: LauncherConfig,
    env: Mapping[str, str],
    *,
    purge: bool,
    unit_dir: Path = units.UNIT_DIR,
    say: Callable[[str], None] = box.say,
) -> None:
    """Carry the plan out. May be repeated; LauncherError when something would not go."""
    account.require_root()
    units.remove(config, unit_dir=unit_dir)
    if not lock.end_holder(config.lock_path, patience_seconds=_LEAVE_SECONDS):
        raise LauncherError("the running launcher does not end", "kill it by its pid, then run this again")
    if _residue(config) or (config.data_dir / "ledger.db").exists():
        try:
            box.down(config, env)
        except LauncherError as error:
            # Without runsc, or with a ledger that cannot be read, there is no node agent to ask.
            say(f"the node agent could not end it ({error.what.splitlines()[0]}); removing by hand")
        sweep(config)
    left = sorted(map(str, _residue(config)))
    if left:
        raise LauncherError("\n    ".join(["not everything could be removed:", *left]), "run 'sandlotd doctor'")
    for path in plan(config, purge=purge, unit_dir=unit_dir).files:
        _delete(path)
    for directory in (config.run_dir, *((config.cache_dir, config.data_dir, units.ENV_DIR) if purge else ())):
        with suppress(OSError):  # what is not ours stays, and so does its directory
            directory.rmdir()


def sweep(config: LauncherConfig) -> None:
    """Remove what the instance has in the kernel, without its programs. Idempotent."""
    asyncio.run(Cgroups(config.instance).remove_all())
    link, table = f"sl{config.instance}", f"sandlot_{config.instance}"
    if Path("/sys/class/net", link).exists():
        subprocess.run(["ip", "link", "delete", link], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    coexistence.withdraw(link, table)
    firewall.delete_table(table)
    unmount = ctypes.CDLL(None).umount2
    for item in sorted(_residue(config), key=lambda item: item.name, reverse=True):
        if item.kind == "mount":
            unmount(os.fsencode(item.name), _DETACH)
    for socket in (config.node_socket, config.api_socket):
        with suppress(OSError):
            socket.unlink(missing_ok=True)


def cache_is_shared(config: LauncherConfig) -> bool:
    """Tell whether another instance runs from the same cache."""
    own = re.compile(rf"/sandlot-{config.instance}(/|$)", re.MULTILINE)
    mark = f"\0SANDLOT_CACHE_DIR={config.cache_dir}\0".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended meanwhile
            if own.search((entry / "cgroup").read_text()):
                continue
            if (entry / "exe").readlink().is_relative_to(config.cache_dir / "runsc"):
                return True
            environ = b"\0" + (entry / "environ").read_bytes()
            is_agent = b"\0-m\0sandboxd\0" in (entry / "cmdline").read_bytes()
            if is_agent and mark in environ and f"\0SANDLOT_INSTANCE={config.instance}\0".encode() not in environ:
                return True
    return False


def _residue(config: LauncherConfig) -> set[residue.Residue]:
    found = residue.find(config.instance, [config.run_dir, config.data_dir / "upper"])
    return {item for item in found if item.kind != "process" or _is_another(item)}


def _is_another(process: residue.Residue) -> bool:
    """Leave out this command and whatever started it, which may have our directories among their words."""
    pid = int(process.name.split()[0])
    ours = os.getpid()
    while ours > 1:
        if pid == ours:
            return False
        ours = int(Path(f"/proc/{ours}/stat").read_text().rpartition(")")[2].split()[1])
    return True


def _there(directory: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for name in names for path in sorted(directory.glob(name))]


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise LauncherError(f"{path} cannot be removed: {error.strerror}", "look what holds it") from error
