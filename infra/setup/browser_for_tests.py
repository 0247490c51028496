"""A browser for acceptance tests: Debian's Chromium without a screen, in a root of its own: nothing is installed."""

import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Final

from infra.setup.base_image import SUITE, debootstrap
from infra.setup.progress import Progress, SetupError

BROWSER: Final = "/usr/bin/chromium-headless-shell"
_PACKAGES: Final = ("chromium-headless-shell", "fonts-dejavu-core")


def root_of(cache: Path) -> Path:
    """Return the directory below which the browser's files are, once it is provided."""
    digest = hashlib.sha256(f"1 {SUITE} {platform.machine()} {_PACKAGES}".encode()).hexdigest()
    return cache / "test-tools" / f"browser-{digest[:16]}"


def provide(progress: Progress, cache: Path) -> str:
    """Return the root with the browser in it, making it if it is not there."""
    with progress.step("browser"):
        home = root_of(cache)
        if home.is_dir():
            return str(home)
        if os.geteuid() != 0:
            raise SetupError("it is not there yet and only root can make it", "run 'make acceptance' as root once")
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as scratch:
            root = Path(scratch) / "root"
            progress.command(
                debootstrap(root, _PACKAGES),
                env={"TMPDIR": scratch},
                doing="installing Debian's Chromium into a directory (a minute or two, once)",
                fix="the log ends with apt's reason; check that the Debian mirror can be reached, then run again",
            )
            shutil.rmtree(root / "dev")
            (root / "dev").mkdir(mode=0o755)
            root.rename(home)
        return str(home)
