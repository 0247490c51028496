"""Reads the command line; `session` does what it says and `show` prints it."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import anyio
import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot._commands import Default
from sandlot._version import __version__
from sandlot.cli import session, show
from sandlot.errors import ConfigurationError, SandlotError
from sandlot.models import Resources

EXIT_USAGE: Final = 2
EXIT_API: Final = 1
EXIT_PLATFORM: Final = 125
"""`run` and `exec` give back the program's exit code; this one says that there is none."""

app = typer.Typer(
    name="sandlot",
    help="Run code nobody has read yet, in a sandbox. Needs SANDLOT_URL and SANDLOT_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Result = TypeVar("_Result")

Command = Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The program and its arguments.")]
Image = Annotated[str, typer.Option("--image", help="The image to start from.")]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY[=VALUE]", help="A variable; without = from here.")
]
User = Annotated[str | None, typer.Option("--user", "-u", help="A user's name or uid[:gid] inside.")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="The working directory.")]
Cpus = Annotated[float | None, typer.Option("--cpus", help="CPUs.")]
Memory = Annotated[int | None, typer.Option("--memory-mib", help="Memory in MiB.")]
Disk = Annotated[int | None, typer.Option("--disk-mib", help="Disk in MiB.")]
Egress = Annotated[str | None, typer.Option("--egress", help="What it may reach: open or blocked.")]
Timeout = Annotated[int | None, typer.Option("--timeout", help="Seconds after which it is ended.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class _Target:
    """What a new sandbox shall be."""

    image: str
    env: dict[str, str]
    resources: Resources
    user: str | None
    cwd: str | None
    egress: str | None
    timeout_seconds: int | None
    name: str | None = None
    metadata: dict[str, str] | None = None
    idle_timeout_seconds: int | None = None

    async def create(self, client: AsyncClient) -> AsyncSandbox:
        return await AsyncSandbox.create(
            self.image,
            name=self.name,
            env=self.env,
            metadata=self.metadata,
            user=self.user,
            cwd=self.cwd,
            resources=self.resources,
            idle_timeout_seconds=self.idle_timeout_seconds,
            egress=self.egress,
            timeout_seconds=Default.OF_SERVER if self.timeout_seconds is None else self.timeout_seconds,
            client=client,
        )


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Say nothing unless asked for the version."""
    if version:
        typer.echo(f"sandlot {__version__}")
        raise typer.Exit


@app.command(context_settings={"allow_interspersed_args": False})
def run(  # noqa: PLR0913 - one parameter for each option
    command: Command,
    *,
    image: Image = "base",
    env: Env = None,
    user: User = None,
    cwd: Cwd = None,
    cpus: Cpus = None,
    memory_mib: Memory = None,
    disk_mib: Disk = None,
    egress: Egress = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Run a command in a sandbox made for it, as if it ran here; the sandbox is gone afterwards."""
    target = _Target(image, {}, Resources(cpus, memory_mib, disk_mib), None, None, egress, timeout)
    what = session.Command(command, _env(env), user, cwd, as_json=as_json)
    code = _do(lambda client: session.run_in_new(client, target.create, what), EXIT_PLATFORM, as_json=as_json)
    raise typer.Exit(code)


@app.command(name="exec", context_settings={"allow_interspersed_args": False})
def execute(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID")],
    command: Command,
    *,
    env: Env = None,
    user: User = None,
    cwd: Cwd = None,
    as_json: Json = False,
) -> None:
    """Run a command in a sandbox that is there already, as if it ran here."""
    # Options end at the id, so that the program keeps its own; the marker after it is left for us to take away.
    argv = command[1:] if command[0] == "--" and len(command) > 1 else command
    what = session.Command(argv, _env(env), user, cwd, as_json=as_json)
    code = _do(lambda client: session.run_in_present(client, sandbox_id, what), EXIT_PLATFORM, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def create(  # noqa: PLR0913 - one parameter for each option
    *,
    image: Image = "base",
    name: Annotated[str | None, typer.Option("--name", help="A name, unique among those running.")] = None,
    env: Env = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="A label of your own.")
    ] = None,
    user: User = None,
    cwd: Cwd = None,
    cpus: Cpus = None,
    memory_mib: Memory = None,
    disk_mib: Disk = None,
    egress: Egress = None,
    timeout: Timeout = None,
    idle_timeout: Annotated[int | None, typer.Option("--idle-timeout", help="Seconds of idleness that end it.")] = None,
    as_json: Json = False,
) -> None:
    """Make a sandbox and print its id."""
    resources = Resources(cpus, memory_mib, disk_mib)
    labels = dict(_pair(text, "--metadata") for text in metadata or [])
    target = _Target(image, _env(env), resources, user, cwd, egress, timeout, name, labels, idle_timeout)
    sandbox = _do(target.create, EXIT_API, as_json=as_json)
    show.created(sandbox.info, as_json=as_json)


@app.command()
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    as_json: Json = False,
) -> None:
    """List sandboxes."""
    states = ["pending", "starting", "running", "pausing", "paused", "resuming", "stopping", "lost"]
    asked = [*states, "stopped", "failed"] if everything else []

    async def collect(client: AsyncClient) -> list[Any]:
        return [info async for info in AsyncSandbox.list(state=asked, client=client)]

    show.sandboxes(_do(collect, EXIT_API, as_json=as_json), as_json=as_json)


@app.command()
def rm(
    sandbox_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    as_json: Json = False,
) -> None:
    """End sandboxes. Goes on with the others when one cannot be ended."""

    async def stop_all(client: AsyncClient) -> bool:
        return await session.stop_all(client, sandbox_ids, as_json=as_json)

    if not _do(stop_all, EXIT_API, as_json=as_json):
        raise typer.Exit(EXIT_API)


def _do(work: Callable[[AsyncClient], Awaitable[_Result]], exit_code: int, *, as_json: bool) -> _Result:
    """Do `work` with a client; say what went wrong and leave with `exit_code` if it fails."""

    async def with_client() -> _Result:
        async with AsyncClient() as client:
            return await work(client)

    try:
        return anyio.run(with_client)
    except ConfigurationError as error:
        show.failure(error, as_json=as_json)
        raise typer.Exit(EXIT_USAGE) from None
    except SandlotError as error:
        show.failure(error, as_json=as_json)
        raise typer.Exit(exit_code) from None


def _env(pairs: list[str] | None) -> dict[str, str]:
    env: dict[str, str] = {}
    for text in pairs or []:
        if "=" in text:
            key, value = _pair(text, "--env")
            env[key] = value
        elif text in os.environ:
            env[text] = os.environ[text]
        else:
            raise typer.BadParameter(f"{text} is not set here", param_hint="--env")
    return env


def _pair(text: str, option: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=option)
    return key, value
