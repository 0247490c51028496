"""run, exec, attach."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sandlot._async.client import AsyncClient
from sandlot.cli import options, session, terminal
from sandlot.cli.work import do
from sandlot.models import Resources


class ImageFirst(TyperCommand):
    """Reads `IMAGE -- COMMAND…` as `--image IMAGE -- COMMAND…`; anything else is as click reads it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parser = self.make_parser(ctx)
        values: dict[str, Any] = parser.parse_args(list(args))[0]
        rest = [one for one in values.get("command") or () if isinstance(one, str)]
        own = args[: len(args) - len(rest)]
        if len(rest) > 1 and rest[1] == "--" and own[-1:] != ["--"]:
            args = [*own, "--image", rest[0], "--", *rest[2:]]
        return super().parse_args(ctx, args)


def run(  # noqa: PLR0913 - one parameter for each option
    command: Annotated[list[str], typer.Argument(metavar="[IMAGE] -- COMMAND", help="The program and its arguments.")],
    *,
    image: Annotated[str, typer.Option("--image", help="The image, if none stands before the --.")] = "base",
    tty: options.Tty = None,
    interactive: options.Interactive = False,  # noqa: ARG001 - for habit: input is passed on anyway
    env: options.Env = None,
    secret_env: options.SecretEnv = None,
    user: options.User = None,
    cwd: options.Cwd = None,
    cpus: options.Cpus = None,
    memory_mib: options.Memory = None,
    disk_mib: options.Disk = None,
    egress: options.Egress = None,
    timeout: options.Timeout = None,
    detach_keys: options.DetachKeys = options.DETACH_KEYS,
    as_json: options.Json = False,
) -> None:
    """Run a command in a sandbox made for it, as if it ran here; the sandbox is gone afterwards."""
    resources = Resources(cpus, memory_mib, disk_mib)
    target = options.Target(image, secret_env=secret_env, resources=resources, egress=egress, timeout=timeout)
    what = _command(command, env, user, cwd, tty=tty, detach_keys=detach_keys, as_json=as_json)
    code = do(lambda client: session.run_in_new(client, target.create, what), options.EXIT_PLATFORM, as_json=as_json)
    raise typer.Exit(code)


def execute(  # noqa: PLR0913 - one parameter for each option
    sandbox: options.Sandbox,
    command: options.Command,
    *,
    tty: options.Tty = None,
    interactive: options.Interactive = False,  # noqa: ARG001 - for habit: input is passed on anyway
    env: options.Env = None,
    user: options.User = None,
    cwd: options.Cwd = None,
    detach_keys: options.DetachKeys = options.DETACH_KEYS,
    as_json: options.Json = False,
) -> None:
    """Run a command in a sandbox that is there already, as if it ran here."""
    # Options end at the id, so that the program keeps its own; the marker after it is left for us to take away.
    argv = command[1:] if command[0] == "--" and len(command) > 1 else command
    what = _command(argv, env, user, cwd, tty=tty, detach_keys=detach_keys, as_json=as_json)
    code = do(lambda client: session.run_in_present(client, sandbox, what), options.EXIT_PLATFORM, as_json=as_json)
    raise typer.Exit(code)


def attach(
    sandbox: options.Sandbox,
    process: Annotated[
        str | None, typer.Argument(metavar="[PROCESS]", help="Its id; the last one that runs, if none is named.")
    ] = None,
    *,
    detach_keys: options.DetachKeys = options.DETACH_KEYS,
) -> None:
    """Join a running process: what it has written and writes, and its input."""
    keys = options.detach_bytes(detach_keys)

    async def work(client: AsyncClient) -> int:
        return await session.join(client, sandbox, process, keys)

    raise typer.Exit(do(work, options.EXIT_PLATFORM))


def _command(
    argv: list[str],
    env: list[str] | None,
    user: str | None,
    cwd: str | None,
    *,
    tty: bool | None,
    detach_keys: str,
    as_json: bool,
) -> session.Command:
    if tty and not terminal.is_terminal():
        raise typer.BadParameter("standard input and output are not a terminal here", param_hint="--tty")
    with_tty = not as_json and (terminal.is_terminal() if tty is None else tty)
    variables = options.environment(env)
    if with_tty:
        variables = terminal.variables() | variables
    keys = options.detach_bytes(detach_keys)
    return session.Command(argv, variables, user, cwd, as_json=as_json, with_tty=with_tty, detach_keys=keys)
