"""Both versions over trees of plain files; killing is tested on the kernel's own, in the contract of the runtime."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.cgroups import Cgroups, Limits, Meters
from sandboxd.cgroups import tree as tree_module
from sandboxd.cgroups.v1 import V1
from sandboxd.cgroups.v2 import V2

MIB = 1024 * 1024
LIMITS = Limits(memory_bytes=256 * MIB, cpus=1.5, weight=1.5, pids=300)
ONE = "sbx" + "a" * 20


def _total() -> int:
    return 8192 * MIB


@pytest.fixture
def v1_root(tmp_path: Path) -> Path:
    root = tmp_path / "cgroup"
    for controller in ("memory", "cpu,cpuacct", "pids", "devices", "unified"):
        (root / controller).mkdir(parents=True)
        (root / controller / "cgroup.procs").write_text("")
    (root / "cpu").symlink_to("cpu,cpuacct")
    (root / "cpuacct").symlink_to("cpu,cpuacct")
    (root / "unified/cgroup.controllers").write_text("")
    return root


@pytest.fixture
def v2_root(tmp_path: Path) -> Path:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for group in ("", "sandlot-x", "sandlot-x/sandboxes"):
        (root / group).mkdir(exist_ok=True)
        (root / group / "cgroup.subtree_control").write_text("")
    return root


@pytest.fixture
def removable(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the kernel's tree a group goes although it has files."""
    monkeypatch.setattr(Path, "rmdir", _remove_group)


def _remove_group(path: Path) -> None:
    shutil.rmtree(path)


def test_v1_makes_limits_and_meters(v1_root: Path) -> None:
    groups = Cgroups("x", v1_root, _total)
    groups.set_up(1024 * MIB)
    assert (v1_root / "memory/sandlot-x/memory.limit_in_bytes").read_text() == str(7168 * MIB)
    groups.make(ONE, LIMITS)
    group = f"sandlot-x/sandboxes/{ONE}"
    assert groups.path(ONE) == f"/{group}"
    assert (v1_root / "memory" / group / "memory.limit_in_bytes").read_text() == str(256 * MIB)
    assert (v1_root / "cpu" / group / "cpu.cfs_quota_us").read_text() == "150000"
    assert (v1_root / "cpu" / group / "cpu.cfs_period_us").read_text() == "100000"
    assert (v1_root / "pids" / group / "pids.max").read_text() == "300"
    assert groups.meters(ONE) is None
    memory = v1_root / "memory" / group
    (memory / "memory.usage_in_bytes").write_text("100\n")
    (memory / "memory.max_usage_in_bytes").write_text("200\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (memory / "cgroup.procs").write_text("10\n11\n")
    (v1_root / "cpu" / group / "cpuacct.usage").write_text("2500000000\n")
    assert groups.meters(ONE) == Meters(
        cpu_used_seconds=2.5,
        memory_used_bytes=100,
        memory_peak_bytes=200,
        memory_limit_bytes=256 * MIB,
        oom_kills=3,
        processes=2,
    )


def test_v1_needs_its_controllers(v1_root: Path) -> None:
    shutil.rmtree(v1_root / "pids")
    with pytest.raises(OSError, match="pids"):
        V1(v1_root)


@pytest.mark.usefixtures("removable")
async def test_v1_removes_what_the_runtime_added(v1_root: Path) -> None:
    groups = Cgroups("x", v1_root, _total)
    groups.set_up(0)
    groups.make(ONE, LIMITS)
    added = v1_root / "devices/sandlot-x/sandboxes" / ONE
    added.mkdir(parents=True)
    assert groups.ids() == {ONE}
    await groups.end(ONE)
    assert not added.exists()
    assert groups.ids() == set()
    await groups.remove_all()
    assert not (v1_root / "memory/sandlot-x").exists()


def test_v2_makes_limits_and_meters(v2_root: Path) -> None:
    groups = Cgroups("x", v2_root, _total)
    groups.set_up(1024 * MIB)
    assert (v2_root / "sandlot-x/memory.max").read_text() == str(7168 * MIB)
    groups.make(ONE, LIMITS)
    for ancestor in ("", "sandlot-x", "sandlot-x/sandboxes"):
        assert (v2_root / ancestor / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    group = v2_root / "sandlot-x/sandboxes" / ONE
    assert (group / "memory.max").read_text() == str(256 * MIB)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "cpu.max").read_text() == "150000 100000"
    assert (group / "cpu.weight").read_text() == "150"
    assert (group / "pids.max").read_text() == "300"
    assert groups.meters(ONE) is None
    (group / "memory.current").write_text("100\n")
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n")
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    (group / "cgroup.procs").write_text("10\n")
    meters = groups.meters(ONE)
    assert meters == Meters(
        cpu_used_seconds=2.5,
        memory_used_bytes=100,
        memory_peak_bytes=100,
        memory_limit_bytes=256 * MIB,
        oom_kills=1,
        processes=1,
    )
    (group / "memory.peak").write_text("300\n")
    meters = groups.meters(ONE)
    assert meters is not None
    assert meters.memory_peak_bytes == 300


def test_v2_switches_on_only_what_is_off(v2_root: Path) -> None:
    (v2_root / "cgroup.subtree_control").write_text("cpu io memory pids")
    Cgroups("x", v2_root, _total).set_up(0)
    assert (v2_root / "cgroup.subtree_control").read_text() == "cpu io memory pids"


def test_v2_needs_its_controllers(v2_root: Path) -> None:
    (v2_root / "cgroup.controllers").write_text("cpu io")
    with pytest.raises(OSError, match="memory, pids"):
        V2(v2_root)


def test_v2_kills_at_once_where_the_kernel_can(v2_root: Path) -> None:
    tree = V2(v2_root)
    tree.make_plain("sandlot-x/act/one")
    tree.kill("sandlot-x/act/one")
    tree.kill("sandlot-x/act/none")
    (v2_root / "sandlot-x/act/one/cgroup.kill").write_text("")
    tree.kill("sandlot-x/act/one")
    assert (v2_root / "sandlot-x/act/one/cgroup.kill").read_text() == "1"


@pytest.mark.usefixtures("removable")
async def test_v2_removes(v2_root: Path) -> None:
    groups = Cgroups("x", v2_root, _total)
    groups.set_up(0)
    groups.make(ONE, LIMITS)
    groups.make_act("node")
    assert groups.ids() == {ONE, "node"}
    await groups.end(ONE)
    await groups.end_act("node")
    assert groups.ids() == set()


def test_a_command_enters_its_group_or_never_runs(v2_root: Path, tmp_path: Path) -> None:
    groups = Cgroups("x", v2_root, _total)
    prefix = groups.make_act("node")
    assert "node" in groups.acting()
    ran = subprocess.run([*prefix, sys.executable, "-c", "print('ran')"], check=True, capture_output=True, text=True)
    assert ran.stdout == "ran\n"
    procs = v2_root / "sandlot-x/act/node/cgroup.procs"
    assert procs.read_text().strip().isdigit()
    shutil.rmtree(procs.parent)
    late = subprocess.run([*prefix, "touch", str(tmp_path / "ran")], check=False, capture_output=True)
    assert late.returncode != 0
    assert not (tmp_path / "ran").exists()


def test_members_are_counted_with_those_below(v2_root: Path) -> None:
    below = v2_root / "a/b"
    below.mkdir(parents=True)
    (v2_root / "a/cgroup.procs").write_text("1\n2\n")
    (below / "cgroup.procs").write_text("3\n")
    assert V2(v2_root).members("a") == {1, 2, 3}
    assert V2(v2_root).members("none") == set()


def test_a_busy_group_is_not_removed(v2_root: Path) -> None:
    (v2_root / "a").mkdir()
    (v2_root / "a/cgroup.procs").write_text("1\n")
    assert not tree_module.remove_directories(v2_root / "a")
    assert tree_module.remove_directories(v2_root / "none")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "x" * 65])
def test_names_cannot_lead_elsewhere(v2_root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        Cgroups("x", v2_root, _total).path(name)


def test_the_sandboxes_keep_at_least_a_quarter(v2_root: Path) -> None:
    Cgroups("x", v2_root, _total).set_up(100_000 * MIB)
    assert (v2_root / "sandlot-x/memory.max").read_text() == str(2048 * MIB)
