"""logs, watch, stats: what goes on inside."""

import sys
from contextlib import aclosing
from typing import Annotated, Final

import anyio
import typer
from rich.live import Live
from rich.table import Table

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.lifecycle import chosen
from sandlot.cli.work import do
from sandlot.descriptions import LogLine, Sample
from sandlot.errors import NotFoundError, SandboxEndedError

_REFRESH_SECONDS: Final = 2.0


def logs(
    sandbox: options.Sandbox,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
    process: Annotated[str | None, typer.Option("--process", "-p", help="Of this process only.")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="With the time of each piece.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print what the processes of a sandbox wrote, also after its end."""
    printer = _LogPrinter(timestamps=timestamps)

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        async with aclosing(box.logs(follow=follow, process_id=process)) as lines:
            async for line in lines:
                show.print_json(line.raw) if as_json else printer.take(line)

    do(work, as_json=as_json)


def watch(
    sandbox: options.Sandbox,
    path: Annotated[str, typer.Argument(help="A directory or file inside.")] = ".",
    *,
    flat: Annotated[bool, typer.Option("--flat", help="Not what is in directories below.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print changes of files as they happen, one line each, until interrupted."""

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        async with aclosing(box.files.watch(path, recursive=not flat)) as events:
            async for event in events:
                if as_json:
                    show.print_json(show.plain(event))
                elif event.kind == "overflow":
                    show.note("changes were missed: look again")
                elif event.kind != "ready":
                    to = "" if event.to is None else f" -> {event.to}"
                    changed = f"{event.path}{'/' if event.is_directory else ''}"
                    show.print_line(show.printable(f"{event.kind:<7} {changed}{to}"))

    do(work, as_json=as_json)


def stats(
    sandboxes: Annotated[list[str] | None, typer.Argument(metavar="[SANDBOX]", help="All, if none is named.")] = None,
    *,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print once, and leave.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what sandboxes use, again and again until interrupted."""
    names = sandboxes or []
    console = show.console()
    once = no_stream or as_json or not console.is_terminal or console.is_dumb_terminal

    async def work(client: AsyncClient) -> None:
        if as_json:
            found = await _samples(client, names)
            show.print_json([{"sandbox_id": name, **(sample.raw if sample else {})} for name, sample in found])
        elif once:
            console.print(_table(await _samples(client, names)))
        else:
            with Live(_table(await _samples(client, names)), console=console, auto_refresh=False) as live:
                live.refresh()
                while True:
                    await anyio.sleep(_REFRESH_SECONDS)
                    live.update(_table(await _samples(client, names)), refresh=True)

    do(work, as_json=as_json)


async def _samples(client: AsyncClient, names: list[str]) -> list[tuple[str, Sample | None]]:
    """Return the last sample of each sandbox; one that ends meanwhile is left out when none was named."""
    shown = names or [info.id for info in await chosen(client, options.Choice(["state=running"]))]
    found: list[tuple[str, Sample | None]] = []
    for name in shown:
        try:
            samples = await (await AsyncSandbox.connect(name, client=client)).metrics()
        except (NotFoundError, SandboxEndedError):
            if names:
                raise
            continue
        found.append((name, samples[-1] if samples else None))
    return found


def _table(found: list[tuple[str, Sample | None]]) -> Table:
    table = show.table("SANDBOX", "CPU", "MEMORY", "DISK", "PIDS", "NET IN / OUT")
    for name, sample in found:
        if sample is None:
            table.add_row(name, *["–"] * 5)
            continue
        table.add_row(
            name,
            "–" if sample.cpu_used_percent is None else f"{sample.cpu_used_percent:.1f}%",
            f"{show.size(sample.memory_used_bytes)} / {show.size(sample.memory_limit_bytes)}",
            f"{show.size(sample.disk_used_bytes)} / {show.size(sample.disk_limit_bytes)}",
            "–" if sample.processes is None else str(sample.processes),
            f"{show.size(sample.ingress_bytes)} / {show.size(sample.egress_bytes)}",
        )
    return table


class _LogPrinter:
    """Prints each channel where it belongs, with the time before each line if asked."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._is_inside_line = {"stderr": False, "stdout": False}

    def take(self, line: LogLine) -> None:
        channel = "stderr" if line.kind == "stderr" else "stdout"
        target = sys.stderr.buffer if channel == "stderr" else sys.stdout.buffer
        for piece in line.data.splitlines(keepends=True) if self._timestamps else [line.data]:
            if self._timestamps and line.at is not None and not self._is_inside_line[channel]:
                target.write(f"{line.at.isoformat(timespec='milliseconds')} ".encode())
            self._is_inside_line[channel] = not piece.endswith(b"\n")
            target.write(piece)
        target.flush()
