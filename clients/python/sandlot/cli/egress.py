"""egress get, egress set, egress explain: what a sandbox may reach."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.descriptions import EgressExplanation, EgressInfo

app = typer.Typer(no_args_is_help=True, help="Read and change what a sandbox may reach.", rich_markup_mode=None)


@app.command()
def get(sandbox: options.Sandbox, *, as_json: options.Json = False) -> None:
    """Print a sandbox's policy."""

    async def work(client: AsyncClient) -> EgressInfo:
        return await (await AsyncSandbox.connect(sandbox, client=client)).egress.get()

    _show(do(work, as_json=as_json), as_json=as_json)


@app.command(name="set")
def set_(
    sandbox: options.Sandbox,
    mode: Annotated[str | None, typer.Argument(help="open, blocked or allowlist; with --allow: allowlist.")] = None,
    *,
    allow: Annotated[list[str] | None, typer.Option("--allow", metavar="RULE", help="May be given again.")] = None,
    deny: Annotated[list[str] | None, typer.Option("--deny", metavar="RULE", help="May be given again.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A whole policy as JSON, instead.")] = None,
    as_json: options.Json = False,
) -> None:
    """Replace a sandbox's policy; what it forbids is dead when this returns.

    A RULE is destination[:port[-port]][/tcp|/udp]: pkg.example.com, *.example.com, 192.0.2.0/24:5432, 192.0.2.1:53/udp.
    """
    if (file is None) == (mode is None and not allow and not deny):
        raise typer.BadParameter("give a mode or rules, or --file", param_hint="MODE")
    policy: str | dict[str, Any] | None = mode or (None if allow else "open") if file is None else _read(file)

    async def work(client: AsyncClient) -> EgressInfo:
        box = await AsyncSandbox.connect(sandbox, client=client)
        return await box.egress.set(policy, allow=allow or None, deny=deny or None)

    _show(do(work, as_json=as_json), as_json=as_json)


@app.command()
def explain(
    sandbox: options.Sandbox,
    destination: Annotated[str, typer.Argument(help="host:port, with /udp for UDP.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Say whether a destination is allowed, and which rule says so; exit with 1 if it is not."""

    async def work(client: AsyncClient) -> EgressExplanation:
        return await (await AsyncSandbox.connect(sandbox, client=client)).egress.explain(destination)

    said = do(work, as_json=as_json)
    if as_json:
        show.print_json(said.raw)
    else:
        why = f" ({said.reason})" if said.reason else ""
        show.print_line(show.printable(f"{said.verdict}: {said.rule or said.source}{why}"))
    if not said.allowed:
        raise typer.Exit(options.EXIT_API)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--file") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} is not a JSON object", param_hint="--file")
    return found  # pyright: ignore[reportUnknownVariableType] - JSON has text as names


def _show(info: EgressInfo, *, as_json: bool) -> None:
    if as_json:
        show.print_json(info.raw)
        return
    lines = [f"mode    {info.mode}"]
    lines += [f"allow   {rule}" for rule in info.allow]
    lines += [f"deny    {rule}" for rule in info.deny]
    lines.append(f"state   {info.state}, generation {info.generation}")
    if info.closed_connections is not None:
        lines.append(f"closed  {info.closed_connections} connections")
    for line in lines:
        show.print_line(show.printable(line))
