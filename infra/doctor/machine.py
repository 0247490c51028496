"""Checks of kernel, cgroups, memory, disk, clock and users."""

import os
import platform
import pwd
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.config import LauncherConfig
from infra.doctor.findings import Finding, fail, ok, warn

_OLDEST_KERNEL: Final = (5, 6)
"""The oldest the runtime supports; pidfds and openat2 are there too."""
_CONTROLLERS: Final = ("cpu", "memory", "pids")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_LEAST_MEMORY_MIB: Final = 1024
_LEAST_DISK_MIB: Final = 4096
_BUILT_AFTER: Final = 1_767_225_600
"""2026-01-01: a clock before this release of Sandlot is wrong, and certificates will not verify."""


def rights(_config: LauncherConfig) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield ok("rights", "root")
    else:
        yield fail("rights", "not root: several checks cannot see enough", "run it with sudo")


def kernel_checks(_config: LauncherConfig) -> Iterator[Finding]:
    yield kernel(platform.release())
    yield architecture(platform.machine())
    yield mappings(int(Path("/proc/sys/vm/max_map_count").read_text()))


def kernel(release: str) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return warn("kernel", f"{release}: not a version this check knows", "5.6 or newer is needed")
    if (int(found[1]), int(found[2])) < _OLDEST_KERNEL:
        return fail("kernel", f"{release} is too old", "boot Linux 5.6 or newer")
    return ok("kernel", release)


def architecture(machine: str) -> Finding:
    if machine in {"x86_64", "aarch64"}:
        return ok("architecture", machine)
    return fail("architecture", f"{machine} has no sandbox platform", "use x86_64 or aarch64")


def mappings(max_map_count: int) -> Finding:
    if max_map_count < 65_530:
        return warn(
            "memory maps",
            f"vm.max_map_count is {max_map_count}: programs with many mappings get ENOMEM inside",
            "sysctl -w vm.max_map_count=1048576",
        )
    return ok("memory maps", f"vm.max_map_count is {max_map_count}")


def cgroup_checks(_config: LauncherConfig) -> Iterator[Finding]:
    unified = _CGROUPS / "cgroup.controllers"
    if unified.exists():
        yield controllers("v2", set(unified.read_text().split()))
        return
    mounted = {name for entry in _CGROUPS.glob("*") if entry.is_dir() for name in entry.name.split(",")}
    if not mounted:
        yield fail("cgroups", "none are mounted at /sys/fs/cgroup", "mount cgroup v2 there, or boot with systemd")
        return
    yield controllers("v1", mounted)


def controllers(version: str, present: set[str]) -> Finding:
    missing = [name for name in _CONTROLLERS if name not in present]
    if missing:
        fix = "boot without cgroup_disable, or delegate them to this container"
        return fail("cgroups", f"{version} without {', '.join(missing)}", fix)
    return ok("cgroups", f"{version} with {', '.join(_CONTROLLERS)}")


def memory_checks(_config: LauncherConfig) -> Iterator[Finding]:
    text = Path("/proc/meminfo").read_text()
    yield memory({name: int(kib) // 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)})


def memory(mib: dict[str, int]) -> Finding:
    available, total = mib.get("MemAvailable", 0), mib.get("MemTotal", 0)
    if available < _LEAST_MEMORY_MIB:
        return warn("memory", f"{available} of {total} MiB available", "few sandboxes will fit; end something else")
    return ok("memory", f"{available} of {total} MiB available")


def disk_checks(config: LauncherConfig) -> Iterator[Finding]:
    for name, path in (("data disk", config.data_dir), ("cache disk", config.cache_dir)):
        there = next(place for place in (path, *path.parents) if place.exists())
        usage = os.statvfs(there)
        yield disk(name, path, shutil.disk_usage(there).free >> 20, usage.f_favail, usage.f_files)


def disk(name: str, path: Path, free_mib: int, free_inodes: int, inodes: int) -> Finding:
    fact = f"{free_mib} MiB free at {path}"
    if free_mib < _LEAST_DISK_MIB:
        return warn(name, fact, "sandboxes are refused below a reserve; free some space")
    # File systems without inode tables count none at all.
    if inodes and free_inodes < 10_000:
        return warn(name, f"{fact}, {free_inodes} inodes", "delete small files")
    return ok(name, fact)


def clock_checks(_config: LauncherConfig) -> Iterator[Finding]:
    synchronized = Path("/run/systemd/timesync/synchronized").exists() or shutil.which("chronyd") is not None
    yield clock(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), synchronized=synchronized)


def clock(now: float, since_boot: float, *, synchronized: bool) -> Finding:
    """Deadlines use the time since boot; only what people and certificates read depends on the wall clock."""
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _BUILT_AFTER or since_boot <= 0:
        return fail("clock", f"it says {said}", "set the clock, for example with timedatectl set-ntp true")
    if not synchronized:
        return ok("clock", f"{said} (no time service seen)")
    return ok("clock", said)


def account_checks(config: LauncherConfig) -> Iterator[Finding]:
    try:
        found = pwd.getpwnam(config.api_user)
    except KeyError:
        yield warn("user", f"no user {config.api_user} yet", "sandlotd up makes it")
        return
    yield account(found.pw_name, found.pw_uid)


def account(name: str, uid: int) -> Finding:
    if uid == 0:
        return fail("user", f"{name} is root: the api must not be", "set SANDLOT_API_USER to an unprivileged user")
    return ok("user", f"{name} ({uid})")
