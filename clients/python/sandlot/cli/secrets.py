"""secret set, ls, rm: values that go only where they may."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from sandlot._async.client import AsyncClient
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.descriptions import SecretInfo

app = typer.Typer(no_args_is_help=True, help="Keep, list and remove secrets of your project.", rich_markup_mode=None)


@app.command(name="set")
def set_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, _ and -.")],
    *,
    env: Annotated[bool, typer.Option("--env", help="Sandboxes may have it as a variable.")] = False,
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="A host it may be sent to, or *.name; again.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Keep a secret; the value is read from standard input, or asked for. One line end after it is no part of it."""
    value = _value(name)

    async def work(client: AsyncClient) -> SecretInfo:
        return await client.secrets.set(name, value, env=env, hosts=host or [])

    info = do(work, as_json=as_json)
    show.print_json(info.raw) if as_json else show.print_line(f"{info.name} version {info.version}")


@app.command()
def ls(*, as_json: options.Json = False) -> None:
    """List secrets, without their values."""

    async def work(client: AsyncClient) -> list[SecretInfo]:
        return [info async for info in client.secrets.list()]

    found = do(work, as_json=as_json)
    if as_json:
        show.print_json([info.raw for info in found])
        return
    shown = show.table("NAME", "VERSION", "ENV", "HOSTS")
    for info in found:
        shown.add_row(escape(info.name), str(info.version), "yes" if info.env else "no", escape(" ".join(info.hosts)))
    show.console().print(shown)


@app.command()
def rm(names: Annotated[list[str], typer.Argument(metavar="NAME...")], *, as_json: options.Json = False) -> None:
    """Remove secrets; one that a live sandbox uses stays."""

    async def work(client: AsyncClient) -> None:
        for name in names:
            await client.secrets.delete(name)
            show.print_json({"name": name}) if as_json else show.print_line(name)

    do(work, as_json=as_json)


def _value(name: str) -> str:
    if sys.stdin.isatty():
        asked: str = typer.prompt(f"Value of {name}", hide_input=True)
        return asked
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not UTF-8 text", param_hint="NAME") from None
    return text.removesuffix("\n").removesuffix("\r")
