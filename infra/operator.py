"""Commands of `sandlotd` for whoever keeps a box running: backup, restore, keys, logs, support, units, uninstall."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from infra.backup.restore import restore
from infra.backup.write import write
from infra.config import LauncherConfig
from infra.launcher import account, as_user, box, logs, told, uninstall, units
from infra.launcher.account import LauncherError
from infra.launcher.as_user import CommandFailedError
from infra.launcher.told import UntoldError
from infra.support import bundle

_KEY_SECONDS = 60


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(no_args_is_help=True, help="The root project's key.")
    app.add_typer(keys, name="key")
    keys.command("new")(_key_new)
    keys.command("show")(_key_show)
    app.command("backup")(_backup)
    app.command("restore")(_restore)
    app.command("logs")(_logs)
    app.command("install-units")(_install_units)
    app.command("ready", hidden=True)(_ready)
    app.command("support")(_support)
    app.command("uninstall")(_uninstall)


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


def _support(
    sandbox_id: Annotated[str, typer.Argument(help="The sandbox's id.")],
    file: Annotated[Path | None, typer.Argument(help="Where to; else <id>.support.tar.gz here.")] = None,
) -> None:
    """Collect what there is to know of a sandbox into one file, without secrets, to show to others."""
    target = file or Path(f"{sandbox_id}.support.tar.gz")
    for name in bundle.write(LauncherConfig(), os.environ, sandbox_id, target.absolute()):
        print(f"  {name}")
    print(f"{target}: look into it before you give it away")


def _uninstall(
    purge: Annotated[bool, typer.Option(help="Data, keys and cache too: there is no way back.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """End everything of this instance and remove it from this machine."""
    config = LauncherConfig()
    account.require_root()
    going = uninstall.plan(config, purge=purge)
    for item in (*going.kernel, *going.units, *going.files):
        print(f"  {item}")
    if going.is_empty and not (purge and config.data_dir.exists()):
        print(f"there is nothing of instance '{config.instance}' here")
        return
    if purge and uninstall.cache_is_shared(config):
        print(f"{config.cache_dir} stays: another instance runs from it")
    if not yes and not typer.confirm("Remove all of this?"):
        raise LauncherError("nothing was removed", "give --yes to go on without being asked")
    uninstall.uninstall(config, os.environ, purge=purge)
    print("removed")
    if not purge:
        print(f"its data is still in {config.data_dir}; --purge removes that too")
    for user in (config.api_user, config.gateway_user):
        print(f"the user {user} stays: 'userdel {user}' removes it")


def _key_new(
    keep_old: Annotated[bool, typer.Option(help="Let the key it replaces go on working.")] = False,
) -> None:
    """Issue a new root key and revoke the last one; the api may be running."""
    config = LauncherConfig()
    account.require_root()
    account.ensure_directories(config, account.ensure_account(config.api_user))
    options = ["--keep-old"] if keep_old else []
    try:
        said = as_user.run(config, os.environ, "infra.root_key", *options, most_bytes=4096, seconds=_KEY_SECONDS)
    except CommandFailedError as error:
        raise LauncherError(f"no key was issued: {error}", "start the api once, or look at its log") from None
    print(_root_key(config))
    revoked = said.decode(errors="replace").strip()
    print(f"{revoked if revoked.isdigit() else 'some'} older keys were revoked", file=sys.stderr)


def _key_show() -> None:
    """Print the root key."""
    account.require_root()
    print(_root_key(LauncherConfig()))


def _root_key(config: LauncherConfig) -> str:
    try:
        return told.key(config.key_path)
    except UntoldError as error:
        raise LauncherError(str(error), "'sandlotd key new' issues another") from None
