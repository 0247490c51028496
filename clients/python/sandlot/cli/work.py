"""Does what a command line asked for, with a client, and turns what goes wrong into one line and an exit code."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import typer

from sandlot._async.client import AsyncClient
from sandlot.cli import show
from sandlot.cli.options import EXIT_API, EXIT_USAGE
from sandlot.errors import ConfigurationError, SandlotError

EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_PIPE: Final = 128 + signal.SIGPIPE

_Result = TypeVar("_Result")


def do(
    work: Callable[[AsyncClient], Awaitable[_Result]], exit_code: int = EXIT_API, *, as_json: bool = False
) -> _Result:
    """Do `work` with a client; say what went wrong and leave with `exit_code` if it fails."""

    async def with_client() -> _Result:
        async with AsyncClient() as client:
            return await work(client)

    try:
        return anyio.run(with_client)
    except BaseException as error:
        known = _known(error)
        if isinstance(known, ConfigurationError):
            show.failure(known, as_json=as_json)
            raise typer.Exit(EXIT_USAGE) from None
        if isinstance(known, BrokenPipeError):
            stop_writing()
            raise typer.Exit(EXIT_PIPE) from None
        if isinstance(known, KeyboardInterrupt):
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if isinstance(known, SandlotError):
            show.failure(known, as_json=as_json)
            raise typer.Exit(exit_code) from None
        if isinstance(known, OSError):
            show.failure(SandlotError(_local(known)), as_json=as_json)
            raise typer.Exit(exit_code) from None
        raise


def stop_writing() -> None:
    """Let nobody complain of a reader that left while Python closes its streams."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _known(error: BaseException) -> BaseException:
    """Return what is inside the groups of a task group, where it is one."""
    while (inside := getattr(error, "exceptions", None)) is not None:
        error = inside[0]
    return error


def _local(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
