"""Builds: a sandbox with a 20 MB difference made an image, a build of one step, the same again from the cache."""

import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import Platform
from harness import platform as start
from raw_sandbox import RawBox
from report import Row, median

ROUNDS = 5
_TWENTY = 20_000_000
_DIFFERENCE_LIMIT_MS = 400


async def builds(_platform: Platform, _raw: RawBox) -> list[Row]:
    """Measure on a platform of its own, whose images go with it."""
    with start(heartbeat_seconds="1") as platform:
        small = _small(platform)
        return [
            *_difference(platform, small, "a small image", _DIFFERENCE_LIMIT_MS),
            *_difference(platform, "base", "base (400 MB)", None),
            *_steps(platform),
        ]


def _small(platform: Platform) -> str:
    """An image of a shell and nothing else, some MB: what is measured is the difference, not its parent."""
    text = (
        "FROM scratch\nCOPY --from=base /bin/dash /bin/sh\nCOPY --from=base /bin/true /bin/head /bin/\n"
        "COPY --from=base /lib/x86_64-linux-gnu/libc.so.6 /lib/x86_64-linux-gnu/\nWORKDIR /tmp\n"
        "COPY --from=base /lib64/ld-linux-x86-64.so.2 /lib64/\nWORKDIR /\n"
    )
    return _made(platform, build={"dockerfile": text})["id"]


def _difference(platform: Platform, image: str, what: str, limit: int | None) -> list[Row]:
    taken: list[float] = []
    raw: list[float] = []
    sandbox = platform.create(image=image, user="0")["id"]
    command = f"head -c {_TWENTY} /dev/urandom > /twenty"
    for _ in range(ROUNDS):
        answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["/bin/sh", "-c", command]})
        assert answer.json()["exit_code"] == 0, answer.text
        raw.append(_tar_ms(platform, sandbox))
        begun = time.perf_counter()
        _made(platform, sandbox={"sandbox_id": sandbox})
        taken.append((time.perf_counter() - begun) * 1000)
    platform.http.delete(f"/v1/sandboxes/{sandbox}", params={"grace_seconds": 0})
    return [
        Row(name=f"image of a sandbox, 20 MB on {what}", unit="ms", value=median(taken), limit=limit),
        Row(name=f"of that, `runsc tar rootfs-upper` alone ({what})", unit="ms", value=median(raw)),
    ]


def _tar_ms(platform: Platform, sandbox: str) -> float:
    state = platform.config.run_dir / "runsc" / "state"
    with TemporaryDirectory(dir="/var/tmp") as place:
        command = [os.environ["SANDLOT_RUNSC"], f"--root={state}", "tar", "rootfs-upper"]
        begun = time.perf_counter()
        subprocess.run([*command, f"--file={Path(place) / 'tar'}", sandbox], check=True, capture_output=True)
        return (time.perf_counter() - begun) * 1000


def _steps(platform: Platform) -> list[Row]:
    first: list[float] = []
    again: list[float] = []
    for number in range(ROUNDS):
        build = {"dockerfile": f"FROM base\nRUN echo {number} > /tmp/x\n"}
        for times in (first, again):
            begun = time.perf_counter()
            _made(platform, build=build)
            times.append((time.perf_counter() - begun) * 1000)
    return [
        Row(name="build of one RUN on base (400 MB)", unit="ms", value=median(first)),
        Row(name="the same from the cache", unit="ms", value=median(again)),
    ]


def _made(platform: Platform, **spec: Any) -> dict[str, Any]:
    image = platform.http.post("/v1/images", json={"wait_seconds": 60, **spec}).raise_for_status().json()
    while image["state"] not in {"ready", "failed"}:
        image = platform.http.get(f"/v1/images/{image['id']}", params={"wait_seconds": 60}).json()
    assert image["state"] == "ready", image["message"]
    return image
