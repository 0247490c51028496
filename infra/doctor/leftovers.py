"""Checks for what an instance left behind while no launcher of it runs."""

from collections.abc import Iterator

from infra import residue
from infra.config import LauncherConfig
from infra.doctor.findings import Finding, ok, warn
from infra.launcher import lock


def checks(config: LauncherConfig) -> Iterator[Finding]:
    found = residue.find(config.instance, [config.run_dir, config.data_dir / "upper"])
    yield leftovers(found, up=lock.holder(config.lock_path) is not None)


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
