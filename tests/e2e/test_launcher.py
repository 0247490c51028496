import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import harness
from harness import Platform
from infra.doctor import examine
from infra.doctor.findings import Level


@pytest.fixture(scope="module")
def box() -> Generator[Platform]:
    """A platform whose launcher these tests stop and kill."""
    with harness.platform() as started:
        yield started


def sandlotd(box: Platform, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", *words]
    return subprocess.run(command, env=dict(box.env), capture_output=True, text=True, check=False)


def shell(box: Platform, sandbox_id: str, script: str) -> str:
    answer = box.http.post(f"/v1/sandboxes/{sandbox_id}/run", json={"shell": script})
    assert answer.status_code == 200, answer.text
    return answer.json()["stdout"]


def test_the_line_it_prints_runs(box: Platform) -> None:
    box.wait_until(lambda: "curl " in box.logs()["launcher"], "the line to paste")
    printed = box.logs()["launcher"]
    (command,) = [line.strip() for line in printed.splitlines() if line.strip().startswith("curl ")]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "hello from Linux, user user" in done.stdout, done.stdout + done.stderr


def test_the_api_has_no_rights(box: Platform) -> None:
    status = Path(f"/proc/{box.pid('api')}/status").read_text()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert "0" not in fields["Uid"] + fields["Gid"]
    assert fields["Groups"] == []
    assert int(fields["CapEff"][0], 16) == int(fields["CapPrm"][0], 16) == 0
    assert fields["NoNewPrivs"] == ["1"]


def test_a_second_launcher_is_refused(box: Platform) -> None:
    done = sandlotd(box, "up")
    assert done.returncode == 1
    assert f"pid {box.launcher_pid()}" in done.stderr
    assert "fix:" in done.stderr


def test_sandboxes_outlive_a_stop_of_the_programs(box: Platform) -> None:
    sandbox = box.create()["id"]
    shell(box, sandbox, "echo kept > /tmp/file")
    box.stop_programs()
    assert box.node_sandboxes() == {sandbox}
    box.start()
    assert shell(box, sandbox, "cat /tmp/file") == "kept\n"
    box.http.delete(f"/v1/sandboxes/{sandbox}")


def test_sandboxes_outlive_a_killed_launcher(box: Platform) -> None:
    sandbox = box.create()["id"]
    shell(box, sandbox, "echo kept > /tmp/file")
    programs = [box.pid("api"), box.pid("node")]
    os.kill(box.launcher_pid(), signal.SIGKILL)
    box.wait_until(lambda: not any(map(lives, programs)), "programs ended")
    box.stop_programs()
    box.start()
    assert shell(box, sandbox, "cat /tmp/file") == "kept\n"
    box.http.delete(f"/v1/sandboxes/{sandbox}")


def lives(pid: int) -> bool:
    """Tell whether a process runs. One that ended may stay for ever: this process may be whom it was left to."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("program", ["api", "node"])
def test_what_dies_comes_back(box: Platform, program: str) -> None:
    pid = box.pid(program)
    os.kill(pid, signal.SIGKILL)
    box.wait_ready()
    assert box.pid(program) != pid


def test_an_image_is_known_at_once(box: Platform, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "etc").mkdir()
    done = sandlotd(box, "image", "import", str(root), "empty", "--env", "COLOUR=blue")
    assert done.returncode == 0, done.stderr
    assert "empty" in sandlotd(box, "image", "ls").stdout

    def created() -> bool:
        return box.http.post("/v1/sandboxes", json={"image": "empty"}).status_code == 201

    box.wait_until(created, "a sandbox of the new image")


@pytest.mark.parametrize(
    "words",
    [("image", "import", "/no/such/place", "x"), ("image", "import", "/etc/hostname", "x")],
    ids=["missing", "no root file system"],
)
def test_an_image_that_cannot_be_is_refused_in_words(box: Platform, words: tuple[str, ...]) -> None:
    done = sandlotd(box, *words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_doctor_finds_nothing_wrong_here(box: Platform) -> None:
    wrong = [finding for finding in examine(box.config) if finding.level is Level.FAIL]
    assert not wrong


def test_down_ends_everything(start_platform: Callable[[], Platform]) -> None:
    other = start_platform()
    sandbox = other.create()["id"]
    assert sandbox in other.node_sandboxes()
    done = sandlotd(other, "down")
    assert done.returncode == 0, done.stderr
    assert other.residue() == set()
    other.stop_programs()
