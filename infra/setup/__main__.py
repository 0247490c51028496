"""`python -m infra.setup [runsc] [guest] [image]`: carry out these steps, or all of them.

`python -m infra.setup test-tools test-s3 test-ffmpeg-small` fetches what only tests need, `test-ffmpeg
test-jupyter test-browser test-images` what only acceptance tests do.

`python -m infra.setup go|gofmt ARGUMENTS...` runs the Go tool set-up would use, in the guest's sources.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infra.setup import (
    base_image,
    browser_for_tests,
    guest,
    images_for_tests,
    runsc,
    s3_for_tests,
    tools_for_tests,
    wheels,
)
from infra.setup.places import cache_dir
from infra.setup.progress import Progress, SetupError, fail, output_of
from infra.setup.toolchain import GO_ENV, find_go

STEPS: Final[dict[str, Callable[[Progress, Path], str]]] = {
    "runsc": runsc.provide,
    "guest": guest.provide,
    "image": base_image.provide,
}
FOR_TESTS: Final[dict[str, Callable[[Progress, Path], str]]] = {
    "test-tools": tools_for_tests.provide,
    "test-s3": s3_for_tests.provide,
    "test-ffmpeg-small": wheels.provide_ffmpeg_small,
    "test-ffmpeg": wheels.provide_ffmpeg,
    "test-jupyter": wheels.provide_jupyter,
    "test-browser": browser_for_tests.provide,
    "test-images": images_for_tests.provide,
}


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 done, 1 a step failed and said how to fix it, 2 no such step."""
    if arguments[:1] in (["go"], ["gofmt"]):
        return _go_tool(arguments)
    steps = STEPS | FOR_TESTS
    unknown = [name for name in arguments if name not in steps]
    if unknown:
        print(f"no such step: {', '.join(unknown)}; there are {', '.join(steps)}", file=sys.stderr)
        return 2
    os.umask(0o022)  # the programs read what is made here as other users
    cache = cache_dir()
    progress = Progress(cache / "logs")
    started = time.monotonic()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name in arguments or STEPS:
            steps[name](progress, cache)
    except SetupError as error:
        fail(error)
        return 1
    except PermissionError as error:
        fail(SetupError(str(error), "run as root, or set SANDLOT_CACHE_DIR to a directory of yours"))
        return 1
    print(f"setup: done in {time.monotonic() - started:.1f} s", flush=True)
    return 0


def _go_tool(arguments: list[str]) -> int:
    cache = cache_dir()
    try:
        go = find_go(Progress(cache / "logs"), cache)
    except SetupError as error:
        fail(error)
        return 1
    root = Path((output_of([go, "env", "GOROOT"]) or "").strip())
    tool = root / "bin" / arguments[0]
    return subprocess.run(
        [str(tool), *arguments[1:]], cwd=guest.SOURCES, env={**os.environ, **GO_ENV}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
