"""The commands and what they share: help, version, and that no error is a traceback."""

import io
import os
import sys
from typing import Annotated, Final

import typer

from sandlot._version import __version__
from sandlot.cli import (
    account,
    copying,
    decisions,
    egress,
    forwarding,
    images,
    lifecycle,
    looking,
    running,
    secrets,
    show,
    tunnels,
)
from sandlot.cli.options import EXIT_API
from sandlot.cli.work import EXIT_INTERRUPTED, EXIT_PIPE, stop_writing
from sandlot.settings import PROFILE_VARIABLE

DEBUG_VARIABLE: Final = "SANDLOT_DEBUG"

app = typer.Typer(
    name="sandlot",
    help="Run code nobody has read yet, in a sandbox.\n\nNeeds SANDLOT_URL and SANDLOT_API_KEY, or `sandlot login`.",
    epilog=(
        "Exit codes: 0 well done; 1 refused or failed; 2 a wrong command line or no settings; 130 interrupted. `run`, "
        "`exec` and `attach` end with the program's: 124 timed out, 126 and 127 not started, 128 + n by signal n; and "
        "with 125 when there is none, because Sandlot failed."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
)

_OWN_ARGUMENTS: Final = {"allow_interspersed_args": False}

app.command(cls=running.ImageFirst, context_settings=_OWN_ARGUMENTS)(running.run)
app.command(name="exec", context_settings=_OWN_ARGUMENTS)(running.execute)
app.command()(running.attach)
app.command()(lifecycle.create)
app.command()(lifecycle.ps)
app.command()(lifecycle.inspect)
app.command()(lifecycle.extend)
app.command()(lifecycle.rm)
app.command()(copying.cp)
app.command()(looking.logs)
app.command()(looking.watch)
app.command()(looking.stats)
egress.app.command()(decisions.log)
app.add_typer(egress.app, name="egress")
app.command(name="port-forward")(forwarding.port_forward)
app.add_typer(tunnels.app, name="tunnel")
app.add_typer(images.app, name="image")
app.add_typer(secrets.app, name="secret")
app.command()(account.login)
app.command()(account.logout)
app.command()(account.doctor)


@app.callback(invoke_without_command=True)
def top(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="Which kept login to use; or SANDLOT_PROFILE.")
    ] = None,
) -> None:
    """Say nothing unless asked for the version."""
    if version:
        typer.echo(f"sandlot {__version__}")
        raise typer.Exit
    if profile is not None:
        os.environ[PROFILE_VARIABLE] = profile


def main() -> None:
    """Run the command line and leave with its exit code; an error is a line, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What this machine's encoding lacks is shown, not raised.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="sandlot")
    except BrokenPipeError:
        stop_writing()
        raise SystemExit(EXIT_PIPE) from None
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        show.note(f"a bug in sandlot {__version__}: {type(error).__name__}: {error}")
        show.note(f"{DEBUG_VARIABLE}=1 shows where.")
        raise SystemExit(EXIT_API) from None
