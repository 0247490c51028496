"""create, ps, inspect, extend, rm."""

from collections.abc import Sequence
from typing import Annotated

import anyio
import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.errors import NotFoundError, SandboxEndedError
from sandlot.models import Resources, SandboxInfo

_AT_ONCE = 8
_LIVE = ["pending", "starting", "running", "pausing", "paused", "resuming", "stopping", "lost"]


def create(  # noqa: PLR0913 - one parameter for each option
    which: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="The image to start from; base.")] = None,
    *,
    image: Annotated[str | None, typer.Option("--image", help="The same as an option.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name, unique among those running.")] = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Take the live one of that name, if there is one.")] = False,
    env: options.Env = None,
    secret_env: options.SecretEnv = None,
    metadata: options.Metadata = None,
    user: options.User = None,
    cwd: options.Cwd = None,
    cpus: options.Cpus = None,
    memory_mib: options.Memory = None,
    disk_mib: options.Disk = None,
    egress: options.Egress = None,
    timeout: options.Timeout = None,
    idle_timeout: Annotated[
        str | None, typer.Option("--idle-timeout", metavar="DURATION", help="Idleness that ends it: 90, 10m, 2h.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a sandbox and print its id."""
    if which and image:
        raise typer.BadParameter("the image is given twice", param_hint="--image")
    target = options.Target(
        which or image or "base",
        env=options.environment(env),
        secret_env=secret_env,
        resources=Resources(cpus, memory_mib, disk_mib),
        user=user,
        cwd=cwd,
        egress=egress,
        timeout=timeout,
        name=name,
        metadata=dict(options.pair(text, "--metadata") for text in metadata or []),
        idle_timeout=idle_timeout,
        if_exists="return" if reuse else None,
    )
    sandbox = do(target.create, as_json=as_json)
    show.created(sandbox.info, as_json=as_json)


def ps(
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    filters: options.Filter = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    as_json: options.Json = False,
) -> None:
    """List sandboxes."""
    choice = options.Choice(filters)

    async def collect(client: AsyncClient) -> list[SandboxInfo]:
        return await chosen(client, choice, everything=everything)

    found = do(collect, as_json=as_json)
    if quiet and not as_json:
        for info in found:
            show.print_line(info.id)
    else:
        show.sandboxes(found, as_json=as_json)


def inspect(
    sandboxes: Annotated[list[str], typer.Argument(metavar="SANDBOX")],
    *,
    as_json: options.Json = False,
) -> None:
    """Print all that is known of sandboxes, as JSON."""

    async def collect(client: AsyncClient) -> list[dict[str, object]]:
        return [show.without_access((await AsyncSandbox.connect(name, client=client)).info.raw) for name in sandboxes]

    found = do(collect, as_json=as_json)
    show.print_json(found, indent=None if as_json else 2)


def extend(
    sandbox: options.Sandbox,
    by: Annotated[str, typer.Argument(metavar="DURATION", help="From now: 90, 10m, 2h.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Move a sandbox's end away, unless it is later anyway."""
    seconds = options.duration(by, "DURATION")

    async def work(client: AsyncClient) -> SandboxInfo:
        return await (await AsyncSandbox.connect(sandbox, client=client)).extend(seconds)

    info = do(work, as_json=as_json)
    if as_json:
        show.print_json(show.without_access(info.raw))
    else:
        show.print_line(f"{info.id} until {info.expires_at.isoformat() if info.expires_at else 'it is stopped'}")


def rm(
    sandboxes: Annotated[
        list[str] | None, typer.Argument(metavar="[SANDBOX]", autocompletion=options.sandbox_names)
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All of the project.")] = False,
    filters: options.Filter = None,
    as_json: options.Json = False,
) -> None:
    """End sandboxes. Goes on with the others when one cannot be ended."""
    names = sandboxes or []
    if bool(names) + everything + bool(filters) != 1:
        raise typer.BadParameter("name sandboxes, or give --all or --filter", param_hint="SANDBOX")
    choice = options.Choice(filters)

    async def work(client: AsyncClient) -> bool:
        return await _stop_all(client, names or [info.id for info in await chosen(client, choice)], as_json=as_json)

    if not do(work, as_json=as_json):
        raise typer.Exit(options.EXIT_API)


async def chosen(client: AsyncClient, choice: options.Choice, *, everything: bool = False) -> list[SandboxInfo]:
    """Return the sandboxes that a filter means, newest first."""
    states = choice.states or ([*_LIVE, "stopped", "failed"] if everything else [])
    listed = AsyncSandbox.list(state=states, name=choice.name, metadata=choice.metadata, client=client)
    return [info async for info in listed]


async def _stop_all(client: AsyncClient, names: Sequence[str], *, as_json: bool) -> bool:
    """End sandboxes, several at once, and tell whether all of them are gone."""
    stopped: list[dict[str, object]] = []
    failures = 0
    room = anyio.CapacityLimiter(_AT_ONCE)

    async def stop(name: str) -> None:
        nonlocal failures
        async with room:
            try:
                info = await (await AsyncSandbox.connect(name, client=client)).stop()
            except (NotFoundError, SandboxEndedError) as error:
                show.failure(error, as_json=as_json)
                failures += 1
                return
        stopped.append(show.without_access(info.raw))
        if not as_json:
            show.print_line(name)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(stop, name)
    if as_json:
        show.print_json(stopped)
    return failures == 0
