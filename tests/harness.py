"""Starts a whole real platform in one line: `sandlotd up` with an instance name and directories of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx

from infra import residue
from infra.config import LauncherConfig
from infra.setup.places import cache_dir, guest_path, runsc_path

PATIENCE_SECONDS: Final = 60.0
"""How long a condition may take before a test gives up; far more than any of them needs."""

_ASK_SECONDS: Final = 0.02
_LOG_LINES: Final = 60
_COMMANDS: Final = {"api": b"\0-m\0api\0", "node": b"\0-m\0sandboxd\0", "gateway": b"\0-m\0tunnels.gateway\0"}
_TERMINAL: Final = {"stopped", "failed"}
_SETTLED: Final = {"running", "paused", "lost"} | _TERMINAL

LIVE: Final[list["Platform"]] = []
"""Platforms running now; a failing test shows their logs."""


def set_environment() -> None:
    """Let tests and the programs they start find what set-up made."""
    cache = cache_dir()
    os.environ.setdefault("SANDLOT_CACHE_DIR", str(cache))
    os.environ.setdefault("SANDLOT_RUNSC", str(runsc_path(cache)))
    os.environ.setdefault("SANDLOT_GUEST_DIR", str(guest_path(cache).parent))
    toolchain = cache / "go" / "bin"
    if toolchain.is_dir():  # set-up only made it because the one on PATH is missing or too old
        os.environ["PATH"] = f"{toolchain}:{os.environ['PATH']}"


def fresh_instance() -> str:
    """Return an instance name that no other test or user of this machine has."""
    return "t" + secrets.token_hex(3)


def eventually(condition: Callable[[], object], what: str, *, within: float = PATIENCE_SECONDS) -> None:
    """Wait until the condition holds; AssertionError when it did not, long after it should have."""
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, f"not within {within:g} s: {what}"
        time.sleep(_ASK_SECONDS)


@dataclass(kw_only=True)
class Platform:
    """A platform under its launcher, which starts again what dies."""

    config: LauncherConfig
    env: Mapping[str, str]
    _launcher: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def instance(self) -> str:
        return self.config.instance

    @property
    def url(self) -> str:
        return self.config.url_path.read_text().strip()

    @property
    def key(self) -> str:
        return self.config.key_path.read_text().strip()

    @cached_property
    def http(self) -> httpx.Client:
        """A client of the public API with the root key; waits as long as any call may take."""
        return httpx.Client(base_url=self.url, headers=self._headers, timeout=300, limits=_NO_LIMITS)

    def async_http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=300, limits=_NO_LIMITS)

    def node_http(self) -> httpx.Client:
        """Return a client of the node's own socket, as the api has."""
        transport = httpx.HTTPTransport(uds=str(self.config.node_socket))
        return httpx.Client(base_url="http://node", transport=transport, timeout=300)

    def create(self, **fields: Any) -> dict[str, Any]:
        """Create a sandbox; AssertionError with the problem when it is refused."""
        answer = self.http.post("/v1/sandboxes", json=fields)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def ended(self, sandbox_id: str) -> dict[str, Any]:
        """Wait until a sandbox has ended, and return it."""
        return self._sandbox_in(sandbox_id, _TERMINAL)

    def settled(self, sandbox_id: str) -> dict[str, Any]:
        """Wait until a sandbox is in none of the passing states, and return it."""
        return self._sandbox_in(sandbox_id, _SETTLED)

    def wait_until(self, condition: Callable[[], object], what: str = "the condition of the test") -> None:
        """Wait until the condition holds; a connection that breaks meanwhile is a no."""

        def holds() -> object:
            try:
                return condition()
            except httpx.TransportError:
                return False

        eventually(holds, what)

    def wait_ready(self) -> None:
        """Wait until api and node both answer and the api knows the node."""
        self.wait_until(self._serves, f"platform {self.instance} ready")

    def pid(self, program: str) -> int:
        """Return the process id of "api" or "node", once it runs."""
        found: list[int] = []

        def is_there() -> bool:
            found.extend(pid for pid in self._children() if _COMMANDS[program] in _command_of(pid))
            return bool(found)

        eventually(is_there, f"{program} of {self.instance} running")
        return found[0]

    def launcher_pid(self) -> int:
        assert self._launcher is not None, "not started"
        return self._launcher.pid

    def node_sandboxes(self) -> set[str]:
        """Return the sandboxes of which the kernel or the runtime's directories still have anything."""
        directories = (self.config.runtime_dir, self.config.data_dir / "upper")
        names = {path.name for directory in directories for path in directory.rglob("*sbx*")}
        names |= {Path(item.name).name for item in residue.find(self.instance) if item.kind == "cgroup"}
        return {name[at : at + 23] for name in names if (at := name.find("sbx")) >= 0}

    def cpu_seconds(self, sandbox_id: str | None = None) -> float:
        """Return the CPU time so far of launcher, api, node and what they reaped, and of one sandbox if named."""
        ticks = sum(_cpu_ticks(pid) for pid in (self.launcher_pid(), self.pid("api"), self.pid("node")))
        return ticks / os.sysconf("SC_CLK_TCK") + (self._sandbox_cpu_seconds(sandbox_id) if sandbox_id else 0)

    def residue(self) -> set[residue.Residue]:
        """Return what this platform has in the kernel now."""
        return residue.find(self.instance, [self.config.run_dir, self.config.data_dir])

    def start(self) -> None:
        """Start the programs, and wait until they serve."""
        assert self._launcher is None, "already started"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "infra.sandlotd", "up"],
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_ready()

    def stop_programs(self) -> None:
        """Stop the programs; sandboxes keep running, and `start` takes them up again."""
        if self._launcher is not None:
            self._launcher.terminate()
            self._launcher.wait()
            self._launcher = None

    def stop(self) -> None:
        """End everything, and assert that nothing is left."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.sandlotd", "down"],
            env=dict(self.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        self.stop_programs()
        if "http" in self.__dict__:
            self.http.close()
        if self in LIVE:
            LIVE.remove(self)
        left = self.residue()
        shutil.rmtree(self.config.run_dir, ignore_errors=True)
        shutil.rmtree(self.config.data_dir, ignore_errors=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not left, f"left behind: {sorted(map(str, left))}"

    def logs(self) -> dict[str, str]:
        """Return the last lines of each program's log."""
        paths = [self._log, *(self.config.logs_dir / f"{name}.log" for name in _COMMANDS)]
        return {path.stem: _tail(path) for path in paths if path.exists()}

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def _log(self) -> Path:
        return self.config.data_dir / "launcher.log"

    def _serves(self) -> bool:
        assert self._launcher is not None, "not started"
        assert self._launcher.poll() is None, f"the launcher ended:\n{_tail(self._log)}"
        if not (self.config.url_path.exists() and self.config.key_path.exists()):
            return False
        if not (_reports(self.config.node_socket) and self._gateway_listens()):
            return False
        return httpx.get(f"{self.url}/readyz").status_code == 200

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.config.gateway_port}"

    def _gateway_listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.config.gateway_port), 1).close()
        except OSError:
            return False
        return True

    def _sandbox_in(self, sandbox_id: str, states: set[str]) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def there() -> bool:
            seen.update(self.http.get(f"/v1/sandboxes/{sandbox_id}").raise_for_status().json())
            return seen["state"] in states

        self.wait_until(there, f"{sandbox_id} in one of {sorted(states)}")
        return seen

    def _sandbox_cpu_seconds(self, sandbox_id: str) -> float:
        for item in residue.find(self.instance):
            cgroup = Path(item.name)
            if item.kind != "cgroup" or cgroup.name != sandbox_id:
                continue
            if (cgroup / "cpuacct.usage").exists():
                return int((cgroup / "cpuacct.usage").read_text()) / 1e9
            if (cgroup / "cpu.stat").exists() and "usage_usec" in (cgroup / "cpu.stat").read_text():
                return int((cgroup / "cpu.stat").read_text().split()[1]) / 1e6
        return 0

    def _children(self) -> list[int]:
        pid = self.launcher_pid()
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


_NO_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=64)


def described(directory: Path, *, runtime: str = "runsc", **settings: str) -> Platform:
    """Return a platform with its data in `directory` that has not been started.

    `heartbeat_seconds="1"` is SANDLOT_HEARTBEAT_SECONDS.
    """
    set_environment()
    instance = fresh_instance()
    own = {
        "instance": instance,
        "data_dir": str(directory),
        "run_dir": f"/run/sandlot-{instance}",
        "cache_dir": str(cache_dir()),
        "api_port": str(_free_port()),  # the same after a restart
        "gateway_port": str(_free_port()),  # likewise
        "node_name": instance,
        "runtime": runtime,
        "pool_max": "0",  # what a test starts is all there is; tests of the ready pool ask for one
        **settings,
    }
    env = {**os.environ, **{f"SANDLOT_{name.upper()}": value for name, value in own.items()}}
    config = LauncherConfig.model_validate({name: own[name] for name in LauncherConfig.model_fields if name in own})
    return Platform(config=config, env=env)


def start_platform(directory: Path, **settings: str) -> Platform:
    """Start a platform with its data in `directory`, and wait until it serves; `stop` ends it."""
    started = described(directory, **settings)
    LIVE.append(started)
    try:
        started.start()
    except BaseException:
        started.stop()
        raise
    return started


@contextmanager
def platform(**settings: str) -> Generator[Platform]:
    """Start a platform with these settings, and end it after."""
    # A real disk: what sandboxes write must not count as memory.
    directory = Path(tempfile.mkdtemp(prefix="sandlot-", dir="/var/tmp"))
    started = start_platform(directory, **settings)
    try:
        yield started
    finally:
        started.stop()


def _reports(node_socket: Path) -> bool:
    # By hand, because httpx leaves its socket open where nobody listens, and the run would fail for that.
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(node_socket))
            asking.sendall(b"GET /node/v1/report HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            return asking.recv(64).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _cpu_ticks(pid: int) -> int:
    # Fields 14 to 17: user and system time, its own and that of the children it waited for.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def _command_of(pid: int) -> bytes:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
    # Until it becomes the program, it is the launcher's own child module, with the program among its arguments.
    return b"" if b"infra.launcher.child" in command else command


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
