"""Builds the guest: one static binary, kept under the hash of the sources and the toolchain it was made from."""

import hashlib
import os
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY, point
from infra.setup.progress import Progress, SetupError
from infra.setup.toolchain import GO_ENV, find_go

SOURCES: Final = REPOSITORY / "sandboxd" / "guest"
_LARGEST_BYTES: Final = 8 << 20
_LDFLAGS: Final = "-s -w"


def sources_hash(sources: Path) -> str:
    """Return 16 hex digits that differ whenever a file that goes into the binary, or the recipe, does."""
    digest = hashlib.sha256(_LDFLAGS.encode())
    for path in sorted(sources.rglob("*")):
        if path.is_file() and path.suffix in {".go", ".mod", ".sum"} and not path.name.endswith("_test.go"):
            digest.update(str(path.relative_to(sources)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def provide(progress: Progress, cache: Path) -> str:
    """Return the hash under which `<cache>/guest/<hash>/guest` stands, building it if it is not there."""
    with progress.step("guest"):
        key = sources_hash(SOURCES)
        home = cache / "guest" / key
        if (home / "guest").exists():
            progress.say(f"{key}, already here")
        else:
            _build(progress, cache, home)
            progress.say(f"{key}, built")
        point(cache / "guest" / "current", key)
        return key


def _build(progress: Progress, cache: Path, home: Path) -> None:
    fresh = home.with_name(f".{home.name}.{os.getpid()}")
    fresh.mkdir(mode=0o755, parents=True, exist_ok=True)
    binary = fresh / "guest"
    progress.command(
        [
            find_go(progress, cache),
            "build",
            "-trimpath",
            "-ldflags",
            f"{_LDFLAGS} -X main.version={home.name}",
            "-o",
            str(binary),
            "./cmd/guest",
        ],
        cwd=SOURCES,
        env=GO_ENV,
        doing="building the guest agent",
        fix="the log names the file and line; 'make guest' tries again",
    )
    if binary.stat().st_size > _LARGEST_BYTES:
        raise SetupError("the guest is larger than 8 MB", "find the dependency that grew it")
    binary.chmod(0o755)
    if home.exists():
        binary.replace(home / "guest")
        fresh.rmdir()
    else:
        fresh.rename(home)
