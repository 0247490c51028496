"""login, logout, doctor: which server, with which key, and whether that works."""

import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

import anyio
import typer

from sandlot import settings
from sandlot._async.client import AsyncClient
from sandlot._requests import Request
from sandlot._version import __version__
from sandlot.cli import options, show
from sandlot.errors import ApiError, AuthenticationError, ConfigurationError, SandlotError
from sandlot.models import parse_time
from sandlot.retries import RetryPolicy

_TOLERATED_SKEW_SECONDS: Final = 30


def login(
    *,
    url: Annotated[str | None, typer.Option("--url", help="Where the API is.")] = None,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key from standard input.")] = False,
    profile: Annotated[str | None, typer.Option("--profile", help="Keep it under this name.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Try the key first.")] = True,
) -> None:
    """Keep a server's URL and a key in a file that only you can read.

    SANDLOT_URL and SANDLOT_API_KEY go before what is kept; SANDLOT_PROFILE says which profile is meant.
    """
    address = url or typer.prompt("URL", default="http://127.0.0.1:7070")
    key = sys.stdin.readline().strip() if key_stdin else typer.prompt("API key", hide_input=True)

    async def work() -> Any:
        async with AsyncClient(address, key, retries=RetryPolicy(attempts=2)) as client:
            return await client.me()

    try:
        known = settings.load(address, key)
        who: dict[str, Any] = anyio.run(work) if check else {}
        path = settings.store(known, profile)
    except ConfigurationError as error:
        show.failure(error, as_json=False)
        raise typer.Exit(options.EXIT_USAGE) from None
    except SandlotError as error:
        show.failure(error, as_json=False)
        raise typer.Exit(options.EXIT_API) from None
    project = _name(who, "project")
    show.print_line(f"kept in {path}" + (f", for project {project}" if project else ""))


def logout(*, profile: Annotated[str | None, typer.Option("--profile", help="Forget this one.")] = None) -> None:
    """Forget a kept URL and key."""
    if not settings.forget(profile):
        show.note("nothing is kept")
        raise typer.Exit(options.EXIT_API)


@dataclass(frozen=True)
class _Finding:
    """One line of the doctor."""

    what: str
    ok: bool
    said: str
    hint: str | None = None


def doctor(*, as_json: options.Json = False) -> None:
    """Check the way to the server, one line a check, each failure with what to do."""
    findings = _findings()
    if as_json:
        show.print_json([show.plain(one) for one in findings])
    else:
        for one in findings:
            show.print_line(f"{'ok  ' if one.ok else 'FAIL'}  {one.what:<8} {one.said}")
            if one.hint:
                show.print_line(f"      {'':<8} {one.hint}")
    if not all(one.ok for one in findings):
        raise typer.Exit(options.EXIT_API)


def _findings() -> list[_Finding]:
    try:
        known = settings.load()
    except ConfigurationError as error:
        return [_Finding("settings", ok=False, said=error.message, hint=error.hint)]
    found = [_Finding("settings", ok=True, said=f"{known.url}, from {known.source}")]

    async def ask() -> list[_Finding]:
        async with AsyncClient(retries=RetryPolicy(attempts=2)) as client:
            return await _ask(client)

    return found + anyio.run(ask)


async def _ask(client: AsyncClient) -> list[_Finding]:
    started = time.monotonic()
    try:
        me: dict[str, Any] = await client.call(Request("GET", "/v1/me"))
    except AuthenticationError as error:
        said = f"refused: {error.reason or error.detail}"
        return [_reached(started), _Finding("key", ok=False, said=said, hint=error.hint)]
    except ApiError as error:
        return [_reached(started), _Finding("key", ok=False, said=error.message, hint=error.hint)]
    except SandlotError as error:
        return [_Finding("server", ok=False, said=error.message, hint=error.hint)]
    found = [_reached(started), _Finding("key", ok=True, said=_who(me)), _version(me)]
    at = parse_time(me.get("at"))
    if at is not None:
        skew = at.timestamp() - time.time()
        hint = None if abs(skew) < _TOLERATED_SKEW_SECONDS else "Set the clock of this machine or of the server."
        found.append(_Finding("clock", ok=hint is None, said=f"{abs(skew):.0f} s apart", hint=hint))
    scopes = cast("list[str]", me.get("scopes") or [])
    found.append(_Finding("scopes", ok=bool(scopes), said=", ".join(scopes) or "none"))
    return found


def _reached(started: float) -> _Finding:
    return _Finding("server", ok=True, said=f"answers in {(time.monotonic() - started) * 1000:.0f} ms")


def _who(me: dict[str, Any]) -> str:
    return f"valid: {_name(me, 'caller') or 'a caller'} of project {_name(me, 'project') or '?'}"


def _name(me: dict[str, Any], part: str) -> str | None:
    found = me.get(part)
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return fields.get("name") or fields.get("id")


def _version(me: dict[str, Any]) -> _Finding:
    return _Finding("version", ok=True, said=f"server {me.get('version') or '?'}, this client {__version__}")
