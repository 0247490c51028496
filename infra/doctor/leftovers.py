"""Checks for what an instance left behind while neither a launcher nor a node agent of it runs."""

import socket
from collections.abc import Iterator
from pathlib import Path

from infra import residue
from infra.config import LauncherConfig
from infra.doctor.findings import Finding, ok, warn
from infra.launcher import lock


def checks(config: LauncherConfig) -> Iterator[Finding]:
    found = residue.find(config.instance, [config.run_dir, config.data_dir / "upper"])
    yield leftovers(found, up=lock.holder(config.lock_path) is not None or listens(config.node_socket))


def listens(path: Path) -> bool:
    """Tell whether a program listens at a unix socket: a node agent may run without a launcher."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        try:
            asking.connect(str(path))
        except OSError:
            return False
        return True


def leftovers(found: set[residue.Residue], *, up: bool) -> Finding:
    if up:
        return ok("leftovers", f"the instance is up ({len(found)} things in the kernel are its own)")
    if not found:
        return ok("leftovers", "none")
    processes = sum(item.kind == "process" for item in found)
    names = ", ".join(sorted(map(str, found))[:3])
    return warn(
        "leftovers",
        f"{len(found)} things of an instance that is not up, {processes} of them processes: {names}",
        "'sandlotd up' takes sandboxes up again, 'sandlotd down' removes everything",
    )
