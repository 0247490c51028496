"""The systemd units of one instance: rendered from `infra/systemd`, installed and removed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from infra.launcher.child import closed_ancestors
from infra.setup.places import REPOSITORY

TEMPLATES: Final = REPOSITORY / "infra" / "systemd"
UNIT_DIR: Final = Path("/etc/systemd/system")
ENV_DIR: Final = Path("/etc/sandlot")
_SLICE: Final = "sandlot.slice"
_NO_SETTINGS: Final = frozenset({"SANDLOT_API_KEY", "SANDLOT_URL", "SANDLOT_LEAK_CHECK"})
_WORD: Final = re.compile(r"@([A-Z_]+)@")


def prefix(instance: str) -> str:
    return "sandlot" if instance == "sandlot" else f"sandlot-{instance}"


def name(instance: str, program: str) -> str:
    """Return the name of a program's unit."""
    return f"{prefix(instance)}-{program}.service"


def rendered(config: LauncherConfig, env_dir: Path = ENV_DIR) -> dict[str, str]:
    """Return the units by their names."""
    unit = prefix(config.instance)
    below_run = config.run_dir.parts[:2] == ("/", "run") and len(config.run_dir.parts) > 2
    # Kept when the services stop: the runtime's state of sandboxes that run on is in it.
    runtime = (
        f"RuntimeDirectory={config.run_dir.relative_to('/run')}\nRuntimeDirectoryPreserve=yes" if below_run else ""
    )
    words = {
        "INSTANCE": config.instance,
        "ROOT": str(REPOSITORY),
        "SANDLOTD": str(Path(sys.prefix) / "bin" / "sandlotd"),
        "UNIT": unit,
        "ENV": str(settings_of(config, env_dir)),
        "DATA": str(config.data_dir),
        "RUN": str(config.run_dir),
        "RUNTIME_DIRECTORY": runtime,
    }
    names = {
        "sandlot.target": f"{unit}.target",
        "sandlot-api.service": name(config.instance, "api"),
        "sandlot-node.service": name(config.instance, "node"),
        "sandlot-gateway.service": name(config.instance, "gateway"),
        _SLICE: _SLICE,
    }
    return {
        target: _WORD.sub(lambda found: words[found[1]], (TEMPLATES / source).read_text())
        for source, target in names.items()
    }


def install(
    config: LauncherConfig, env: Mapping[str, str], *, unit_dir: Path = UNIT_DIR, env_dir: Path = ENV_DIR
) -> list[Path]:
    """Write the units, and a file of settings where there is none. LauncherError."""
    closed = closed_ancestors([REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)])
    if closed:
        raise LauncherError(
            f"{', '.join(map(str, closed))} is closed to the api's user",
            "install it where everybody may read, such as /opt/sandlot, with a Python from the system",
        )
    env_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    settings = settings_of(config, env_dir)
    if not settings.exists():
        settings.touch(mode=0o600)
        settings.write_text(_settings(config, env))
    written: list[Path] = []
    for unit, text in rendered(config, env_dir).items():
        path = unit_dir / unit
        path.write_text(text)
        path.chmod(0o644)
        written.append(path)
    _systemctl("daemon-reload")
    return [*written, settings]


def installed(config: LauncherConfig, *, unit_dir: Path = UNIT_DIR) -> list[Path]:
    """List the units of this instance that are installed; the slice only with the last instance."""
    own = [unit_dir / unit for unit in rendered(config) if unit != _SLICE]
    found = [path for path in own if path.exists()]
    others = [path for path in unit_dir.glob("sandlot*.service") if path not in own]
    if found and not others and (unit_dir / _SLICE).exists():
        found.append(unit_dir / _SLICE)
    return found


def remove(config: LauncherConfig, *, unit_dir: Path = UNIT_DIR) -> list[Path]:
    """Stop and disable the units of this instance, and remove them; nothing happens where there are none."""
    found = installed(config, unit_dir=unit_dir)
    if not found:
        return []
    _systemctl("stop", *(path.name for path in found if path.suffix != ".slice"))
    _systemctl("disable", f"{prefix(config.instance)}.target")
    for path in found:
        path.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    return found


def settings_of(config: LauncherConfig, env_dir: Path = ENV_DIR) -> Path:
    """Return the file the units read their settings from."""
    return env_dir / f"{config.instance}.env"


def _settings(config: LauncherConfig, env: Mapping[str, str]) -> str:
    own = {name: value for name, value in env.items() if name.startswith("SANDLOT_") and name not in _NO_SETTINGS}
    own |= {
        "SANDLOT_INSTANCE": config.instance,
        "SANDLOT_DATA_DIR": str(config.data_dir),
        "SANDLOT_RUN_DIR": str(config.run_dir),
        "SANDLOT_CACHE_DIR": str(config.cache_dir),
    }
    lines = [f"{name}={_quoted(value)}" for name, value in sorted(own.items())]
    return "\n".join(["# Settings of all programs, see docs/settings.md; restart them after a change.", *lines, ""])


def _quoted(value: str) -> str:
    if "\n" in value:
        raise LauncherError("a setting has more than one line", "correct the environment")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if escaped != value or " " in value else value


def _systemctl(*words: str) -> None:
    """Tell systemd, where it runs this machine."""
    program = shutil.which("systemctl")
    if program is not None and Path("/run/systemd/system").is_dir():
        subprocess.run([program, "--quiet", *words], stdin=subprocess.DEVNULL, check=False)
