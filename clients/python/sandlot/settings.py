"""Where the API is and with which key to call it: arguments, then environment, then the configuration file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from sandlot.errors import ConfigurationError

URL_VARIABLE: Final = "SANDLOT_URL"
KEY_VARIABLE: Final = "SANDLOT_API_KEY"
PROFILE_VARIABLE: Final = "SANDLOT_PROFILE"


@dataclass(frozen=True)
class Settings:
    """What a client needs to know. The key is kept out of `repr`."""

    url: str
    api_key: str = field(repr=False)
    source: str = field(default="arguments", compare=False)
    """Where the URL came from, for people."""


def config_file(environ: Mapping[str, str]) -> Path:
    """Return the path of the configuration file, whether or not it exists.

    >>> config_file({"XDG_CONFIG_HOME": "/etc/xdg"}).as_posix()
    '/etc/xdg/sandlot/config.json'
    """
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sandlot" / "config.json"


def load(url: str | None = None, api_key: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force. ConfigurationError if either is missing or unusable.

    A key of the configuration file is only sent to the URL of that file: one that was meant for one server must not
    reach another because a variable names it.

    >>> load("http://127.0.0.1:7070/", "sandlot_example").url
    'http://127.0.0.1:7070'
    """
    environ = os.environ if environ is None else environ
    source = "arguments" if url else URL_VARIABLE
    url = url or environ.get(URL_VARIABLE) or None
    api_key = api_key or environ.get(KEY_VARIABLE) or None
    profile = environ.get(PROFILE_VARIABLE) or None
    if url is None or api_key is None:
        path = config_file(environ)
        stored = _profile(_read(path), profile)
        if profile is not None and not stored:
            raise ConfigurationError(f"no profile {profile!r} is kept", hint="Make it with `sandlot login --profile`.")
        stored_url = stored.get("url")
        if url is None:
            url, source = stored_url, str(path)
        if api_key is None and stored_url is not None and url is not None and url.rstrip("/") == stored_url.rstrip("/"):
            api_key = stored.get("api_key")
    if not url:
        raise ConfigurationError(
            "no URL of the Sandlot API is known",
            hint=f"Set {URL_VARIABLE}, for example to http://127.0.0.1:7070, or run `sandlot login`.",
        )
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is not an http or https URL", hint=f"Correct {URL_VARIABLE}.")
    if not api_key:
        raise ConfigurationError(
            "no API key is known", hint=f"Set {KEY_VARIABLE} to a key of your project, or run `sandlot login`."
        )
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError("the API key has characters no key has", hint=f"Correct {KEY_VARIABLE}.")
    return Settings(url.rstrip("/"), api_key, source)


def store(known: Settings, profile: str | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Keep a URL and a key in the configuration file, which nobody else may read, and return its path."""
    path = config_file(os.environ if environ is None else environ)
    content = _read(path)
    kept = {"url": known.url, "api_key": known.api_key}
    if profile is None:
        content |= kept
    else:
        content["profiles"] = {**_profiles(content), profile: kept}
    _write(path, content)
    return path


def forget(profile: str | None = None, environ: Mapping[str, str] | None = None) -> bool:
    """Remove what was kept, and tell whether there was anything."""
    path = config_file(os.environ if environ is None else environ)
    content = _read(path)
    if not _profile(content, profile):
        return False
    if profile is None:
        content = {name: value for name, value in content.items() if name not in {"url", "api_key"}}
    else:
        content["profiles"] = {name: value for name, value in _profiles(content).items() if name != profile}
    _write(path, content)
    return True


def _write(path: Path, content: Mapping[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file, indent=2)
        aside.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}", hint="Check its directory.") from error


def _profile(content: Mapping[str, Any], profile: str | None) -> dict[str, str]:
    found: Any = content if profile is None else _profiles(content).get(profile)
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {key: text for key, text in fields.items() if isinstance(text, str)}


def _profiles(content: Mapping[str, Any]) -> dict[str, Any]:
    found = content.get("profiles")
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", hint="Correct or remove it.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not a JSON object", hint="Correct or remove it.")
    return cast("dict[str, Any]", value)
