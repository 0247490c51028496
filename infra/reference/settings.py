"""The page of settings: names and defaults from the four `config.py`, meanings from the docstrings in them."""

import ast
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from api.config import Settings
from infra.config import LauncherConfig
from sandboxd.config import NodeConfig
from tunnels.gateway.config import GatewayConfig

_PROGRAMS: Final[dict[str, type[BaseSettings]]] = {
    "launcher": LauncherConfig,
    "api": Settings,
    "node": NodeConfig,
    "gateway": GatewayConfig,
}

_MEANINGS: Final = {
    "api_host": "The address the public API listens on.",
    "api_port": "The port the public API listens on. 0: a free one; `<data>/api/url` says which.",
    "api_socket": "Where the api listens for node reports. Unset: `<run>/api/api.sock`.",
    "cache_dir": "What set-up builds: runsc, the guest, the image `base`. Read-only to the programs.",
    "cpu_overcommit": "CPUs promised to sandboxes for each CPU of the node.",
    "data_dir": "Everything that must survive a restart: database, ledger, keys, images, what sandboxes wrote.",
    "database_url": "The database, as a SQLAlchemy URL. Unset: SQLite in `<data>/api/api.db`.",
    "guest_dir": "The directory of the guest binary. Unset: `<cache>/guest/current`.",
    "heartbeat_seconds": "How often the node reports everything it runs.",
    "instance": "Names everything that is global in the kernel; instances of different names share a machine.",
    "log_level": "`debug`, `info`, `warning` or `error`.",
    "max_sandboxes": "How many sandboxes the node runs at once.",
    "node_name": "What the node calls itself. Unset: the host's name.",
    "node_socket": "Where the node listens for the api. Unset: `<run>/api/sandboxd.sock`.",
    "run_dir": "Sockets, locks and runsc's state: gone after a boot.",
    "runsc": "The runsc to run. Unset: the one set-up put into the cache.",
    "slot_pool_size": "Network slots kept ready.",
}

_OTHERS: Final = """
## Read elsewhere

| setting | read by | means |
|---|---|---|
| `SANDLOT_URL` | client and `sandlot` | Where the API is, such as `http://127.0.0.1:7070`. |
| `SANDLOT_API_KEY` | client and `sandlot` | The project's key. |
| `SANDLOT_LEAK_CHECK` | tests | `1`: a test run that leaves something in the kernel fails; `make test` sets it. |

The client also reads `$XDG_CONFIG_HOME/sandlot/config.json` (else `~/.config/sandlot/config.json`):
`{"url": "…", "api_key": "…"}`. Variables win; a stored key is only sent to the stored URL.
"""

_HEAD: Final = """\
# Settings

Environment variables, read once at start in one file of each program. Drawn from those files by
`python -m infra.reference`; a test holds it to them. `<data>`, `<run>` and `<cache>` are the directories named by
`SANDLOT_DATA_DIR`, `SANDLOT_RUN_DIR` and `SANDLOT_CACHE_DIR`. The launcher hands its own environment on to the programs
it starts.

| setting | read by | default | means |
|---|---|---|---|"""


def page() -> str:
    """Return the page. KeyError names a setting without a meaning: write a docstring beneath it."""
    rows: dict[str, tuple[list[str], str, str]] = {}
    for program, config in _PROGRAMS.items():
        docstrings = _docstrings(config)
        for name, field in config.model_fields.items():
            programs, default, meaning = rows.setdefault(name, ([], _default(field), ""))
            programs.append(program)
            if not meaning:
                rows[name] = (programs, default, _MEANINGS.get(name) or docstrings.get(name, ""))
    missing = [name for name, row in rows.items() if not row[2]]
    if missing:
        raise KeyError(f"settings without a docstring: {', '.join(missing)}")
    lines = [
        f"| `SANDLOT_{name.upper()}` | {', '.join(programs)} | {default} | {meaning} |"
        for name, (programs, default, meaning) in sorted(rows.items())
    ]
    return "\n".join([_HEAD, *lines]) + "\n" + _OTHERS


def _default(field: FieldInfo) -> str:
    if field.default_factory is dict or field.default == ():
        return "none"
    if field.default_factory is not None:
        return "of the machine"
    value = field.default
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"  # pyright: ignore[reportUnknownArgumentType] - any tuple
    return f"`{value}`"


def _docstrings(config: type[BaseSettings]) -> dict[str, str]:
    source = Path(inspect.getfile(config)).read_text()
    (body,) = [
        node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == config.__name__
    ]
    found: dict[str, str] = {}
    for statement, following in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found
