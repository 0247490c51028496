"""Where the API is and with which key to call it: arguments, then environment, then the configuration file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sandlot.errors import ConfigurationError

URL_VARIABLE = "SANDLOT_URL"
KEY_VARIABLE = "SANDLOT_API_KEY"


@dataclass(frozen=True)
class Settings:
    """What a client needs to know. The key is kept out of `repr`."""

    url: str
    api_key: str = field(repr=False)


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
    url = url or environ.get(URL_VARIABLE) or None
    api_key = api_key or environ.get(KEY_VARIABLE) or None
    if url is None or api_key is None:
        stored = _read(config_file(environ))
        stored_url = stored.get("url")
        if url is None:
            url = stored_url
        if api_key is None and stored_url is not None and url is not None and url.rstrip("/") == stored_url.rstrip("/"):
            api_key = stored.get("api_key")
    if not url:
        raise ConfigurationError(
            "no URL of the Sandlot API is known",
            hint=f"Set {URL_VARIABLE}, for example to http://127.0.0.1:7070.",
        )
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is not an http or https URL", hint=f"Correct {URL_VARIABLE}.")
    if not api_key:
        raise ConfigurationError("no API key is known", hint=f"Set {KEY_VARIABLE} to a key of your project.")
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError("the API key has characters no key has", hint=f"Correct {KEY_VARIABLE}.")
    return Settings(url.rstrip("/"), api_key)


def _read(path: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", hint="Correct or remove it.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not a JSON object", hint="Correct or remove it.")
    return {key: text for key, text in cast("dict[str, Any]", value).items() if isinstance(text, str)}
