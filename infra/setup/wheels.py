"""Python packages that go into images of examples: fetched once by a lock, kept in the cache.

A sandbox would fetch them itself where the internet can be reached from it; tests must not need that.
"""

import hashlib
import platform
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY
from infra.setup.progress import Progress, SetupError

JUPYTER: Final = "jupyter"
FFMPEG: Final = "ffmpeg"
FFMPEG_SMALL: Final = "ffmpeg-small"
_PYTHON: Final = "3.11"
"""Of the image `base`, whatever this machine's is."""
_GLIBC: Final = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def provide_ffmpeg(progress: Progress, cache: Path) -> str:
    """Return the path of a static ffmpeg; its wheel, for an image, lies in the directory of `wheels_of(FFMPEG)`."""
    return _provide_ffmpeg(progress, cache, FFMPEG, "fetching ffmpeg (70 MiB, once)")


def provide_ffmpeg_small(progress: Progress, cache: Path) -> str:
    """Return the path of one that does for RTP."""
    return _provide_ffmpeg(progress, cache, FFMPEG_SMALL, "fetching a small ffmpeg (30 MiB, once)")


def provide_jupyter(progress: Progress, cache: Path) -> str:
    """Return the directory with all wheels of JupyterLab."""
    with progress.step("JupyterLab"):
        return str(_fetch(progress, cache, JUPYTER, "fetching JupyterLab (50 MiB, once)"))


def wheels_of(cache: Path, name: str) -> Path:
    """Return the directory in which the wheels of a lock lie once they are fetched."""
    digest = hashlib.sha256(_lock(name).read_bytes() + platform.machine().encode())
    return cache / "test-tools" / f"wheels-{name}-{digest.hexdigest()[:16]}"


def ffmpeg_of(wheels: Path) -> Path:
    """Return where the program stands beside its wheel."""
    return wheels / "bin" / "ffmpeg"


def _lock(name: str) -> Path:
    return REPOSITORY / "infra" / "locks" / f"{name}.txt"


def _fetch(progress: Progress, cache: Path, name: str, doing: str) -> Path:
    home = wheels_of(cache, name)
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as scratch:
        fetched = Path(scratch) / "wheels"
        fetched.mkdir(mode=0o755)
        platforms = [f"--platform={glibc}_{platform.machine()}" for glibc in _GLIBC]
        progress.command(
            [
                str(cache / "uv" / "bin" / "pip"),
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--require-hashes",
                "--no-deps",
                "--only-binary=:all:",
                f"--python-version={_PYTHON}",
                *platforms,
                f"--dest={fetched}",
                f"--requirement={_lock(name)}",
            ],
            doing=doing,
            fix="check that pip can reach PyPI (proxy, certificates), then run again",
        )
        fetched.rename(home)
    return home


def _provide_ffmpeg(progress: Progress, cache: Path, name: str, doing: str) -> str:
    with progress.step(name):
        home = _fetch(progress, cache, name, doing)
        target = ffmpeg_of(home)
        if not target.exists():
            _take_out(home, target)
        return str(target)


def _take_out(home: Path, target: Path) -> None:
    """Take the program out of its wheel."""
    (wheel,) = home.glob("imageio_ffmpeg-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("imageio_ffmpeg/binaries/ffmpeg-")]
        if len(names) != 1:
            raise SetupError("the wheel has no program for this machine", "use an x86-64 or 64-bit Arm machine")
        target.parent.mkdir(mode=0o755, exist_ok=True)
        fresh = target.with_name(".ffmpeg")
        with archive.open(names[0]) as source, fresh.open("wb") as out:
            shutil.copyfileobj(source, out)
    fresh.chmod(0o755)
    fresh.replace(target)
