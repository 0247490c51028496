"""The rights the systemd units leave the programs are enough: started with them, without systemd."""

import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

import harness
from harness import Platform
from infra.launcher import units
from infra.launcher.child import closed_ancestors
from infra.setup.places import REPOSITORY


def rights(config_text: str) -> str:
    """Return the bounding set of a unit in the words of setpriv."""
    values = [line.partition("=")[2] for line in config_text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    if all(value.startswith("~") for value in values):
        return ",".join(f"-{word.removeprefix('CAP_').lower()}" for value in values for word in value[1:].split())
    words = [word for value in values for word in value.split()]
    if closed_ancestors([REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]):
        words.append("CAP_SYS_ADMIN")  # only these sources' place needs it: install-units refuses such a one
    return ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in words)])


class Services:
    """Both programs, each with the rights of its unit."""

    def __init__(self, box: Platform) -> None:
        self.box = box
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, program: str) -> None:
        text = units.rendered(self.box.config)[units.name(self.box.instance, program)]
        box = self.box
        with (box.config.data_dir / f"{program}.out").open("ab") as log:
            self._running[program] = subprocess.Popen(
                ["setpriv", "--no-new-privs", f"--bounding-set={rights(text)}", *sandlotd(program)],
                env=dict(box.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        done = subprocess.run(sandlotd("ready", program), env=dict(box.env), capture_output=True, check=False)
        assert done.returncode == 0, (box.config.data_dir / f"{program}.out").read_text()

    def end(self, program: str, *, kill: bool = False) -> None:
        running = self._running.pop(program)
        running.kill() if kill else running.terminate()
        running.wait()

    def end_all(self) -> None:
        for program in list(self._running):
            self.end(program)


def sandlotd(*words: str) -> list[str]:
    return [sys.executable, "-m", "infra.sandlotd", *words]


@pytest.fixture
def services() -> Generator[Services]:
    directory = Path(tempfile.mkdtemp(prefix="sandlot-", dir="/var/tmp"))
    box = harness.described(directory)
    made = Services(box)
    try:
        yield made
    finally:
        made.end_all()
        box.stop()


def test_started_with_the_rights_of_their_units(services: Services) -> None:
    box = services.box
    services.start("node")
    services.start("api")
    box.wait_until(lambda: httpx.get(f"{box.url}/readyz").status_code == 200, "the api knows the node")
    sandbox = box.create()["id"]
    path = f"/v1/sandboxes/{sandbox}"
    assert box.http.post(f"{path}/run", json={"shell": "echo kept > /tmp/file; id -u"}).json()["exit_code"] == 0
    services.end("node", kill=True)
    services.start("node")
    assert box.http.post(f"{path}/run", json={"argv": ["cat", "/tmp/file"]}).json()["stdout"] == "kept\n"
    assert box.http.delete(path).status_code == 200
    box.wait_until(lambda: box.node_sandboxes() == set(), "nothing of it left")
