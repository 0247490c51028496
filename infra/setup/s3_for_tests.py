"""A server that speaks S3, for tests and measurements: the pinned versitygw, built from its module."""

import hashlib
import os
from pathlib import Path
from typing import Final

from infra.setup.places import REPOSITORY
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go

_MODULE: Final = REPOSITORY / "infra" / "s3-for-tests"
_PACKAGE: Final = "github.com/versity/versitygw/cmd/versitygw"


def provide(progress: Progress, cache: Path) -> str:
    """Return the path of the server, building it if it is not there."""
    with progress.step("S3 server for tests"):
        key = hashlib.sha256((_MODULE / "go.sum").read_bytes()).hexdigest()[:16]
        target = cache / "test-tools" / f"versitygw-{key}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            progress.command(
                [find_go(progress, cache), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(fresh), _PACKAGE],
                cwd=_MODULE,
                env=GO_ENV,
                doing="building versitygw (a minute or two, once)",
                fix="make PyPI and the Go module proxy reachable, then run again",
            )
            fresh.replace(target)
        return str(target)
