"""Uninstall: nothing is left, whether or not anything works; what is others' stays."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import harness
from harness import Platform
from infra import residue
from infra.launcher import uninstall, units


@pytest.fixture
def box() -> Generator[Platform]:
    directory = Path(tempfile.mkdtemp(prefix="sandlot-", dir="/var/tmp"))
    cache = Path(tempfile.mkdtemp(prefix="sandlot-cache-", dir="/var/tmp"))
    cache.chmod(0o755)
    # Of its own, because a purge takes it away. Links: what set-up made is large, and somebody else's.
    ours = harness.cache_dir()
    for name in ("guest", "runsc"):
        shutil.copytree(ours / name, cache / name, symlinks=True)
    shutil.copytree(ours / "images", cache / "images", symlinks=True, copy_function=_link)
    made = harness.described(directory, cache_dir=str(cache))
    env = {name: value for name, value in made.env.items() if name not in {"SANDLOT_RUNSC", "SANDLOT_GUEST_DIR"}}
    made = Platform(config=made.config, env=env)
    try:
        yield made
    finally:
        uninstall.sweep(made.config)
        made.stop_programs()
        if "http" in made.__dict__:
            made.http.close()
        for path in (directory, cache, made.config.run_dir):
            shutil.rmtree(path, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def sandlotd(box: Platform, *words: str, say: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", *words]
    return subprocess.run(command, env=dict(box.env), input=say, capture_output=True, text=True, check=False)


def left(box: Platform) -> set[residue.Residue]:
    return residue.find(box.instance, [box.config.run_dir, box.config.data_dir, box.config.cache_dir])


def test_the_machine_is_as_before(box: Platform) -> None:
    box.start()
    sandbox = box.create()["id"]
    box.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["true"]}).raise_for_status()
    refused = sandlotd(box, "uninstall", "--purge", say="n\n")
    assert refused.returncode == 1
    assert str(box.config.data_dir / "node.key") in refused.stdout
    assert box.http.get(f"/v1/sandboxes/{sandbox}").json()["state"] == "running"

    done = sandlotd(box, "uninstall", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(box) == set()
    assert not box.config.run_dir.exists()
    assert box.config.key_path.exists()  # data is kept unless it is asked for
    box.stop_programs()

    (box.config.data_dir / "mine").write_text("somebody's own")
    for _ in range(2):  # and may be repeated
        done = sandlotd(box, "uninstall", "--purge", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in box.config.data_dir.iterdir() if path.name != "launcher.log"] == ["mine"]
    assert not box.config.cache_dir.exists()
    assert left(box) == set()


@pytest.mark.parametrize("broken", ["runsc", "ledger"])
def test_it_works_where_nothing_else_does(box: Platform, broken: str) -> None:
    """Killed with sandboxes running, and the node agent cannot start any more."""
    box.start()
    box.create()
    subprocess.run(["kill", "-9", str(box.launcher_pid())], check=True)
    box.stop_programs()
    harness.eventually(lambda: not box.config.node_socket.exists() or not _listens(box), "the node agent gone")
    if broken == "runsc":
        shutil.rmtree(box.config.cache_dir / "runsc")
    else:
        (box.config.data_dir / "ledger.db").write_text("no ledger" * 1000)
    assert left(box)
    done = sandlotd(box, "uninstall", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(box) == set()


def _listens(box: Platform) -> bool:
    return bool([item for item in residue.find(box.instance, [box.config.run_dir]) if "sandboxd.sock" in item.name])


def test_a_cache_that_another_instance_runs_from_stays(box: Platform, start_platform: Callable[..., Platform]) -> None:
    other = start_platform(runtime="fake", cache_dir=str(box.config.cache_dir))
    assert uninstall.cache_is_shared(box.config)
    assert not uninstall.cache_is_shared(other.config)
    box.config.key_path.parent.mkdir(parents=True)
    box.config.key_path.touch()
    done = sandlotd(box, "uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (box.config.cache_dir / "guest").exists()
    assert not box.config.key_path.exists()


def test_units_go_too(box: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "closed_ancestors", lambda _needed: {})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] - stands for a function
    unit_dir = tmp_path / "units"
    unit_dir.mkdir()
    units.install(box.config, box.env, unit_dir=unit_dir, env_dir=tmp_path / "etc")
    said: list[str] = []
    uninstall.uninstall(box.config, box.env, purge=False, unit_dir=unit_dir, say=said.append)
    assert list(unit_dir.iterdir()) == []
    assert uninstall.plan(box.config, purge=False, unit_dir=unit_dir).is_empty
