"""The page of the command line: what `--help` says, command by command."""

from typing import Final

from typer.main import get_command
from typer.testing import CliRunner

from sandlot.cli import app

_HEAD: Final = """\
# The command `sandlot`

Drawn from the command itself by `python -m infra.reference`; a test holds it to the code. Examples with their output
are in the [client's guide](../clients/python/README.md#the-command-line).

- **Which server**: `SANDLOT_URL` and `SANDLOT_API_KEY`; else what `sandlot login` kept in
  `$XDG_CONFIG_HOME/sandlot/config.json` (mode 0600), by profile with `--profile` or `SANDLOT_PROFILE`. A kept key goes
  to its own URL only.
- **Names** of live sandboxes do wherever an id does.
- **`--json`** prints one JSON value, or one a line where a command goes on; errors are then `{"error": …}` on standard
  error.
- **Pipes**: without a terminal there are no colours and no progress; a reader that leaves ends the command quietly.
- **Errors** are a line, what to do next, and the request's id; `SANDLOT_DEBUG=1` shows where a bug is.

| exit code | means |
|---|---|
| 0 | well done |
| 1 | refused, or failed |
| 2 | a wrong command line, or no settings |
| 124 | `run`, `exec`, `attach`: the program's time was up |
| 125 | `run`, `exec`, `attach`: there is no exit code, because Sandlot failed |
| 126, 127 | the same: it may not be run, it was not found |
| 128 + n | the same: ended by signal n; 130 also: interrupted here; 141: nobody reads any more |
| other | `run`, `exec`, `attach`: the program's |
"""
_ENVIRONMENT: Final = {"COLUMNS": "110", "TERMINAL_WIDTH": "110", "TERM": "dumb", "NO_COLOR": "1"}


def page() -> str:
    """Return the page."""
    names: list[str] = sorted(getattr(get_command(app), "commands", {}))
    parts = [_HEAD, _section("sandlot", []), *(_section(f"sandlot {name}", [name]) for name in names)]
    return "\n".join(parts)


def _section(title: str, arguments: list[str]) -> str:
    said = CliRunner().invoke(app, [*arguments, "--help"], prog_name="sandlot", env=_ENVIRONMENT).output
    text = "\n".join(line.rstrip() for line in said.strip().splitlines())
    return f"## {title}\n\n```text\n{text}\n```\n"
