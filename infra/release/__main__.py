"""`python -m infra.release [COMMIT]`: keep a release's programs as the fixture of the N-1 test.

Run it on the commit that is released, and commit what it writes together with the new version number.
"""

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY

FIXTURES: Final = REPOSITORY / "tests" / "fixtures"
PARTS: Final = (
    "api",
    "sandboxd",
    "netpolicy",
    "tunnels",
    "programs",
    "infra",
    "openapi",
    "clients/python/sandlot",
    "pyproject.toml",
)


def keep(commit: str, directory: Path = FIXTURES) -> Path:
    """Write the programs of a commit to `release-<version>.tar.gz`, and remove those of older releases."""
    version = _version(_git("show", f"{commit}:pyproject.toml").decode())
    parts = [part for part in PARTS if _git("ls-tree", "--name-only", commit, part)]
    content = _git("archive", "--format=tar", commit, *parts)
    directory.mkdir(exist_ok=True)
    for older in directory.glob("release-*.tar.gz"):
        older.unlink()
    target = directory / f"release-{version}.tar.gz"
    # Without a time and a name in it the same commit gives the same file.
    target.write_bytes(gzip.compress(content, 9, mtime=0))
    return target


def _version(project: str) -> str:
    found = re.search(r'^version = "([^"]+)"$', project, re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml says no version")
    return found[1]


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, check=True).stdout


if __name__ == "__main__":
    print(keep(sys.argv[1] if len(sys.argv) > 1 else "HEAD"))
