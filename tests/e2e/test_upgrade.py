"""From the last release to this one: its sandboxes, made by its own programs and guest, are taken up as they are."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

import harness
from harness import Platform
from infra.launcher import account
from infra.release.__main__ import keep
from infra.setup.places import REPOSITORY
from release_kit import Release, unpacked
from sandboxd.ledger.base import Phase
from sandboxd.ledger.sqlite import SqliteLedger

COUNTER = "for i in $(seq 1 50); do echo line $i; done; until test -e /tmp/go; do sleep 0.1; done; echo over"


@pytest.fixture(scope="module")
def old() -> Generator[Release]:
    directory = Path(tempfile.mkdtemp(prefix="sandlot-release-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        yield unpacked(directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def box() -> Generator[Platform]:
    directory = Path(tempfile.mkdtemp(prefix="sandlot-", dir="/var/tmp"))
    made = harness.described(directory, heartbeat_seconds="0.5")
    try:
        yield made
    finally:
        made.stop()


def give_to_the_api(box: Platform) -> None:
    """The release's api ran as root here; the launcher's does not."""
    owner = account.ensure_account(box.config.api_user)
    for path in (box.config.api_data_dir, *box.config.api_data_dir.iterdir()):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    box.config.api_socket.unlink(missing_ok=True)


def test_the_release_runs_its_own_code(old: Release) -> None:
    for module in ("sandboxd", "api", "infra", "netpolicy"):
        assert not old.where(module).is_relative_to(REPOSITORY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_sandboxes_of_the_last_release_are_taken_up(old: Release, box: Platform, number: signal.Signals) -> None:
    config = box.config
    account.ensure_directories(config, account.ensure_account(config.api_user))
    programs = [old.start(program, box.env, config.logs_dir / f"old-{program}.log") for program in ("sandboxd", "api")]
    try:
        box.wait_until(config.key_path.exists, "the release's api")
        box.wait_until(config.url_path.exists, "the release's api")
        box.wait_until(lambda: httpx.get(f"{box.url}/readyz").status_code == 200, "the release serves")
        sandbox, ended = (box.create(metadata={"of": "old"}, timeout_seconds=3000)["id"] for _ in range(2))
        path = f"/v1/sandboxes/{sandbox}"
        process = box.http.post(f"{path}/processes", json={"shell": COUNTER}).raise_for_status().json()["id"]
        box.wait_until(lambda: "line 50" in box.http.get(f"{path}/processes/{process}/output").text, "its output")
        before = box.http.get(path).json()
        box.http.delete(f"/v1/sandboxes/{ended}").raise_for_status()
    finally:
        for running in programs:
            running.send_signal(number)
            running.wait()
    give_to_the_api(box)
    await ledger_is_read(config.data_dir / "ledger.db", sandbox)

    box.start()
    after = box.http.get(path).json()
    same = ("state", "image", "metadata", "user", "cwd", "created_at", "started_at", "resources", "egress")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert box.http.get(f"/v1/sandboxes/{ended}").json()["reason"] == "requested"
    assert box.http.post(f"{path}/run", json={"argv": ["touch", "/tmp/go"]}).json()["exit_code"] == 0
    result = box.http.get(f"{path}/processes/{process}/result", params={"wait_seconds": 30}).json()
    assert result["exit_code"] == 0
    assert result["stdout"] == "".join(f"line {number}\n" for number in range(1, 51)) + "over\n"
    assert box.http.patch(path, json={"timeout_seconds": 4000}).status_code == 200
    new = box.create()["id"]
    assert box.http.post(f"/v1/sandboxes/{new}/run", json={"argv": ["true"]}).json()["exit_code"] == 0
    for each in (sandbox, new):
        assert box.http.delete(f"/v1/sandboxes/{each}", params={"grace_seconds": 0}).status_code == 200
    box.wait_until(lambda: box.node_sandboxes() == set(), "nothing left of either")


async def ledger_is_read(path: Path, sandbox_id: str) -> None:
    """This release reads the other's ledger; a copy, because the node opens the real one."""
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copy(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
    ledger = SqliteLedger(copy)
    try:
        records = {record.sandbox_id: record for record in (await ledger.open()).records}
    finally:
        await ledger.close()
    assert records[sandbox_id].phase is Phase.RUNNING
    assert records[sandbox_id].spec.timeout_seconds == 3000


def test_the_fixture_can_be_made_anew(tmp_path: Path) -> None:
    (tmp_path / "release-0.0.1.tar.gz").touch()
    made = keep("HEAD", tmp_path)
    assert list(tmp_path.iterdir()) == [made]
    assert keep("HEAD", tmp_path).read_bytes() == made.read_bytes()
