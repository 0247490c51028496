"""Backup while everything runs, restore into the same place and another; failures and kills half-way."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import Platform, eventually
from infra.backup import restore as restoring
from infra.backup.copy_database import main as copy_database
from infra.backup.ledger import MESSAGE
from infra.launcher import swap
from infra.launcher.account import LauncherError


@pytest.fixture(scope="module")
def box() -> Generator[Platform]:
    """A platform over the fake runtime: what is kept is the same, and it starts at once."""
    with harness.platform(runtime="fake", heartbeat_seconds="0.5") as started:
        yield started


def sandlotd(box: Platform, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", *words]
    return subprocess.run(command, env={**box.env, **env}, capture_output=True, text=True, check=False)


def backed_up(box: Platform, target: Path, *options: str) -> Path:
    done = sandlotd(box, "backup", str(target), *options)
    assert done.returncode == 0, done.stderr
    return target


def contents(backup: Path) -> dict[str, bytes]:
    with tarfile.open(backup) as archive:
        return {each.name: file.read() for each in archive if (file := archive.extractfile(each)) is not None}


def packed(target: Path, files: dict[str, bytes]) -> Path:
    """Write an archive by hand, as somebody would who changes a backup."""
    with tarfile.open(target, "w:gz") as archive:
        for name, content in files.items():
            path = target.with_name("member")
            path.write_bytes(content)
            archive.add(path, arcname=name)
    return target


def elsewhere(data: Path) -> dict[str, str]:
    """Settings of an instance with directories of its own, which the api's user can reach."""
    for path in (data.parent, *data.parent.parents[:2]):
        path.chmod(0o755)
    return {
        "SANDLOT_DATA_DIR": str(data),
        "SANDLOT_RUN_DIR": str(data.with_name("run")),
        "SANDLOT_INSTANCE": harness.fresh_instance(),
    }


def test_a_backup_under_load_is_whole_and_private(box: Platform, tmp_path: Path) -> None:
    before = {box.create()["id"] for _ in range(3)}
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            sandbox = box.create()["id"]
            box.http.delete(f"/v1/sandboxes/{sandbox}").raise_for_status()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        backup = backed_up(box, tmp_path / "backup")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    held = contents(backup)
    described = json.loads(held["manifest.json"])
    assert [entry["name"] for entry in described["files"]] == [name for name in held if name != "manifest.json"]
    for name, table in (("api/api.db", "sandboxes"), ("node/ledger.db", "sandboxes")):
        with sqlite3.connect(":memory:") as database:
            database.deserialize(held[name])
            assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            ids = {row[0] for row in database.execute(f"SELECT id FROM {table}")}  # noqa: S608 - the names above
            assert before <= ids
        database.close()
    assert held["api/root-key"].decode().strip() == box.key
    assert held["node/node.key"] == (box.config.data_dir / "node.key").read_bytes()
    assert not list(box.config.data_dir.glob(".backup-*"))


def test_a_file_that_is_there_is_replaced_only_when_asked(box: Platform, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    target.write_text("mine")
    done = sandlotd(box, "backup", str(target))
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert target.read_text() == "mine"
    backed_up(box, target, "--force")
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_not_followed(box: Platform, tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "backup"
    victim.write_text("kept")
    target.symlink_to(victim)
    assert sandlotd(box, "backup", str(target)).returncode == 1
    backed_up(box, target, "--force")
    assert victim.read_text() == "kept"
    assert not target.is_symlink()


def test_a_running_instance_is_not_restored_over(box: Platform, tmp_path: Path) -> None:
    backup = backed_up(box, tmp_path / "backup")
    done = sandlotd(box, "restore", str(backup), "--force")
    assert done.returncode == 1
    assert "already up" in done.stderr
    box.wait_ready()


def test_elsewhere_everything_is_there_and_ends_are_true(
    box: Platform, tmp_path: Path, start_platform: Callable[..., Platform]
) -> None:
    box.http.put("/v1/secrets/KEPT", json={"value": "a value that moves", "env": True}).raise_for_status()
    ended, running = box.create(metadata={"a": "b"})["id"], box.create()["id"]
    box.http.delete(f"/v1/sandboxes/{ended}").raise_for_status()
    backup = backed_up(box, tmp_path / "backup")
    other = start_platform(runtime="fake", heartbeat_seconds="0.5")
    other.stop_programs()
    refused = sandlotd(other, "restore", str(backup))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    node_key = (other.config.data_dir / "node.key").read_bytes()
    done = sandlotd(other, "restore", str(backup), "--force")
    assert done.returncode == 0, done.stderr
    (aside,) = other.config.data_dir.glob("replaced-*")
    assert (aside / "node.key").read_bytes() == node_key
    other.start()
    assert other.key == box.key
    mine = other.http.get(f"/v1/sandboxes/{ended}").raise_for_status().json()
    assert (mine["state"], mine["reason"], mine["metadata"]) == ("stopped", "requested", {"a": "b"})
    gone = other.ended(running)
    assert (gone["state"], gone["reason"], gone["message"]) == ("failed", "node_restarted", MESSAGE)
    assert box.http.get(f"/v1/sandboxes/{running}").json()["state"] == "running"
    new = other.create(secret_env={"TOKEN": "KEPT"})["id"]
    ran = other.http.post(f"/v1/sandboxes/{new}/run", json={"argv": ["env"]}).raise_for_status().json()
    assert "TOKEN=a value that moves\n" in ran["stdout"]
    other.http.delete(f"/v1/sandboxes/{new}").raise_for_status()


def test_an_empty_place_needs_no_force(box: Platform, tmp_path: Path) -> None:
    backup = backed_up(box, tmp_path / "backup")
    data = tmp_path / "data"
    env = elsewhere(data)
    done = sandlotd(box, "restore", str(backup), **env)
    assert done.returncode == 0, done.stderr
    assert (data / "api" / "root-key").read_text().strip() == box.key
    for name in ("secret-keys", "token-keys"):
        assert (data / "api" / name).read_bytes() == (box.config.data_dir / "api" / name).read_bytes()
        assert stat.S_IMODE((data / "api" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((data / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((data / "api").stat().st_mode) == 0o700
    assert (data / "api" / "api.db").owner() == box.config.api_user
    assert not list(data.glob("replaced-*"))
    assert not list(data.glob(".restore-*"))


@pytest.mark.parametrize("option", ["--images", "--no-images"])
def test_images_come_along_when_asked_and_their_records_always(box: Platform, tmp_path: Path, option: str) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    assert sandlotd(box, "image", "import", str(root), "tiny").returncode == 0
    backup = backed_up(box, tmp_path / "backup", option)
    data = tmp_path / "data"
    env = elsewhere(data)
    assert sandlotd(box, "restore", str(backup), **env).returncode == 0
    assert "tiny" in sandlotd(box, "image", "ls", **env).stdout
    assert len(list((data / "images").glob("*.erofs"))) == (option == "--images")
    # Made again from the same tree it is the same image, and has its names of before.
    assert sandlotd(box, "image", "import", str(root), "other", **env).returncode == 0
    assert "tiny,other" in sandlotd(box, "image", "ls", **env).stdout


@pytest.mark.parametrize("kind", ["flipped", "short", "more", "swapped", "link", "text", "newer"])
def test_what_is_not_as_it_was_made_is_refused(box: Platform, tmp_path: Path, kind: str) -> None:
    files = contents(backed_up(box, tmp_path / "backup"))
    changed = tmp_path / "changed"
    match kind:
        case "flipped":
            files["node/node.key"] = bytes(32)
        case "short":
            files.pop("node/node.json")
        case "more":
            files["more"] = b"x"
        case "swapped":
            files = dict(reversed(files.items()))
        case "newer":
            files["manifest.json"] = json.dumps(json.loads(files["manifest.json"]) | {"version": "99.0.0"}).encode()
        case _:
            pass
    packed(changed, files)
    if kind == "text":
        changed.write_text("no archive")
    if kind == "link":
        with tarfile.open(changed, "w:gz") as archive:
            archive.add(_written(tmp_path / "m", files["manifest.json"]), arcname="manifest.json")
            link = tarfile.TarInfo("api/root-key")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
            archive.addfile(link)
    data = tmp_path / "data"
    done = sandlotd(box, "restore", str(changed), **elsewhere(data))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "fix:" in done.stderr
    assert not (data / "node.key").exists()
    assert not list(data.glob(".restore-*"))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_restoring_half_way_leaves_the_old(box: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = backed_up(box, tmp_path / "backup")
    data = tmp_path / "data"
    env = elsewhere(data)
    assert sandlotd(box, "restore", str(backup), **env).returncode == 0
    config = box.config.model_copy(update={"data_dir": data, "run_dir": tmp_path / "run"})
    before = _tree(data)

    def fail(name: str) -> None:
        if name == "node.key":
            raise OSError("no space left")

    with pytest.raises(LauncherError, match="no space left"):
        restoring.restore(config, backup, force=True, moved=fail)
    assert _tree(data) == before


def _tree(base: Path) -> dict[str, bytes]:
    return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}


def test_a_restore_that_was_killed_is_undone_by_the_next_start(box: Platform, tmp_path: Path) -> None:
    backup = backed_up(box, tmp_path / "backup")
    data = tmp_path / "data"
    env = elsewhere(data)
    assert sandlotd(box, "restore", str(backup), **env).returncode == 0
    before = _tree(data)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from infra.backup.restore import restore\nfrom infra.config import LauncherConfig\n"
        "restore(LauncherConfig(), Path(sys.argv[1]), force=True, moved=lambda name: os._exit(9))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(backup)], env={**box.env, **env}, check=False)
    assert done.returncode == 9
    assert (data / swap.JOURNAL).exists()
    assert sandlotd(box, "down", **env).returncode == 0  # whatever starts first
    after = {
        name: content
        for name, content in _tree(data).items()
        if not name.startswith(("logs/", "history/", "ledger.db"))
    }
    assert after == {name: content for name, content in before.items() if not name.startswith("ledger.db")}


@pytest.mark.parametrize("wait", ["workplace", "nothing"])
def test_a_killed_backup_leaves_no_file(box: Platform, tmp_path: Path, wait: str) -> None:
    target = tmp_path / "backup"
    running = subprocess.Popen(
        [sys.executable, "-m", "infra.sandlotd", "backup", str(target), "--images"],
        env=dict(box.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if wait == "workplace":
        eventually(
            lambda: list(box.config.data_dir.glob(".backup-*")) or running.poll() is not None, "the copy under way"
        )
    running.send_signal(signal.SIGKILL)
    if running.wait() == -signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []
    backed_up(box, target, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


@pytest.fixture(scope="module")
def restored(box: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory where nothing runs."""
    directory = tmp_path_factory.mktemp("restored")
    backup = backed_up(box, directory / "backup")
    assert sandlotd(box, "restore", str(backup), **elsewhere(directory / "data")).returncode == 0
    return directory / "data"


@pytest.mark.parametrize("name", ["root-key", "secret", "secret-keys", "api.db", "api.db-wal"])
@pytest.mark.parametrize("kind", ["nothing", "link", "pipe", "hard link", "endless"])
def test_nothing_the_apis_user_puts_there_is_followed(
    box: Platform, restored: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """Root reads none of it, waits for none of it, and writes through none of it."""
    data = tmp_path / "data"
    env = elsewhere(data)
    subprocess.run(["cp", "-a", str(restored), str(data)], check=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * 32)
    victim.chmod(0o600)
    path = data / "api" / name
    if kind != "nothing":
        path.unlink(missing_ok=True)
    match kind:
        case "nothing":
            pass
        case "link":
            path.symlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "hard link":
            path.hardlink_to(victim)
        case _:
            path.touch()
            os.truncate(path, 1 << 42)
    done = subprocess.run(
        [sys.executable, "-m", "infra.sandlotd", "backup", str(tmp_path / "second")],
        env={**box.env, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert victim.read_bytes() == b"v" * 32
    assert kind != "nothing" or done.returncode == 0, done.stderr
    if (tmp_path / "second").exists():
        assert b"v" * 32 not in b"".join(contents(tmp_path / "second").values())
    assert not list(data.glob(".backup-*"))


def test_the_copy_of_a_database_is_one_whole_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "a b?.db", tmp_path / "copy.db"
    with sqlite3.connect(source) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('0001')")
        database.commit()
        copy_database(str(source), str(target))
    database.close()
    assert capsys.readouterr().out == "0001\n"
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]


def test_what_still_runs_is_taken_up_again(start_platform: Callable[..., Platform], tmp_path: Path) -> None:
    """On the same machine, over the real runtime: restored while sandboxes run on."""
    box = start_platform()
    sandbox, later = box.create()["id"], ""
    shell: dict[str, Any] = {"shell": "echo kept > /tmp/file"}
    box.http.post(f"/v1/sandboxes/{sandbox}/run", json=shell).raise_for_status()
    backup = backed_up(box, tmp_path / "backup")
    later = box.create()["id"]
    box.stop_programs()
    done = sandlotd(box, "restore", str(backup), "--force")
    assert done.returncode == 0, done.stderr
    assert "1 sandboxes still run here" in done.stdout
    box.start()
    answer = box.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["cat", "/tmp/file"]}).json()
    assert answer["stdout"] == "kept\n"
    # Made after the backup: nobody knows of it any more, so it is removed.
    assert box.http.get(f"/v1/sandboxes/{later}").status_code == 404
    box.wait_until(lambda: box.node_sandboxes() == {sandbox}, "the unknown one removed")
