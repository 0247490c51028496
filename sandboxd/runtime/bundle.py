"""What runsc is told of one sandbox: the OCI configuration, its flags and its limits. Pure.

A bundle lies on disk and its contents end in runsc's state files: there is no secret in it, and nothing a user wrote
but the host name. Users' annotations never come in here, because runsc takes some of them for flags.
"""

from pathlib import Path
from typing import Any, Final

from sandboxd.cgroups import Limits
from sandboxd.contract.messages import Resources
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.runtime.base import Launch

MIB: Final = 1024 * 1024

GUEST_MOUNT: Final = "/.sandlot"
"""Where the guest agent's directory is bound. It is also what makes runsc start a gofer, without which an EROFS root
with a disk-backed overlay does not start."""

MEMORY_OVERHEAD_BYTES: Final = 64 * MIB
MEMORY_OVERHEAD_SHARE: Final = 32
"""On top of what was asked for: 64 MiB and a 32nd, for the sentry's heap (file metadata), page tables and the gofer."""

CREATE_MEMORY_BYTES: Final = 128 * MIB
"""The least that runsc's own commands need while they work inside the group."""

HOST_TASKS_PER_PROCESS: Final = 2
HOST_TASKS_OVERHEAD: Final = 1024
"""A task inside has a stub task outside; the sentry has threads of its own."""

SCORE_ADJUSTMENT: Final = 500
"""When the host runs out of memory, a sandbox goes before the platform."""

_CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",  # cgroups, mounts and the host name inside; users' processes are started without it
    "CAP_SYS_CHROOT",
    "CAP_SYS_RESOURCE",
)

_FILES: Final = 1_048_576


BACKGROUND_WEIGHT: Final = 0.05
"""The share of processors, in units of one, of a sandbox that is nobody's yet."""


def limits(resources: Resources, *, background: bool = False) -> Limits:
    """Return what the host's groups allow a running sandbox: what was asked for, and the stated overhead."""
    memory = resources.memory_mib * MIB
    return Limits(
        memory_bytes=memory + MEMORY_OVERHEAD_BYTES + memory // MEMORY_OVERHEAD_SHARE,
        cpus=resources.cpus,
        weight=BACKGROUND_WEIGHT if background else resources.cpus,
        pids=resources.max_processes * HOST_TASKS_PER_PROCESS + HOST_TASKS_OVERHEAD,
    )


def limits_at_create(resources: Resources, *, background: bool = False) -> Limits:
    """Return the limits that hold while runsc creates it.

    From them runsc takes what the sandbox believes its memory and processors to be: no overhead in the memory. Less
    than one processor would make the start itself slow.
    """
    final = limits(resources, background=background)
    return Limits(
        memory_bytes=max(resources.memory_mib * MIB, CREATE_MEMORY_BYTES),
        cpus=max(resources.cpus, 1.0),
        weight=final.weight if background else max(resources.cpus, 1.0),
        pids=final.pids,
    )


def flags(root: Path, panic_log: Path, launch: Launch) -> list[str]:
    """Return the flags that runsc takes before `create`. Later commands need only `--root`."""
    return [
        f"--root={root}",
        "--platform=systrap",
        "--network=sandbox",
        f"--overlay2=root:dir={launch.upper_dir},size={launch.resources.disk_mib}m",
        # The sentry runs as nobody in an empty user namespace. It costs nothing where the root file system is an image:
        # only the guest's directory is served by the gofer.
        "--directfs=false",
        "--file-access-mounts=exclusive",
        "--host-uds=none",
        "--host-fifo=none",
        "--net-raw=false",
        "--oci-seccomp=false",
        "--allow-suid",  # sudo and su work inside, and give nothing outside
        "--cpu-num-from-quota",
        "--host-settings=ignore",
        "--character-device-policy=emulated-only",
        "--allow-live-tcp-migration=false",
        f"--panic-log={panic_log}",
    ]


def guest_arguments(launch: Launch) -> list[str]:
    """Return the command line of PID 1."""
    arguments = [
        f"{GUEST_MOUNT}/guest",
        "--listen",
        f"0.0.0.0:{GUEST_PORT}",
        "--peer",
        launch.peer,
        "--token-sha256",
        launch.token_sha256,
    ]
    if launch.backstop_seconds is not None:
        arguments += ["--backstop-seconds", f"{launch.backstop_seconds:.3f}"]
    return arguments


def configuration(launch: Launch, root: Path, cgroup: str) -> dict[str, Any]:
    """Return `config.json`: `root` is an empty directory, `cgroup` the path of the group made for it."""
    capabilities = list(_CAPABILITIES)
    return {
        "ociVersion": "1.2.0",
        "hostname": launch.hostname,
        "root": {"path": str(root), "readonly": False},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": guest_arguments(launch),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "terminal": False,
            "noNewPrivileges": False,
            "capabilities": {
                "bounding": capabilities,
                "permitted": capabilities,
                "effective": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": _FILES, "hard": _FILES},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            "oomScoreAdj": SCORE_ADJUSTMENT,
        },
        "mounts": _mounts(launch),
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(launch.image_path),
            "dev.gvisor.spec.rootfs.type": "erofs",
            "dev.gvisor.spec.rootfs.overlay": f"dir={launch.upper_dir}",
            "dev.gvisor.spec.rootfs.options": f"size={launch.resources.disk_mib}m",
        },
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": str(launch.netns_path)},
            ],
        },
    }


def _mounts(launch: Launch) -> list[dict[str, Any]]:
    # /dev/shm is memory of the sandbox: half of it, as a plain Linux would allow
    shared = max(launch.resources.memory_mib // 2, 32)
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {
            "destination": "/dev/shm",  # noqa: S108 - a path inside the sandbox
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "nodev", "mode=1777", f"size={shared}m"],
        },
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
        # A type that runsc does not know is skipped, but keeps it from mounting a tmpfs of its own over an empty /tmp,
        # which would be memory without a bound: /tmp stays on the disk-backed overlay.
        {"destination": "/tmp", "type": "sandlot-overlay", "source": "none"},  # noqa: S108 - a path inside the sandbox
        {
            "destination": GUEST_MOUNT,
            "type": "bind",
            "source": str(launch.guest_dir),
            "options": ["bind", "ro", "nosuid", "nodev"],
        },
    ]
