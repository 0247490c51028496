"""Checks of this machine: one line each, with the fix where one is needed."""

import json
from collections.abc import Callable, Iterable
from typing import Final

from infra.config import LauncherConfig
from infra.doctor import leftovers, machine, network, software
from infra.doctor.findings import Finding, Level, fail

Check = Callable[[LauncherConfig], Iterable[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    machine.rights,
    machine.kernel_checks,
    machine.cgroup_checks,
    machine.memory_checks,
    machine.disk_checks,
    machine.clock_checks,
    machine.account_checks,
    software.programs,
    software.runsc_checks,
    software.made_checks,
    network.table_checks,
    network.namespace_checks,
    network.forwarding_checks,
    network.firewall_checks,
    network.port_checks,
    leftovers.checks,
)


def examine(config: LauncherConfig, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Run the checks; one that breaks is a finding itself, and the others go on."""
    found: list[Finding] = []
    for check in checks:
        try:
            found.extend(check(config))
        except Exception as error:  # noqa: BLE001 - a doctor that dies of what it looks at is of no use
            found.append(fail(check.__name__, f"the check broke: {error!r}", "report this as a bug"))
    return found


def report(config: LauncherConfig, *, as_json: bool) -> int:
    """Print one line a finding; return the exit status: 1 when something fails."""
    found = examine(config)
    for finding in found:
        print(json.dumps(finding._asdict()) if as_json else line(finding), flush=True)
    return 1 if any(finding.level is Level.FAIL for finding in found) else 0


def line(finding: Finding) -> str:
    fix = f"  ->  {finding.fix}" if finding.fix else ""
    return f"{finding.level.value:4}  {finding.check:16}  {finding.fact}{fix}"
