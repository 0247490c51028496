"""What only tests need: a registry and a tool to fill it, from Debian's packages; no service is installed."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from infra.setup.progress import Progress, SetupError

REGISTRY: Final = "test-tools/docker-registry/usr/bin/docker-registry"
_FIX: Final = "check the network and /etc/apt/sources.list*, or install the packages skopeo and docker-registry"


def provide(progress: Progress, cache: Path) -> str:
    """Return the path of the registry; skopeo is then on PATH."""
    with progress.step("test tools"):
        _provide_skopeo(progress)
        return str(_provide_registry(progress, cache))


def _provide_skopeo(progress: Progress) -> None:
    if shutil.which("skopeo") is not None:
        return
    if os.geteuid() != 0:
        raise SetupError("skopeo is missing and only root can install it", "apt-get install skopeo")
    progress.command(["apt-get", "update", "-qq"], doing="reading the package lists", fix=_FIX)
    progress.command(
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "skopeo"],
        env={"DEBIAN_FRONTEND": "noninteractive"},
        doing="installing skopeo",
        fix=_FIX,
    )


def _provide_registry(progress: Progress, cache: Path) -> Path:
    """Take the program out of its package: installing that would start a service on a port of everybody's."""
    installed = shutil.which("docker-registry")
    if installed is not None:
        return Path(installed)
    target = cache / REGISTRY
    if target.exists():
        return target
    home = cache / "test-tools"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as scratch:
        options = ["-o", "APT::Sandbox::User=root"]
        progress.command(
            ["apt-get", "download", "-qq", *options, "docker-registry"],
            cwd=Path(scratch),
            doing="fetching docker-registry",
            fix=_FIX,
        )
        (package,) = Path(scratch).glob("*.deb")
        unpacked = Path(scratch) / "docker-registry"
        progress.command(["dpkg", "-x", str(package), str(unpacked)], doing="unpacking docker-registry", fix=_FIX)
        shutil.rmtree(home / "docker-registry", ignore_errors=True)
        unpacked.rename(home / "docker-registry")
    return target
