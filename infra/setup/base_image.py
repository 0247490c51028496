"""Makes the image `base`: Debian 12 with the tools agents expect, as one EROFS file and its default config.

The recipe is `infra/base-image`; the file is kept under the hash of the recipe and of the packages' source.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from infra.setup.places import REPOSITORY, base_config_path, base_image_path, point
from infra.setup.progress import Progress, SetupError, output_of

SUITE: Final = "bookworm"
RECIPE: Final = REPOSITORY / "infra" / "base-image"
CONFIG: Final = {
    "env": {"LANG": "C.UTF-8"},
    "user": "user",
    "cwd": "/home/user",
    "entrypoint": [],
    "cmd": ["/bin/bash"],
}

_RECIPE_VERSION: Final = "2"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MKFS_OPTIONS: Final = ("-x-1", "-Enoinline_data")
"""The sentry reads no extended attributes, and cannot map a file whose tail is inline."""

_DROPPED: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/lintian/*")
_KEPT: Final = ("/usr/share/doc/*/copyright",)


class Target(NamedTuple):
    """One line of apt's own view of where it gets packages."""

    address: str
    release: str
    component: str


def sources_of_host(os_id: str, codename: str, targets: Iterable[Target]) -> list[str]:
    """Return sources.list lines for the image through the mirror the host uses; empty: the builder's default.

    Only a Debian host's mirror is known to carry Debian 12; without a security archive nothing of it is used.
    """
    if os_id != "debian":
        return []
    main = {target.release: target.address for target in reversed(list(targets)) if target.component == "main"}
    archive, security = main.get(codename), main.get(f"{codename}-security")
    if archive is None or security is None:
        return []
    suites = ((archive, SUITE), (archive, f"{SUITE}-updates"), (security, f"{SUITE}-security"))
    return [f"deb {address} {suite} main" for address, suite in suites]


def read_targets(said: str) -> list[Target]:
    """Read what `apt-get indextargets` printed in the format asked for below."""
    rows = (line.split("|") for line in said.splitlines())
    return [Target(*row) for row in rows if len(row) == 3]


def provide(progress: Progress, cache: Path) -> str:
    """Return the key under which the base image stands in `<cache>/images`, building it if it is not there."""
    with progress.step("base image"):
        key = _key()
        home = cache / "images"
        image, config = home / f"base-{key}.erofs", home / f"base-{key}.json"
        if image.exists() and config.exists():
            progress.say(f"{key}, already here")
        else:
            if os.geteuid() != 0:
                raise SetupError("it is not there yet and only root can make it", "run 'make setup' as root once")
            home.mkdir(parents=True, exist_ok=True)
            _build(progress, home, image, config)
            progress.say(f"{key}, made ({image.stat().st_size >> 20} MiB)")
        point(base_image_path(cache), image.name)
        point(base_config_path(cache), config.name)
        return key


def _key() -> str:
    digest = hashlib.sha256(f"{_RECIPE_VERSION} {SUITE} {platform.machine()} {_MKFS_OPTIONS} {_DROPPED}".encode())
    digest.update(json.dumps(CONFIG, sort_keys=True).encode())
    for name in ("packages.txt", "customize.sh"):
        digest.update((RECIPE / name).read_bytes())
    return digest.hexdigest()[:16]


def _build(progress: Progress, home: Path, image: Path, config: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home, prefix=".base-") as scratch:
        # The directory's own mode becomes the image's root.
        root = Path(scratch) / "root"
        fresh = Path(scratch) / "image"
        progress.command(
            debootstrap(
                root, (RECIPE / "packages.txt").read_text().split(), f"--customize-hook={RECIPE / 'customize.sh'}"
            ),
            env={"TMPDIR": scratch},
            doing="installing Debian 12 into a directory (a minute or two, once)",
            fix="the log ends with apt's reason; check that the Debian mirror can be reached, then run again",
        )
        # The runtime brings its own /dev; a device node in an image can only do harm.
        shutil.rmtree(root / "dev")
        (root / "dev").mkdir(mode=0o755)
        progress.command(
            ["mkfs.erofs", "--quiet", *_MKFS_OPTIONS, str(fresh), str(root)],
            doing="packing it as EROFS",
            fix="erofs-utils 1.5 or newer and some GiB of disk are needed",
        )
        described = {"name": "base", "digest": _digest(fresh), "size_bytes": fresh.stat().st_size, "config": CONFIG}
        (Path(scratch) / "config").write_text(json.dumps(described, indent=2) + "\n")
        fresh.chmod(0o644)
        fresh.replace(image)
        (Path(scratch) / "config").replace(config)
        shutil.rmtree(root)


def debootstrap(root: Path, packages: Sequence[str], *options: str) -> list[str]:
    """Return the command that installs Debian with some packages into a directory, from where this machine gets its."""
    dropped = [f"--dpkgopt=path-exclude={pattern}" for pattern in _DROPPED]
    kept = [f"--dpkgopt=path-include={pattern}" for pattern in _KEPT]
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--keyring={KEYRING}",
        f"--include={','.join(packages)}",
        "--aptopt=APT::Install-Recommends false",
        *dropped,
        *kept,
        *options,
        SUITE,
        str(root),
        *host_sources(),
    ]


def host_sources() -> list[str]:
    release = platform.freedesktop_os_release()
    said = output_of(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"]
    )
    return sources_of_host(release.get("ID", ""), release.get("VERSION_CODENAME", ""), read_targets(said or ""))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
