"""Where set-up finds the sources and keeps what it made.

The cache is laid out by content, so that several releases of Sandlot share it and a sandbox keeps the files it was
started with: `runsc/<version>/runsc`, `guest/<hash>/guest`, `images/base-<key>.erofs`. Beside each stands a `current`
(`base`) link to the one that new sandboxes use. The programs only read it.
"""

import os
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DEFAULT_CACHE: Final = "/var/lib/sandlot/cache"


def cache_dir() -> Path:
    """Return the cache this run of set-up fills: SANDLOT_CACHE_DIR or the default."""
    return Path(os.environ.get("SANDLOT_CACHE_DIR") or DEFAULT_CACHE)


def runsc_path(cache: Path) -> Path:
    return cache / "runsc" / "current" / "runsc"


def guest_path(cache: Path) -> Path:
    return cache / "guest" / "current" / "guest"


def base_image_path(cache: Path) -> Path:
    return cache / "images" / "base.erofs"


def base_config_path(cache: Path) -> Path:
    return cache / "images" / "base.json"


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older one in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
