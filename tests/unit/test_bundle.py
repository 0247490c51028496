import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.contract.messages import Resources
from sandboxd.runtime import bundle
from sandboxd.runtime.base import Launch

LAUNCH = Launch(
    sandbox_id="sbx" + "a" * 20,
    image_path=Path("/data/images/one.erofs"),
    hostname="box",
    resources=Resources(cpus=1.5, memory_mib=1024, disk_mib=4096, max_processes=100),
    netns_path=Path("/run/netns/slot"),
    address="10.0.0.1",
    peer="10.0.0.0",
    upper_dir=Path("/data/upper/one"),
    guest_dir=Path("/cache/guest/1"),
    token_sha256="ab" * 32,
    backstop_seconds=90.5,
)


def _configuration(launch: Launch = LAUNCH) -> dict[str, Any]:
    return bundle.configuration(launch, Path("/bundle/rootfs"), "/sandlot-x/sandboxes/one")


def test_it_is_json_and_holds_what_it_must() -> None:
    configuration = json.loads(json.dumps(_configuration()))
    assert configuration["hostname"] == "box"
    assert configuration["root"] == {"path": "/bundle/rootfs", "readonly": False}
    assert configuration["linux"]["cgroupsPath"] == "/sandlot-x/sandboxes/one"
    assert {"type": "network", "path": "/run/netns/slot"} in configuration["linux"]["namespaces"]


def test_pid_1_is_the_guest() -> None:
    assert _configuration()["process"]["args"] == [
        "/.sandlot/guest", "--listen", "0.0.0.0:49979", "--peer", "10.0.0.0", "--token-sha256", "ab" * 32,
        "--backstop-seconds", "90.500",
    ]  # fmt: skip
    without = _configuration(replace(LAUNCH, backstop_seconds=None))
    assert "--backstop-seconds" not in without["process"]["args"]


def test_the_root_is_the_image_under_a_bounded_overlay_on_disk() -> None:
    annotations = _configuration()["annotations"]
    assert annotations == {
        "dev.gvisor.spec.rootfs.source": "/data/images/one.erofs",
        "dev.gvisor.spec.rootfs.type": "erofs",
        "dev.gvisor.spec.rootfs.overlay": "dir=/data/upper/one",
        "dev.gvisor.spec.rootfs.options": "size=4096m",
    }
    flags = bundle.flags(Path("/run/state"), Path("/run/panic"), LAUNCH)
    assert "--overlay2=root:dir=/data/upper/one,size=4096m" in flags


def test_the_only_bind_is_the_guest_and_it_is_read_only() -> None:
    binds = [mount for mount in _configuration()["mounts"] if mount["type"] == "bind"]
    assert len(binds) == 1
    assert binds[0]["source"] == "/cache/guest/1"
    assert binds[0]["destination"] == "/.sandlot"
    assert "ro" in binds[0]["options"]


def test_memory_file_systems_are_bounded() -> None:
    mounts = {mount["destination"]: mount for mount in _configuration()["mounts"]}
    assert "size=512m" in mounts["/dev/shm"]["options"]
    assert mounts["/tmp"]["type"] not in {"tmpfs", "bind"}


def test_pid_1_has_no_more_than_it_needs() -> None:
    capabilities = _configuration()["process"]["capabilities"]
    held = set(capabilities["bounding"])
    assert held.isdisjoint({"CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_MKNOD"})
    assert capabilities["ambient"] == capabilities["inheritable"] == []


def test_flags_close_what_is_open_to_the_host() -> None:
    flags = bundle.flags(Path("/run/state"), Path("/run/panic"), LAUNCH)
    for flag in (
        "--directfs=false",
        "--host-uds=none",
        "--host-fifo=none",
        "--net-raw=false",
        "--network=sandbox",
        "--character-device-policy=emulated-only",
    ):
        assert flag in flags
    assert not any("log=" in flag and "panic" not in flag for flag in flags)
    assert "--allow-flag-override" not in flags


@pytest.mark.parametrize("memory_mib", [64, 1024, 65536])
def test_overhead_is_on_top(memory_mib: int) -> None:
    resources = Resources(memory_mib=memory_mib, cpus=0.5, max_processes=100)
    final, first = bundle.limits(resources), bundle.limits_at_create(resources)
    asked = memory_mib * bundle.MIB
    assert final.memory_bytes == asked + 64 * bundle.MIB + asked // 32
    assert first.memory_bytes == max(asked, 128 * bundle.MIB) <= final.memory_bytes
    assert (final.cpus, first.cpus) == (0.5, 1.0)
    assert final.pids == first.pids == 1224
