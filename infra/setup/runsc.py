"""Provides runsc: a version new enough from PATH, else the official release, else a build of the pinned module.

Whichever it is ends in the cache under its version, because sandboxes keep using the build they were started with.
"""

import hashlib
import http.client
import os
import platform
import re
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY, point, runsc_path
from infra.setup.progress import Progress, SetupError, output_of
from infra.setup.toolchain import GO_ENV, find_go

OLDEST_RELEASE: Final = 20260824
"""Everything before has a known escape to the host's root."""

PINNED: Final = "sandlot-20260905"
"""Version string of our build; the module's own version stands in infra/runsc/go.mod."""

_OFFICIAL: Final = "https://storage.googleapis.com/gvisor/releases/release/latest"
_REACH_SECONDS: Final = 5
_CHUNK: Final = 1 << 20
_FIX: Final = "put a runsc of at least release-20260824.0 on PATH, or make PyPI and the Go module proxy reachable"


def version_of(said: str) -> str | None:
    """Read the output of `runsc --version`."""
    found = re.match(r"runsc version (\S+)", said)
    return found[1] if found else None


def refusal(version: str) -> str | None:
    """Say why this version of runsc must not run untrusted code; None when it may."""
    if re.match(r"\d", version):
        return f"{version} is a distribution's package, years behind and open to an escape to the host's root"
    found = re.fullmatch(r"(release|sandlot)-(\d{8})(?:\.\d+)?", version)
    if found is None:
        return f"{version} is a build of unknown age"
    if int(found[2]) < OLDEST_RELEASE:
        return f"{version} is older than release-{OLDEST_RELEASE}.0 and open to an escape to the host's root"
    return None


def provide(progress: Progress, cache: Path) -> str:
    """Return the version at `<cache>/runsc/current/runsc`, getting one first if there is none to keep."""
    with progress.step("runsc"):
        kept = _acceptable(runsc_path(cache), progress.say)
        if kept is not None and not (kept.startswith("sandlot-") and kept != PINNED):
            progress.say(f"{kept}, already here")
            return kept
        for source in (_from_path, _from_release, _from_module):
            version = source(progress, cache)
            if version is not None:
                point(cache / "runsc" / "current", version)
                return version
    raise SetupError("no usable runsc", _FIX)


def _acceptable(binary: Path, say: Callable[[str], None]) -> str | None:
    said = output_of([str(binary), "--version"])
    version = version_of(said) if said else None
    if version is None:
        return None
    why_not = refusal(version)
    if why_not is not None:
        say(f"refused {binary}: {why_not}")
        return None
    return version


def _from_path(progress: Progress, cache: Path) -> str | None:
    found = shutil.which("runsc")
    version = _acceptable(Path(found), progress.say) if found else None
    if found is None or version is None:
        return None
    _keep(cache, version, Path(found).resolve())
    progress.say(f"{version}, copied from {found}")
    return version


def _from_release(progress: Progress, cache: Path) -> str | None:
    """Fetch the official release: None when it cannot be reached, SetupError when its checksum is wrong."""
    url = f"{_OFFICIAL}/{platform.machine()}/gvisor.tar.bz2"
    try:
        with _open(f"{url}.sha512") as answer:
            expected = answer.read(200).decode("ascii", "replace").split()[0]
    except (OSError, IndexError):
        progress.say("the official release is out of reach, going on without it")
        return None
    progress.say("fetching the official release")
    with tempfile.TemporaryDirectory(dir=cache, prefix=".runsc-") as directory:
        archive = Path(directory) / "gvisor.tar.bz2"
        try:
            actual = _download(url, archive)
        except OSError as error:
            progress.say(f"the official release could not be fetched ({error}), going on without it")
            return None
        if actual != expected:
            raise SetupError(
                "the official release does not match its checksum", "run again; if it stays, use another network"
            )
        with tarfile.open(archive, "r:bz2") as tar:
            tar.extractall(directory, filter="data")
        binary = next(Path(directory).rglob("runsc"), None)
        version = _acceptable(binary, progress.say) if binary else None
        if binary is None or version is None:
            return None
        _keep(cache, version, binary)
    progress.say(f"{version}, the official release, checksum verified")
    return version


def _open(url: str) -> http.client.HTTPResponse:
    return urllib.request.urlopen(url, timeout=_REACH_SECONDS)  # noqa: S310 - always below the constant address


def _download(url: str, target: Path) -> str:
    digest = hashlib.sha512()
    with _open(url) as answer, target.open("wb") as file:
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _from_module(progress: Progress, cache: Path) -> str | None:
    go = find_go(progress, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".runsc-") as directory:
        binary = Path(directory) / "runsc"
        progress.command(
            [
                go,
                "build",
                "-trimpath",
                "-ldflags",
                f"-s -w -X gvisor.dev/gvisor/runsc/version.version={PINNED}",
                "-o",
                str(binary),
                "gvisor.dev/gvisor/runsc",
            ],
            cwd=REPOSITORY / "infra" / "runsc",
            env=GO_ENV,
            doing="building the pinned module (some minutes, once)",
            fix=_FIX,
        )
        version = _acceptable(binary, progress.say)
        if version is None:
            return None
        _keep(cache, version, binary)
    progress.say(f"{version}, built from the pinned module")
    return version


def _keep(cache: Path, version: str, binary: Path) -> None:
    """Copy runsc, and the helper programs beside it if it has any, into the cache under its version."""
    home = cache / "runsc" / version
    home.parent.mkdir(parents=True, exist_ok=True)
    fresh = home.with_name(f".{version}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o755)
    shutil.copy2(binary, fresh / "runsc")
    # The sentry executes it again as nobody.
    (fresh / "runsc").chmod(0o755)
    helpers = binary.parent / "gvisor-bin"
    if helpers.is_dir():
        shutil.copytree(helpers, fresh / "gvisor-bin")
    if home.exists():
        shutil.rmtree(home)
    fresh.rename(home)
