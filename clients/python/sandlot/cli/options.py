"""Options that several commands share, and the small languages of their values."""

import os
import re
from typing import Annotated, Final

import anyio
import typer

from sandlot._async.client import AsyncClient
from sandlot._async.sandbox import AsyncSandbox
from sandlot._commands import Default
from sandlot.errors import SandlotError
from sandlot.models import Resources
from sandlot.retries import RetryPolicy

EXIT_USAGE: Final = 2
EXIT_API: Final = 1
EXIT_PLATFORM: Final = 125
"""`run`, `exec` and `attach` give back the program's exit code; this one says that there is none."""

_COMPLETION_SECONDS: Final = 2.0
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+)([smhd]?)")


def sandbox_names(incomplete: str) -> list[str]:
    """Return the live sandboxes whose name or id begins so, for the shell; none when nobody answers at once."""

    async def ask() -> list[str]:
        policy = RetryPolicy(attempts=1, deadline_seconds=_COMPLETION_SECONDS)
        async with AsyncClient(retries=policy) as client:
            return [info.name or info.id async for info in AsyncSandbox.list(client=client)]

    try:
        return [name for name in anyio.run(ask) if name.startswith(incomplete)]
    except SandlotError:
        return []


Sandbox = Annotated[
    str,
    typer.Argument(metavar="SANDBOX", help="Its id, or the name of a live one.", autocompletion=sandbox_names),
]
Command = Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The program and its arguments.")]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY[=VALUE]", help="A variable; without = from here.")
]
SecretEnv = Annotated[
    list[str] | None,
    typer.Option("--secret-env", metavar="VAR=NAME", help="A variable that holds a secret of the project's."),
]
User = Annotated[str | None, typer.Option("--user", "-u", help="A user's name or uid[:gid] inside.")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="The working directory.")]
Cpus = Annotated[float | None, typer.Option("--cpus", help="CPUs.")]
Memory = Annotated[int | None, typer.Option("--memory-mib", help="Memory in MiB.")]
Disk = Annotated[int | None, typer.Option("--disk-mib", help="Disk in MiB.")]
Egress = Annotated[
    str | None, typer.Option("--egress", help="What it may reach: open or blocked; `egress set` takes rules.")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="DURATION", help="When it is ended: 90, 10m, 2h, none.")
]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="A label of your own.")]
Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="NAME=VALUE", help="state=, name= or metadata.KEY=; all must match."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tty = Annotated[
    bool | None,
    typer.Option("--tty/--no-tty", "-t/-T", help="With a terminal, or without; by itself: if this is one."),
]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="Pass standard input on; so it is anyway, -it reads as usual.")
]
DetachKeys = Annotated[str, typer.Option("--detach-keys", help="What leaves a terminal without ending anything.")]
DETACH_KEYS: Final = "ctrl-p,ctrl-q"


class Target:
    """What a new sandbox shall be."""

    def __init__(  # noqa: PLR0913 - one parameter for each option
        self,
        image: str,
        *,
        env: dict[str, str] | None = None,
        secret_env: list[str] | None = None,
        resources: Resources,
        user: str | None = None,
        cwd: str | None = None,
        egress: str | None,
        timeout: str | None,
        name: str | None = None,
        metadata: dict[str, str] | None = None,
        idle_timeout: str | None = None,
        if_exists: str | None = None,
    ) -> None:
        self._image = image
        self._env = env
        self._secret_env = dict(pair(text, "--secret-env") for text in secret_env or [])
        self._resources = resources
        self._user = user
        self._cwd = cwd
        self._egress = egress
        self._timeout = Default.OF_SERVER if timeout is None else lifetime(timeout, "--timeout")
        self._name = name
        self._metadata = metadata
        self._idle = None if idle_timeout is None else duration(idle_timeout, "--idle-timeout")
        self._if_exists = if_exists

    async def create(self, client: AsyncClient) -> AsyncSandbox:
        return await AsyncSandbox.create(
            self._image,
            name=self._name,
            if_exists=self._if_exists,
            env=self._env,
            secret_env=self._secret_env,
            metadata=self._metadata,
            user=self._user,
            cwd=self._cwd,
            resources=self._resources,
            idle_timeout_seconds=self._idle,
            egress=self._egress,
            timeout_seconds=self._timeout,
            client=client,
        )


def duration(text: str, option: str) -> int:
    """Return seconds.

    >>> duration("90", "--timeout"), duration("10m", "--timeout"), duration("2h", "--timeout")
    (90, 600, 7200)
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 90, 10m or 2h", param_hint=option)
    return int(found[1]) * _UNITS[found[2]]


def lifetime(text: str, option: str) -> int | None:
    """Return seconds, or None for no limit."""
    return None if text == "none" else duration(text, option)


def environment(pairs: list[str] | None) -> dict[str, str]:
    """Return the variables of `--env`."""
    env: dict[str, str] = {}
    for text in pairs or []:
        if "=" in text:
            key, value = pair(text, "--env")
            env[key] = value
        elif text in os.environ:
            env[text] = os.environ[text]
        else:
            raise typer.BadParameter(f"{text} is not set here", param_hint="--env")
    return env


def pair(text: str, option: str) -> tuple[str, str]:
    """Return the two sides of KEY=VALUE."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=option)
    return key, value


class Choice:
    """What `--filter` says: which sandboxes are meant."""

    def __init__(self, filters: list[str] | None) -> None:
        self.states: list[str] = []
        self.name: str | None = None
        self.metadata: dict[str, str] = {}
        for text in filters or []:
            key, value = pair(text, "--filter")
            if key == "state":
                self.states.append(value)
            elif key == "name":
                self.name = value
            elif key.startswith("metadata."):
                self.metadata[key.removeprefix("metadata.")] = value
            else:
                raise typer.BadParameter(f"{key!r} is not state, name or metadata.KEY", param_hint="--filter")


def detach_bytes(text: str) -> bytes:
    r"""Return what the terminal sends for a list of keys; none for an empty one.

    >>> detach_bytes("ctrl-p,ctrl-q"), detach_bytes("~,."), detach_bytes("")
    (b'\x10\x11', b'~.', b'')
    """
    found = b""
    for key in filter(None, text.split(",")):
        letter = key.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii():
            raise typer.BadParameter(f"{key!r} is neither a letter nor ctrl-LETTER", param_hint="--detach-keys")
        found += bytes([ord(letter.upper()) & 0x1F]) if key.startswith("ctrl-") else letter.encode()
    return found
