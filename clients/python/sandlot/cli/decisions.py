"""egress log: what a sandbox tried, and what became of it."""

import sys
from contextlib import aclosing
from datetime import datetime
from typing import Annotated

import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.descriptions import Decision


def log(
    sandbox: options.Sandbox,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    since: Annotated[datetime | None, typer.Option("--since", help="Only from then on.")] = None,
    as_json: options.Json = False,
) -> None:
    """Print what was decided about the traffic of a sandbox, oldest first, also after its end."""

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        verdict = "deny" if denied else None
        at = None if since is None else since.astimezone()
        async with aclosing(box.egress.decisions(follow=follow, verdict=verdict, since=at)) as decisions:
            async for decision in decisions:
                if as_json:
                    show.print_json(decision.raw)
                else:
                    show.print_line(show.printable(_line(decision)))
                    sys.stdout.flush()

    do(work, as_json=as_json)


def _line(decision: Decision) -> str:
    at = "" if decision.last_at is None else decision.last_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    where = decision.name or decision.address or "-"
    if decision.port is not None:
        where += f":{decision.port}"
    if decision.protocol is not None:
        where += f"/{decision.protocol}"
    why = decision.reason or decision.rule or ""
    times = f" ×{decision.count}" if decision.count > 1 else ""
    return f"{at} {decision.verdict:<5} {where} {why} ({decision.via}){times}"
