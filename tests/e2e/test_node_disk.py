"""The node's disk fills up: the sandbox that wrote most is stopped and says so, and the others and the node go on."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from harness import Platform, start_platform

DISK_MIB = 1400
RESERVE_MIB = 300
WATERMARK_MIB = 200


@pytest.fixture(scope="module", name="small")
def _small() -> Generator[Platform]:
    """A platform whose data is on a small disk of its own."""
    home = Path(tempfile.mkdtemp(prefix="sandlot-disk-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "sandlot-test", str(home)], check=True)
    try:
        started = start_platform(
            home / "data",
            heartbeat_seconds="0.5",
            disk_reserve_mib=str(RESERVE_MIB),
            disk_watermark_mib=str(WATERMARK_MIB),
        )
        try:
            yield started
        finally:
            started.stop()
    finally:
        subprocess.run(["umount", str(home)], check=True)
        home.rmdir()


def _free_mib(platform: Platform) -> int:
    status = os.statvfs(platform.config.data_dir)
    return status.f_bavail * status.f_frsize >> 20


def test_the_one_that_wrote_most_is_stopped(small: Platform) -> None:
    modest = small.create(resources={"disk_mib": 64})["id"]
    greedy = small.create(resources={"disk_mib": 1000})["id"]
    more = _free_mib(small) - WATERMARK_MIB + 60
    # Its answer is a result that says the sandbox was stopped, or a broken connection.
    with contextlib.suppress(httpx.TransportError):
        small.http.post(
            f"/v1/sandboxes/{greedy}/run", json={"shell": f"head -c {more}M /dev/urandom > f; sync; sleep 600"}
        )
    ended = small.ended(greedy)
    assert (ended["state"], ended["reason"]) == ("failed", "node_disk_full")
    assert "disk" in ended["message"]
    done = small.http.post(f"/v1/sandboxes/{modest}/run", json={"argv": ["echo", "on"]}).json()
    assert done["stdout"] == "on\n"
    small.wait_until(lambda: _free_mib(small) > RESERVE_MIB, "the disk given back")
    small.http.delete(f"/v1/sandboxes/{modest}", params={"grace_seconds": 0})


def test_pressure_refuses_clearly_and_passes(small: Platform) -> None:
    filler = small.config.data_dir.parent / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _free_mib(small) - RESERVE_MIB + 20 << 20)
    try:
        refused = small.http.post("/v1/sandboxes", json={"resources": {"disk_mib": 64}})
        body = refused.json()
        assert (refused.status_code, body["code"], body["retryable"]) == (503, "no_capacity", True), body
    finally:
        filler.unlink()
    made = small.create(resources={"disk_mib": 64})["id"]
    assert small.http.delete(f"/v1/sandboxes/{made}", params={"grace_seconds": 0}).json()["reason"] == "requested"


def test_not_a_byte_left_is_survived(small: Platform) -> None:
    sandbox = small.create(resources={"disk_mib": 64})["id"]
    filler = small.config.data_dir.parent / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    try:
        assert _free_mib(small) == 0
        for _ in range(5):
            refused = small.http.post("/v1/sandboxes", json={"resources": {"disk_mib": 64}})
            assert refused.status_code in {503, 507}, refused.text
            assert refused.json()["hint"]
    finally:
        filler.unlink()
    small.wait_ready()
    # It was the only one to stop, or nobody had to be.
    if (ended := small.settled(sandbox))["state"] != "running":
        assert ended["reason"] == "node_disk_full"
    made = small.create(resources={"disk_mib": 64})["id"]
    for each in (made, sandbox):
        assert small.http.delete(f"/v1/sandboxes/{each}", params={"grace_seconds": 0}).status_code == 200
