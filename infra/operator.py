"""Commands of `sandlotd` for whoever keeps a box running: backup, restore, keys, logs, support, units, uninstall."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from infra.backup.restore import restore
from infra.backup.write import write
from infra.config import LauncherConfig
from infra.launcher import box, logs, units
from infra.launcher.account import LauncherError


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(_backup)
    app.command("restore")(_restore)
    app.command("logs")(_logs)
    app.command("install-units")(_install_units)
    app.command("ready", hidden=True)(_ready)


def _backup(
    file: Annotated[Path, typer.Argument(help="The file to write, such as sandlot.tar.gz.")],
    images: Annotated[bool, typer.Option(help="With the images themselves, not only their records.")] = False,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Back up database, keys, ledger, identity, image records and settings, while everything runs."""
    made = write(LauncherConfig(), os.environ, file.absolute(), images=images, force=force)
    size = file.stat().st_size
    print(f"{file}: {len(made.files)} files, {size >> 10} KiB. It holds keys: keep it as you keep them.")


def _restore(
    file: Annotated[Path, typer.Argument(help="A file that 'sandlotd backup' wrote.", exists=True)],
    force: Annotated[bool, typer.Option(help="Replace what is there; it is kept aside.")] = False,
) -> None:
    """Restore a backup. Nothing of the instance may be running."""
    done = restore(LauncherConfig(), file.absolute(), force=force)
    made = done.manifest
    print(f"restored what {made.host} had on {made.made_at} (version {made.version}, instance {made.instance})")
    if done.standing.alive:
        print(f"{done.standing.alive} sandboxes still run here; the next start takes them up again")
    if done.standing.gone:
        print(f"{done.standing.gone} sandboxes do not run any more; the next start says so of each (node_restarted)")
    if done.aside is not None:
        print(f"what was there before is in {done.aside}; delete it when you do not need it")
    print("its settings are in settings.restored beside the data; 'sandlotd up' starts it")


def _logs(
    program: Annotated[str, typer.Argument(help="api or node; both without.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=1_000_000, help="So many of the last.")] = 100,
) -> None:
    """Print the programs' logs, of the launcher or of systemd."""
    config = LauncherConfig()
    if program and program not in logs.PROGRAMS:
        raise LauncherError(f"there is no program {program!r:.20}", f"say one of: {', '.join(logs.PROGRAMS)}")
    chosen = [program] if program else list(logs.PROGRAMS)
    journal = shutil.which("journalctl")
    if not logs.is_there(config, chosen):
        if journal is None:
            raise LauncherError(f"there are no logs in {config.logs_dir}", "start it with 'sandlotd up'")
        names = [f"--unit={units.name(config.instance, each)}" for each in chosen]
        os.execv(journal, [journal, *names, f"--lines={lines}", *(["--follow"] if follow else [])])  # noqa: S606 - our own list
    with suppress(KeyboardInterrupt, BrokenPipeError):
        logs.show(config, chosen, lines=lines, follow=follow)


def _install_units(
    start: Annotated[bool, typer.Option(help="Enable and start them.")] = False,
) -> None:
    """Install systemd units for this instance; settings go to /etc/sandlot."""
    config = LauncherConfig()
    box.prepare(config)
    for path in units.install(config, os.environ):
        print(path)
    target = f"{units.prefix(config.instance)}.target"
    if start:
        os.execvp("systemctl", ["systemctl", "enable", "--now", target])  # noqa: S606 - our own list
    print(f"start it with 'systemctl enable --now {target}'")


def _ready(
    program: Annotated[str, typer.Argument(help="api or node.")],
    seconds: Annotated[float, typer.Option(min=0, help="How long to wait.")] = 150,
) -> None:
    """Wait until a program answers (for a service manager)."""
    box.wait_ready(LauncherConfig(), os.environ, program, seconds)
