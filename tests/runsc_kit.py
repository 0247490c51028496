"""What tests of the real runtime stand on: a node of their own, a tiny image, a stand-in guest."""

import asyncio
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.cgroups import Cgroups
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import Resources
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.images.base import ImageConfig
from sandboxd.images.store import ImageStore
from sandboxd.runtime.base import Launch
from sandboxd.runtime.runsc import RunscRuntime

CACHE = Path(os.environ.get("SANDLOT_CACHE_DIR", "/var/lib/sandlot/cache"))
STANDIN = Path(__file__).parent / "standin_guest"


def runsc_path() -> Path:
    path = CACHE / "runsc/current/runsc"
    assert path.exists(), f"there is no runsc at {path}: run the set-up"
    return path


def sandbox_id() -> str:
    return new_id("sbx", os.urandom)


@dataclass
class Place:
    """Directories and names of one test's own node."""

    home: Path
    instance: str
    image: Path
    netns: Path
    guests: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    def runtime(self) -> RunscRuntime:
        return RunscRuntime(
            runsc=runsc_path(),
            run_dir=self.run_dir,
            cgroups=Cgroups(self.instance),
            connect=lambda _address, _token: FakeGuest(),
        )

    def launch(self, mode: str = "idle", **changes: Any) -> Launch:
        name = changes.pop("sandbox_id", None) or sandbox_id()
        upper = self.home / "upper" / name
        upper.mkdir(parents=True)
        values: dict[str, Any] = {
            "sandbox_id": name,
            "image_path": self.image,
            "hostname": "sandbox",
            "resources": Resources(memory_mib=256, disk_mib=256),
            "netns_path": self.netns,
            "address": "10.0.0.1",
            "peer": "10.0.0.0",
            "upper_dir": upper,
            "guest_dir": self.guest(mode),
            "token_sha256": "0" * 64,
            "backstop_seconds": None,
        }
        return Launch(**(values | changes))

    def guest(self, mode: str) -> Path:
        if mode not in self.guests:
            directory = self.home / f"guest-{mode}"
            directory.mkdir()
            shutil.copy(self.home / "standin", directory / "guest")
            (directory / "mode").write_text(mode)
            self.guests[mode] = directory
        return self.guests[mode]

    def leftovers(self) -> list[str]:
        """Everything of any sandbox that is still there."""
        found = [f"process {pid}" for pid in self.processes()]
        for group in ("sandboxes", "act"):
            pattern = f"*/sandlot-{self.instance}/{group}/*/"
            found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(pattern)]
        state = self.run_dir / "runsc"
        found += [f"file {path}" for path in (*state.glob("state/*"), *state.glob("bundles/*"))]
        for directory in ("/run", "/tmp"):
            found += [f"socket {path}" for path in Path(directory).glob("runsc-*.sock") if self._is_mine(path.name)]
        return [entry for entry in found if not entry.endswith("/null-netns")]

    def traces(self) -> list[str]:
        """What is there of the node itself: it goes with `clear`."""
        found = [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"*/sandlot-{self.instance}/")]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if f" {self.home}" in line]
        return found + self.leftovers()

    def processes(self) -> list[int]:
        return [pid for pid in _pids() if self._owns(pid)]

    def _owns(self, pid: int) -> bool:
        try:
            return str(self.run_dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _is_mine(self, name: str) -> bool:
        return name.removeprefix("runsc-").removesuffix(".sock") in {
            entry.name for entry in (self.home / "upper").iterdir()
        }


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


@contextmanager
def place() -> Generator[Place]:
    """Make one, and take everything of it down again."""
    letters = "".join(random.SystemRandom().choices("abcdefghijklmnopqrstuvwxyz234567", k=5))
    home = Path(tempfile.mkdtemp(prefix="sandlot-"))  # short: control sockets have long names
    home.chmod(0o755)
    name = f"sandlot-hc{letters}"
    made = Place(home=home, instance=f"hc{letters}", image=home / "image", netns=Path("/run/netns") / name)
    try:
        _build_standin(home)
        _run(_build_image(made))
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield made
    finally:
        try:
            _run(_take_down(made))
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(home)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a loop of its own: a fixture may be asked for inside another."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _build_standin(home: Path) -> None:
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(home / "standin"), "."]
    subprocess.run(command, cwd=STANDIN, check=True, env={**os.environ, "CGO_ENABLED": "0"})


async def _build_image(made: Place) -> None:
    root = made.home / "root"
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/release").write_text("none")
    store = ImageStore(made.home / "images")
    await store.open()
    image = await store.import_path(root, ["tiny"], ImageConfig())
    async with store.lease(image.id) as local:
        made.image = local.path


async def _take_down(made: Place) -> None:
    runtime = made.runtime()
    await runtime.open()
    for name in await runtime.known():
        await runtime.remove(name)
    await runtime.clear()
