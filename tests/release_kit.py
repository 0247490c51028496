"""The last release's programs, from its fixture: an interpreter that imports them instead of these, and their guest."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.release.__main__ import FIXTURES
from infra.setup.places import cache_dir
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go


@dataclass(frozen=True)
class Release:
    """One release, unpacked."""

    version: str
    python: Path
    guest_dir: Path

    def start(self, program: str, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start `api` or `sandboxd` of the release, as this user."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(self.python), "-m", program],
                env={**env, "SANDLOT_GUEST_DIR": str(self.guest_dir), "PYTHONSAFEPATH": "1"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def where(self, module: str) -> Path:
        """Return the file the release's interpreter imports a module from."""
        code = f"import {module}; print({module}.__file__)"
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True, cwd="/")
        return Path(done.stdout.strip())


def unpacked(directory: Path) -> Release:
    """Unpack the fixture and build what it needs."""
    (fixture,) = FIXTURES.glob("release-*.tar.gz")
    found = re.fullmatch(r"release-(\d+\.\d+\.\d+)\.tar\.gz", fixture.name)
    assert found is not None
    code = directory / "code"
    with tarfile.open(fixture) as archive:
        archive.extractall(code, filter="data")
    return Release(found[1], _interpreter(directory / "venv", code, found[1]), _guest(directory / "guest", code))


def _interpreter(home: Path, code: Path, version: str) -> Path:
    """Make an environment in which the release comes before the installed packages, and these sources not at all."""
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    described = packages / f"sandlot_server-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sandlot-server\nVersion: {version}\n")
    # A directory that is added this way has its own .pth files, which name these sources, left unread.
    paths = (code, code / "clients" / "python", Path(sysconfig.get_paths()["purelib"]))
    (packages / "release.pth").write_text("".join(f"{path}\n" for path in paths))
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(base)
    return home / "bin" / "python"


def _guest(home: Path, code: Path) -> Path:
    home.mkdir()
    cache = cache_dir()
    subprocess.run(
        [find_go(Progress(cache / "logs"), cache), "build", "-trimpath", "-o", str(home / "guest"), "./cmd/guest"],
        cwd=code / "sandboxd" / "guest",
        env={**os.environ, **GO_ENV},
        check=True,
    )
    (home / "guest").chmod(0o755)
    return home
