"""The ready pool on the real thing: a claimed sandbox is what a cold one would have been, and nothing is left."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import Platform, platform
from infra import residue
from netpolicy.compile import ROUTER_TABLE
from netpolicy.elements import OPEN_IF
from netpolicy.router_side import SLOT_PREFIX
from sandboxd.contract.messages import Resources
from sandboxd.runtime import bundle

# Everything a program may look at to find out where it is; then what may differ is taken out.
LOOK = r"""
id; pwd; umask; hostname; nproc; env | grep -v SANDLOT_SANDBOX_ID | sort; cat /etc/hosts /etc/resolv.conf /etc/hostname
grep MemTotal /proc/meminfo; free -m | head -1; df -P / /dev/shm | awk '{print $2, $6}'; mount; ulimit -a
cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us /sys/fs/cgroup/memory/memory.limit_in_bytes
cat /proc/self/cgroup /proc/cmdline /proc/version; ls -A / /tmp /run /dev /dev/shm /root /home/user 2>&1
find / -xdev -newer /etc/passwd -not -path '/proc/*' -not -path '/sys/*' -not -path '/dev/*' 2>/dev/null | sort
ls /sys/fs/cgroup/pids/sandlot; ps -eo pid,ppid,user,args | grep -v -e 'ps -eo' -e 'bash -c'
tr '\0' '\n' < /proc/1/environ
cat /proc/net/dev | awk '{print $1}'; ip addr 2>/dev/null; wc -c < /proc/sys/kernel/random/boot_id
"""
_MAY_DIFFER = (
    (r"sbx[a-z0-7]{20}", "<sandbox>"),  # in /proc/self/cgroup a claimed one reads the name it had in the pool
    (r"10\.231\.\d+\.\d+", "<address>"),
    (r"--token-sha256 \S+", "<token>"),
    (r" --backstop-seconds \S+", ""),
    (r"link/ether \S+", "<mac>"),
)

FORKS = """
import os, time
made = 0
try:
    while made < 300:
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""


@pytest.fixture(scope="module", name="pooled")
def _pooled() -> Generator[Platform]:
    with platform(pool_size="3", pool_max="6", pool_pause_seconds="0", heartbeat_seconds="0.5") as started:
        yield started


@pytest.fixture(autouse=True)
def _tidy(pooled: Platform) -> Generator[None]:
    """Whatever a test leaves would be taken for a ready one by the next."""
    yield
    delete(pooled, *pooled.http.get("/v1/sandboxes").json()["items"])


def pool_of(pooled: Platform) -> dict[str, Any]:
    with pooled.node_http() as http:
        return http.get("/node/v1/report").json()["pool"]


def ready(pooled: Platform) -> int:
    return sum(each["ready"] for each in pool_of(pooled)["ready"])


def claimed(pooled: Platform, **fields: Any) -> dict[str, Any]:
    """Create a sandbox that must come from the pool."""
    pooled.wait_until(lambda: ready(pooled) >= 1, "one is ready")
    hits = pool_of(pooled)["hits"]
    made = pooled.create(**fields)
    assert pool_of(pooled)["hits"] == hits + 1
    assert pool_of(pooled)["claim_failures"] == 0
    return made


def cpu_seconds(pooled: Platform, made: dict[str, Any]) -> float:
    with pooled.node_http() as http:
        return http.get(f"/node/v1/sandboxes/{made['id']}").json()["cpu_used_seconds"]


def delete(pooled: Platform, *made: dict[str, Any]) -> None:
    for each in made:
        pooled.http.delete(f"/v1/sandboxes/{each['id']}", params={"grace_seconds": 0})


def run(pooled: Platform, made: dict[str, Any], shell: str, **fields: Any) -> str:
    answer = pooled.http.post(f"/v1/sandboxes/{made['id']}/run", json={"shell": shell, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["stdout"]


def handle_of(pooled: Platform, made: dict[str, Any]) -> str:
    """The name the node's own parts know it by; what is inside sees it too."""
    found = re.search(r"sbx[a-z0-7]{20}", run(pooled, made, "cat /proc/self/cgroup"))
    assert found is not None
    return found[0]


@pytest.mark.parametrize("egress", ["open", "blocked"])
@pytest.mark.parametrize("resources", [{}, {"cpus": 0.5, "max_processes": 64}, {"cpus": 2}])
def test_a_claimed_one_looks_like_a_cold_one(
    pooled: Platform, platform: Platform, egress: str, resources: dict[str, float]
) -> None:
    fields = {
        "env": {"OWN": "yes"}, "name": "a-name", "user": "root", "resources": resources, "egress": {"mode": egress},
    }  # fmt: skip
    warm, cold = claimed(pooled, **fields), platform.create(**fields)
    seen = [run(pooled, warm, LOOK), run(platform, cold, LOOK)]
    for pattern, word in _MAY_DIFFER:
        seen = [re.sub(pattern, word, text) for text in seen]
    assert seen[0] == seen[1]
    assert "MemTotal:        1048576 kB" in seen[0]
    assert run(pooled, warm, "echo $SANDLOT_SANDBOX_ID") == warm["id"] + "\n"
    same = ("user", "cwd", "shell", "resources", "state", "egress")
    assert {name: warm[name] for name in same} == {name: cold[name] for name in same}
    delete(pooled, warm)
    delete(platform, cold)


def test_no_two_share_their_randomness(pooled: Platform) -> None:
    made = [claimed(pooled) for _ in range(2)]
    seen = [
        run(pooled, each, "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id") for each in made
    ]
    assert seen[0] != seen[1]
    assert not set(seen[0].split()) <= set(seen[1].split())
    delete(pooled, *made)


def test_limits_are_those_of_the_claim(pooled: Platform) -> None:
    made = claimed(pooled, resources={"cpus": 0.5, "max_processes": 100})
    handle = handle_of(pooled, made)
    groups = [
        Path(item.name)
        for item in residue.find(pooled.instance)
        if item.kind == "cgroup" and item.name.endswith(f"sandboxes/{handle}")
    ]
    limits = bundle.limits(Resources(cpus=0.5, max_processes=100))
    texts = {
        name: path.read_text().strip()
        for group in groups
        for name in (
            "cpu.cfs_quota_us",
            "cpu.shares",
            "cpu.max",
            "cpu.weight",
            "pids.max",
            "memory.limit_in_bytes",
            "memory.max",
        )
        if (path := group / name).exists()
    }
    assert texts.get("cpu.cfs_quota_us", "50000") == "50000"
    assert texts.get("cpu.shares", "512") == "512"
    assert texts.get("cpu.max", "50000 100000") == "50000 100000"
    assert texts.get("cpu.weight", "50") == "50"
    assert texts["pids.max"] == str(limits.pids)
    memory = int(texts.get("memory.limit_in_bytes") or texts["memory.max"])
    assert abs(memory - limits.memory_bytes) < 4096
    # Inside it is a limit as well: not all of 300 can be there at once.
    assert 0 < int(run(pooled, made, f"python3 -c '{FORKS}'")) < 150
    before, begun = cpu_seconds(pooled, made), time.monotonic()
    run(pooled, made, "timeout 2 sh -c 'while :; do :; done & while :; do :; done'")
    used = cpu_seconds(pooled, made) - before
    assert used < 0.5 * (time.monotonic() - begun) + 0.2  # two loops, and half a processor
    delete(pooled, made)


def test_out_of_memory_is_its_reason(pooled: Platform) -> None:
    made = claimed(pooled)
    pooled.http.post(
        f"/v1/sandboxes/{made['id']}/run", json={"shell": "python3 -c 'a = bytearray(1400 << 20)'; sleep 60"}
    )
    ended = pooled.ended(made["id"])
    assert (ended["state"], ended["reason"]) == ("failed", "out_of_memory")


@pytest.mark.parametrize("mode", ["open", "blocked"])
def test_its_egress_is_what_was_asked_for_and_the_readys_is_blocked(pooled: Platform, mode: str) -> None:
    made = claimed(pooled, egress={"mode": mode})
    handle = handle_of(pooled, made)
    own = re.search(r"10\.231\.(\d+)\.(\d+)", run(pooled, made, "cat /etc/hosts"))
    assert own is not None
    interface = f"{SLOT_PREFIX}{(int(own[1]) * 256 + int(own[2])) // 2}"
    pin = pooled.config.run_dir / "runsc" / "netns" / "router"
    listed = subprocess.run(
        ["nsenter", f"--net={pin}", "nft", "-j", "list", "set", "inet", ROUTER_TABLE, OPEN_IF],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    opened = {each for row in json.loads(listed)["nftables"] for each in row.get("set", {}).get("elem", ())}
    assert opened == ({interface} if mode == "open" else set())
    assert handle != made["id"]
    delete(pooled, made)


def test_meters_begin_with_the_claim(pooled: Platform) -> None:
    made = claimed(pooled)
    assert 0 <= cpu_seconds(pooled, made) < 0.1  # a boot alone takes more
    delete(pooled, made)


def test_a_killed_node_keeps_the_claimed_and_none_of_the_ready(pooled: Platform) -> None:
    made = claimed(pooled)
    process = pooled.http.post(f"/v1/sandboxes/{made['id']}/processes", json={"shell": "sleep 1; echo on"}).json()
    pooled.wait_until(lambda: ready(pooled) == 3, "the pool is full")
    before = pooled.node_sandboxes()
    os.kill(pooled.pid("node"), signal.SIGKILL)
    pooled.wait_ready()
    result = f"/v1/sandboxes/{made['id']}/processes/{process['id']}/result"
    assert pooled.http.get(result, params={"wait_seconds": 30}).json()["stdout"] == "on\n"
    pooled.wait_until(lambda: ready(pooled) == 3, "the pool is full again")
    assert pooled.node_sandboxes() & before == {handle_of(pooled, made)}
    delete(pooled, made)
    pooled.wait_until(lambda: len(pooled.node_sandboxes()) == 3, "nothing is left of it")


def test_a_burst_beyond_the_pool_starts_all(pooled: Platform) -> None:
    pooled.wait_until(lambda: ready(pooled) == 3, "the pool is full")
    ids = [pooled.http.post("/v1/sandboxes", json={"wait_seconds": 0}).json() for _ in range(8)]
    assert {pooled.settled(each["id"])["state"] for each in ids} == {"running"}
    assert {run(pooled, each, "echo $SANDLOT_SANDBOX_ID").strip() for each in ids} == {each["id"] for each in ids}
    delete(pooled, *ids)


def test_stopped_programs_leave_no_ready_ones(pooled: Platform) -> None:
    made = claimed(pooled)
    handle = handle_of(pooled, made)
    pooled.stop_programs()
    assert pooled.node_sandboxes() == {handle}
    pooled.start()
    assert run(pooled, made, "echo on") == "on\n"
    delete(pooled, made)
