"""Every command of both programs explains itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from infra.sandlotd import app as operator
from sandlot.cli.app import app as client

PROGRAMS = {"sandlotd": operator, "sandlot": client}


def commands(app: typer.Typer) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command, the program itself as none."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        yield words
        for name, below in getattr(command, "commands", {}).items():
            pending.append(((*words, name), below))


@pytest.mark.parametrize(
    ("program", "words"), [(name, words) for name, app in PROGRAMS.items() for words in sorted(commands(app))]
)
def test_help_is_printed(program: str, words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(PROGRAMS[program], [*words, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "Usage:" in shown.output
