"""tunnel: ways from outside to a port of a sandbox, for everybody or for some networks."""

from typing import Annotated

import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.descriptions import Tunnel

app = typer.Typer(no_args_is_help=True, help="Open, list and close ways from outside to ports of a sandbox.")

_ANY = "any"
_LARGEST_PORT = 65_535


@app.command("open")
def open_(
    sandbox: options.Sandbox,
    port: Annotated[str, typer.Argument(metavar="PORT", help="Inside; `any` with --kind http: all of them.")],
    *,
    kind: Annotated[str, typer.Option("--kind", "-k", help="tcp, udp, tls or http.")] = "tcp",
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="CIDR", help="Only from here; may be given again.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="An http tunnel that needs no token.")] = False,
    as_json: options.Json = False,
) -> None:
    """Open a tunnel and print where it is reached."""
    number = None if port == _ANY else _number(port)
    if public and kind != "http":
        raise typer.BadParameter("is of http tunnels; others are for everybody or for --allow", param_hint="--public")

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        visibility = "public" if public else None
        tunnel = await box.tunnels.open(number, kind, allow_cidrs=allow or (), visibility=visibility)
        if tunnel.message is not None:
            show.note(tunnel.message)
        show.print_json(tunnel.raw) if as_json else show.print_line(tunnel.address or tunnel.id)

    do(work, as_json=as_json)


@app.command("link")
def link(
    sandbox: options.Sandbox,
    port: Annotated[str, typer.Argument(metavar="PORT", help="Inside.")],
    path: Annotated[str, typer.Argument(help="What to open there.")] = "/",
    *,
    seconds: Annotated[int | None, typer.Option("--seconds", help="How long it works; 900 unless given.")] = None,
    form: Annotated[str, typer.Option("--form", help="name, path (below /s/) or whole-path (below /w/).")] = "name",
    as_json: options.Json = False,
) -> None:
    """Print an address that opens a web server inside to whoever has it; makes an http tunnel if there is none."""
    number = _number(port)

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        of_port = {tunnel.port: tunnel for tunnel in await box.tunnels.list() if tunnel.kind == "http"}
        tunnel = of_port.get(number) or of_port.get(None) or await box.tunnels.open(number, "http")
        made = await box.tunnels.link(tunnel, path, port=number, form=form, expires_in_seconds=seconds)
        told = {"url": made.url, "token": made.token, "expires_at": show.plain(made)["expires_at"]}
        show.print_json(told) if as_json else show.print_line(made.url)

    do(work, as_json=as_json)


@app.command("ls")
def list_(sandbox: options.Sandbox, *, as_json: options.Json = False) -> None:
    """List the tunnels of a sandbox."""

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        found = await box.tunnels.list()
        if as_json:
            show.print_json([tunnel.raw for tunnel in found])
            return
        shown = show.table("ID", "KIND", "PORT", "REACHED AT", "FROM", "IN / OUT")
        for tunnel in found:
            shown.add_row(*_row(tunnel))
        show.console().print(shown)

    do(work, as_json=as_json)


@app.command("close")
def close(
    sandbox: options.Sandbox,
    tunnels: Annotated[list[str], typer.Argument(metavar="TUNNEL", help="An id, or KIND:PORT.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Close tunnels; their connections end at once."""

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        known = {f"{tunnel.kind}:{tunnel.port or _ANY}": tunnel.id for tunnel in await box.tunnels.list()}
        closed = [known.get(name, name) for name in tunnels]
        for tunnel_id in closed:
            await box.tunnels.close(tunnel_id)
        show.print_json(closed) if as_json else show.print_line("\n".join(closed))

    do(work, as_json=as_json)


def _number(port: str) -> int:
    if not port.isdecimal() or not 0 < int(port) <= _LARGEST_PORT:
        raise typer.BadParameter(f"{port!r} is no port", param_hint="PORT")
    return int(port)


def _row(tunnel: Tunnel) -> list[str]:
    moved = "" if tunnel.in_bytes is None else f"{show.size(tunnel.in_bytes)} / {show.size(tunnel.out_bytes)}"
    cells = (
        tunnel.id,
        tunnel.kind,
        str(tunnel.port or _ANY),
        tunnel.address or "",
        ", ".join(tunnel.allow_cidrs) or "everywhere",
        moved,
    )
    return [show.printable(cell) for cell in cells]
