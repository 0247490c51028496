"""The support bundle: of a sandbox that runs, one that failed, one that nobody knows; and what must not be in it."""

import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import Platform
from infra.config import LauncherConfig
from infra.support import bundle
from infra.support.record import main as print_record

UNKNOWN = "sbx" + "a" * 20


@pytest.fixture(scope="module")
def box() -> Generator[Platform]:
    with harness.platform(log_level="debug", heartbeat_seconds="0.5") as started:
        yield started


def support(box: Platform, sandbox_id: str, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", "support", sandbox_id, str(target)]
    return subprocess.run(command, env=dict(box.env), capture_output=True, text=True, check=False)


def collected(box: Platform, sandbox_id: str, target: Path) -> dict[str, bytes]:
    done = support(box, sandbox_id, target)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        files = {each.name: file.read() for each in archive if (file := archive.extractfile(each)) is not None}
    return {name.removeprefix(f"{sandbox_id}/"): content for name, content in files.items()}


def sentry(box: Platform, sandbox_id: str) -> int:
    """Return the pid of a sandbox's sentry, from its runtime state."""
    (state,) = (box.config.runtime_dir / "state").glob(f"{sandbox_id}*.state")
    return json.loads(state.read_text())["sandbox"]["pid"]


def test_of_one_that_failed_everything_is_there(box: Platform, tmp_path: Path) -> None:
    sandbox = box.create()["id"]
    os.kill(sentry(box, sandbox), signal.SIGSEGV)
    assert box.ended(sandbox)["state"] == "failed"
    files = collected(box, sandbox, tmp_path / "bundle")
    assert json.loads(files["missing.json"]).keys() <= {"node.json"}  # the node forgets what the api has on record
    record = json.loads(files["record.json"])
    assert (record["id"], record["state"]) == (sandbox, "failed")
    failure = json.loads(files["failure.json"])
    assert failure["sandbox_id"] == sandbox
    assert failure["reason"] == record["reason"]
    assert "sandbox ended" in files["node.log"].decode()
    machine = json.loads(files["machine.json"])
    assert machine["cgroup"] in {"v1", "v2"}
    assert machine["runsc"]
    assert {finding["level"] for finding in json.loads(files["doctor.json"])} <= {"ok", "warn", "fail"}


def test_no_secret_is_in_it(box: Platform, tmp_path: Path) -> None:
    needles = {name: secrets.token_hex(16) for name in ("env", "argument", "input", "output", "own env", "metadata")}
    sandbox = box.create(env={"TOKEN": needles["env"]}, metadata={"customer": needles["metadata"]})["id"]
    path = f"/v1/sandboxes/{sandbox}"
    body = {
        "shell": f"echo {needles['output']}; : {needles['argument']}; cat",
        "env": {"OWN": needles["own env"]},
        "input": needles["input"],
    }
    assert box.http.post(f"{path}/run", json=body).json()["exit_code"] == 0
    node_key = (box.config.data_dir / "node.key").read_bytes()
    secret = (box.config.data_dir / "api" / "secret").read_bytes()
    # As if a program had logged what it must not.
    with (box.config.logs_dir / "node.log").open("a") as log:
        log.write(f"{sandbox} {box.key} {node_key.hex()} password={needles['env']}\n")
    (box.config.data_dir / "failures").mkdir(mode=0o700, exist_ok=True)
    failure = {"sandbox_id": sandbox, "panic_log": f"panic: {box.key}", "env": {"TOKEN": needles["env"]}}
    (box.config.data_dir / "failures" / f"{sandbox}.json").write_text(json.dumps(failure))
    files = collected(box, sandbox, tmp_path / "bundle")
    assert "[removed]" in files["node.log"].decode()
    needles |= {"root key": box.key, "node key": node_key.hex(), "secret": secret.hex()}
    whole = b"\n".join(files.values())
    assert [name for name, needle in needles.items() if needle.encode() in whole] == []
    assert node_key not in whole
    assert secret not in whole
    assert not re.search(rb"sandlot_[a-z2-7]{39}", whole)
    assert json.loads(files["ledger.json"])["nonce"] == "[removed]"
    assert json.loads(files["record.json"])["labels"] == {"customer": "[removed]"}
    box.http.delete(path, params={"grace_seconds": 0}).raise_for_status()


def test_what_is_broken_does_not_keep_the_rest_back(box: Platform, tmp_path: Path) -> None:
    files = collected(box, UNKNOWN, tmp_path / "bundle")
    assert json.loads(files["record.json"]) is None
    assert {"failure.json", "node.json"} <= json.loads(files["missing.json"]).keys()
    assert "machine.json" in files


@pytest.mark.parametrize("word", ["../../etc/passwd", "sbx", "", "prc" + "a" * 20])
def test_what_is_no_id_is_refused(box: Platform, tmp_path: Path, word: str) -> None:
    done = support(box, word, tmp_path / "bundle")
    assert done.returncode == 1
    assert "fix:" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_file_that_is_there_stays(box: Platform, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "victim")
    assert support(box, UNKNOWN, tmp_path / "bundle").returncode == 1
    assert not (tmp_path / "victim").exists()


def test_the_record_is_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], box: Platform) -> None:
    sandbox = box.create()["id"]
    print_record(str(box.config.api_data_dir / "api.db"), sandbox)
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert record["spec"]["resources"]
    box.http.delete(f"/v1/sandboxes/{sandbox}", params={"grace_seconds": 0}).raise_for_status()


def test_where_systemd_keeps_the_logs_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" "of {UNKNOWN}" "of another"\n')
    journal.chmod(0o755)
    monkeypatch.setattr(bundle.shutil, "which", lambda _name: str(journal))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] - stands for a function
    config = LauncherConfig(data_dir=tmp_path)
    assert bundle.lines_naming(config, "node", UNKNOWN) == f"of {UNKNOWN}\n"
    assert "--unit=sandlot-node.service" in bundle.lines_naming(config, "node", "--unit")
