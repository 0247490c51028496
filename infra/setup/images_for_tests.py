"""What acceptance of images needs: real images, made of Debian's packages as others make them, and wheels.

Each is an OCI layout below `<cache>/acceptance`, under the hash of the recipe in `infra/acceptance-images`.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from infra.setup.base_image import KEYRING, SUITE, host_sources
from infra.setup.places import REPOSITORY
from infra.setup.progress import Progress, SetupError
from infra.setup.toolchain import GO_ENV, find_go

NAMES: Final = {"debian": "12", "python": "3", "node": "18", "large": "1", "static": "1"}
"""In the order they build on each other, each with its tag."""
WHEELS: Final = ("numpy==2.2.6", "pandas==2.2.3")

_RECIPE: Final = REPOSITORY / "infra" / "acceptance-images"
_VERSION: Final = "1"
_FIX: Final = "check that the Debian mirror can be reached, and that there are 10 GiB of disk, then run again"


def images_of(cache: Path) -> Path:
    """Return the directory of the layouts, by the names of the images."""
    digest = hashlib.sha256(_VERSION.encode())
    for path in sorted(_RECIPE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return cache / "acceptance" / f"images-{digest.hexdigest()[:16]}"


def wheels_of(cache: Path) -> Path:
    """Return the directory of the wheels."""
    return cache / "acceptance" / f"wheels-{hashlib.sha256(repr(WHEELS).encode()).hexdigest()[:16]}"


def provide(progress: Progress, cache: Path) -> str:
    """Return the directory of the images, building them if they are not there; the wheels are beside it."""
    with progress.step("images for acceptance"):
        target = images_of(cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _provide_buildah(progress)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".images-") as scratch:
                _build(progress, cache, Path(scratch))
                (Path(scratch) / "made").rename(target)
        _provide_wheels(progress, cache, wheels_of(cache))
        return str(target)


def _provide_buildah(progress: Progress) -> None:
    if shutil.which("buildah") is not None:
        return
    if os.geteuid() != 0:
        raise SetupError("buildah is missing and only root can install it", "apt-get install buildah")
    progress.command(["apt-get", "update", "-qq"], doing="reading the package lists", fix=_FIX)
    progress.command(
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "buildah"],
        env={"DEBIAN_FRONTEND": "noninteractive"},
        doing="installing buildah",
        fix=_FIX,
    )


def _build(progress: Progress, cache: Path, home: Path) -> None:
    context = home / "context"
    shutil.copytree(_RECIPE, context)
    _root(progress, context / "debian.tar", "--variant=minbase")
    # What images without a shell have: no package is configured, none of their programs is there.
    keep = "--customize-hook=rm -rf $1/bin $1/sbin $1/lib $1/lib64 $1/usr/bin $1/usr/sbin $1/usr/lib $1/var/lib/dpkg"
    _root(progress, context / "static.tar", "--variant=extract", "--include=base-files,netbase,tzdata", keep)
    progress.command(
        [find_go(progress, cache), "build", "-trimpath", "-o", str(context / "hello"), str(context / "hello.go")],
        env=GO_ENV,
        doing="building the program without a shell",
        fix="see the log",
    )
    buildah = ["buildah", "--root", str(home / "store"), "--runroot", str(home / "run"), "--storage-driver", "vfs"]
    for name, tag in NAMES.items():
        build = ["bud", "--isolation", "chroot", "--layers", "-t", f"{name}:{tag}", "-f", f"Dockerfile.{name}", "."]
        progress.command([*buildah, *build], cwd=context, doing=f"building the image {name}", fix=_FIX)
        push = ["push", f"localhost/{name}:{tag}", f"oci:{home}/made/{name}:v1"]
        (home / "made").mkdir(exist_ok=True)
        progress.command([*buildah, *push], doing=f"packing the image {name}", fix=_FIX)


def _root(progress: Progress, target: Path, *options: str) -> None:
    command = ["mmdebstrap", "--mode=root", "--format=tar", f"--keyring={KEYRING}", *options, SUITE, str(target)]
    progress.command([*command, *host_sources()], doing=f"making {target.name}", fix=_FIX)


def _provide_wheels(progress: Progress, cache: Path, target: Path) -> None:
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheels-") as scratch:
        chosen = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64"]
        chosen += ["--platform=manylinux_2_17_x86_64"]
        progress.command(
            [str(cache / "uv/bin/pip"), "download", "-q", *chosen, "--dest", f"{scratch}/wheels", *WHEELS],
            doing="fetching numpy and pandas",
            fix="make PyPI reachable, then run again",
        )
        (Path(scratch) / "wheels").rename(target)
