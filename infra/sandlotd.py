"""The command `sandlotd`: one box up and down, its programs alone, its images, its health."""

import os
import sys
from importlib.metadata import version as package_version
from typing import Annotated

import typer
from pydantic import ValidationError

from infra import image_commands, operator
from infra.config import LauncherConfig
from infra.doctor import report
from infra.launcher import account, box, programs
from infra.launcher.account import LauncherError
from infra.launcher.certificates import issue
from infra.launcher.supervisor import Program

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Sandlot on this machine.", pretty_exceptions_enable=False
)
app.add_typer(image_commands.app, name="image")
operator.add_to(app)


@app.command()
def up(
    stop_sandboxes: Annotated[bool, typer.Option(help="End the sandboxes too when stopped.")] = False,
) -> None:
    """Start everything in the foreground; Ctrl-C stops the programs."""
    box.up(LauncherConfig(), os.environ, stop_sandboxes=stop_sandboxes)


@app.command()
def down() -> None:
    """Stop everything: sandboxes, programs, network."""
    box.down(LauncherConfig(), os.environ)


@app.command()
def node() -> None:
    """Run the node agent alone, in the foreground (for a service manager)."""
    config = LauncherConfig()
    box.prepare(config)
    _become(programs.node(config, os.environ))


@app.command()
def api() -> None:
    """Run the api alone, in the foreground; as root it gives root up first."""
    config = LauncherConfig()
    if os.geteuid() == 0:
        account.ensure_directories(config, account.ensure_account(config.api_user))
        box.undo_restore(config)
        _become(programs.api(config, os.environ))
    _become(programs.api(config, os.environ), (sys.executable, "-m", "api"))


@app.command()
def gateway() -> None:
    """Run the gateway alone, in the foreground; as root it gives root up first."""
    config = LauncherConfig()
    if os.geteuid() == 0:
        account.ensure_directories(config, account.ensure_account(config.api_user))
        _become(programs.gateway(config, os.environ))
    _become(programs.gateway(config, os.environ), (sys.executable, "-m", "tunnels.gateway"))


@app.command()
def certificates(
    names: Annotated[list[str] | None, typer.Argument(help="Names and addresses beside localhost.")] = None,
) -> None:
    """Write certificates of a development CA for api and gateway, and say how to use them."""
    account.require_root()
    config = LauncherConfig()
    issued = issue(config, names or [])
    for program, files in issued.items():
        print(f"SANDLOT_{program.upper()}_TLS_CERTIFICATE={files.certificate}")
        print(f"SANDLOT_{program.upper()}_TLS_KEY={files.key}")
    print(f"trust {config.data_dir / 'tls' / 'ca.pem'}, for example SSL_CERT_FILE=…", file=sys.stderr)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Check this machine, one line a check; status 1 when something must be fixed."""
    raise typer.Exit(report(LauncherConfig(), as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    print(package_version("sandlot-server"))


def _become(program: Program, argv: tuple[str, ...] | None = None) -> None:
    """Go on as a program; `argv` where there is no root to give up."""
    argv = argv or program.argv
    os.execve(argv[0], argv, program.env)  # noqa: S606 - our own list


def main() -> None:
    """Run the command; an expected failure is a message with its fix and status 1."""
    # The caller's might keep programs of other users out of directories made on the way, or let everybody in.
    os.umask(0o022)
    try:
        app()
    except LauncherError as error:
        _fail(error.what, error.fix)
    except BaseExceptionGroup as group:
        expected, other = group.split(LauncherError)
        if expected is None or other is not None:
            raise
        first = expected.exceptions[0]
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        _fail(first.what, first.fix)
    except ValidationError as error:
        names = ", ".join(f"SANDLOT_{str(row['loc'][0]).upper()}: {row['msg']}" for row in error.errors())
        _fail(f"settings are not valid: {names}", "correct these environment variables")


def _fail(what: str, fix: str) -> None:
    print(f"sandlotd: FAILED: {what}\n  fix: {fix}", file=sys.stderr, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
