"""The node agent as a program, on the real runtime and network: create, run, stop, kill -9 and re-adopt."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra import residue
from node_kit import a_sandbox_id

ROOT = Path(__file__).resolve().parents[2]
INSTANCE = f"he{os.getpid() % 10000}"


class RealNode:
    """One instance's directories and its agent's process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.socket = directory / "run" / "api" / "sandboxd.sock"

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "SANDLOT_INSTANCE": INSTANCE,
            "SANDLOT_DATA_DIR": str(self._directory / "data"),
            "SANDLOT_RUN_DIR": str(self._directory / "run"),
            "SANDLOT_API_USER": "root",
            "SANDLOT_HEARTBEAT_SECONDS": "1",
            "SANDLOT_BACKSTOP_MARGIN_SECONDS": "5",
        }

    async def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sandboxd", cwd=ROOT, env=self._environment(), stdout=log, stderr=log
            )
        async with asyncio.timeout(60):
            while True:
                assert self._process.returncode is None, self.log()
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await self.call("GET", "/node/v1/report")
                    return
                await asyncio.sleep(0.02)

    def log(self) -> str:
        return (self._directory / "log").read_text()

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = await self._process.wait()
        self._process = None
        return code

    async def down(self) -> None:
        if self._process is not None:
            await self.end(signal.SIGTERM)
        with (self._directory / "log").open("ab") as log:
            down = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sandboxd", "down", cwd=ROOT, env=self._environment(), stdout=log, stderr=log
            )
            assert await down.wait() == 0, self.log()

    @asynccontextmanager
    async def calls(self) -> AsyncGenerator[aiohttp.ClientSession]:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with aiohttp.ClientSession("http://node", connector=connector) as session:
            yield session

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self.calls() as calls, calls.request(method, path, json=body) as answer:
            content: dict[str, Any] = await answer.json(content_type=None)
            assert answer.status in (200, 201), (content, self.log())
            return content

    async def report(self, sandbox_id: str) -> dict[str, Any]:
        return await self.call("GET", f"/node/v1/sandboxes/{sandbox_id}")

    async def ended(self, sandbox_id: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (report := await self.report(sandbox_id))["state"] not in ("stopped", "failed"):  # noqa: ASYNC110 - it is another program's state
                await asyncio.sleep(0.05)
        return report

    async def create(self, sandbox_id: str | None = None, **spec: Any) -> str:
        sandbox_id = sandbox_id or a_sandbox_id()
        image = (await self.call("GET", "/node/v1/report"))["images"][0]
        pinned = {"id": image["id"], "reference": "base", "digest": image["digest"]}
        ensure = {
            "generation": 1,
            "epoch": 0,
            "deadline_seconds": 120,
            "spec": {"image": pinned, "hostname": sandbox_id, **spec},
        }
        report = await self.call("PUT", f"/node/v1/sandboxes/{sandbox_id}", ensure)
        assert report["state"] == "running"
        return sandbox_id

    async def run(self, sandbox_id: str, shell: str, **spec: Any) -> dict[str, Any]:
        return await self.call("POST", f"/v1/sandboxes/{sandbox_id}/run", {"shell": shell, **spec})

    async def stop(self, sandbox_id: str) -> dict[str, Any]:
        return await self.call("DELETE", f"/node/v1/sandboxes/{sandbox_id}?generation=2&epoch=0&wait_seconds=60")


def ours() -> set[str]:
    """Whatever the kernel has that carries this instance's name."""
    return {text for text in map(str, residue.everything()) if INSTANCE in text}


@pytest.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RealNode]:
    # A short path: unix sockets have 108 bytes for theirs.
    real = RealNode(tmp_path_factory.mktemp("n"))
    try:
        await real.start()
        yield real
    finally:
        await real.down()
    assert ours() == set()


async def test_create_run_stop(node: RealNode) -> None:
    sandbox_id = await node.create(env={"GREETING": "hello"}, egress={"mode": "open"})
    result = await node.run(sandbox_id, 'echo "$GREETING from $(hostname)"; id -un; exit 3')
    assert (result["stdout"], result["exit_code"]) == (f"hello from {sandbox_id}\nuser\n", 3)
    report = await node.stop(sandbox_id)
    assert (report["state"], report["reason"]) == ("stopped", "requested")
    assert report["cpu_used_seconds"] > 0
    assert not any(sandbox_id in text for text in map(str, residue.everything()))


async def test_killed_and_restarted_it_adopts_processes_and_their_output(node: RealNode) -> None:
    sandbox_id = await node.create(timeout_seconds=600)
    started = await node.call(
        "POST",
        f"/v1/sandboxes/{sandbox_id}/processes",
        {"shell": "for i in 1 2 3; do echo $i; sleep 1; done; exit 7"},
    )
    before = await node.report(sandbox_id)
    await node.end(signal.SIGKILL)
    await node.start()
    after = await node.report(sandbox_id)
    same = ("state", "user", "cwd", "shell", "address", "started_at", "generation")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["remaining_seconds"] < before["remaining_seconds"]
    path = f"/v1/sandboxes/{sandbox_id}/processes/{started['id']}/result"
    async with asyncio.timeout(60):
        while (result := await node.call("GET", f"{path}?wait_seconds=30"))["running"]:
            pass
    assert (result["stdout"], result["exit_code"]) == ("1\n2\n3\n", 7)
    assert (await node.stop(sandbox_id))["state"] == "stopped"


async def test_told_to_exit_it_leaves_sandboxes_running(node: RealNode) -> None:
    sandbox_id = await node.create()
    assert await node.end(signal.SIGTERM) == 0
    await node.start()
    assert (await node.run(sandbox_id, "echo alive"))["stdout"] == "alive\n"


async def test_killed_in_the_middle_of_a_start_nothing_is_left_and_it_can_be_made_again(node: RealNode) -> None:
    for pause in (0.02, 0.08, 0.15, 0.25):
        sandbox_id = a_sandbox_id()
        starting = asyncio.ensure_future(node.create(sandbox_id))
        await asyncio.sleep(pause)  # a random moment, not a wait
        await node.end(signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await starting
        await node.start()
        known = {report["id"] for report in (await node.call("GET", "/node/v1/report"))["sandboxes"]}
        if sandbox_id not in known:
            assert not any(sandbox_id in text for text in map(str, residue.everything()))
        await node.create(sandbox_id)
        await node.stop(sandbox_id)


@pytest.mark.parametrize(
    ("shell", "user", "reason", "state"),
    [
        ("kill -9 1", "root", "guest_failed", "failed"),
        ("python3 -c 'a = bytearray(400 << 20)'; sleep 60", "user", "out_of_memory", "failed"),
    ],
)
async def test_its_death_has_a_reason(node: RealNode, shell: str, user: str, reason: str, state: str) -> None:
    sandbox_id = await node.create(resources={"memory_mib": 128})
    with contextlib.suppress(AssertionError):
        await node.run(sandbox_id, shell, user=user)
    report = await node.ended(sandbox_id)
    assert (report["state"], report["reason"]) == (state, reason)


async def test_deadlines_hold(node: RealNode) -> None:
    wall = await node.create(timeout_seconds=2)
    idle = await node.create(idle_timeout_seconds=10)
    assert (await node.ended(wall))["reason"] == "wall_timeout"
    assert (await node.ended(idle))["reason"] == "idle_timeout"


def _has_processes(sandbox_id: str) -> bool:
    found = False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found = found or sandbox_id.encode() in path.read_bytes()
    return found


async def test_the_guest_holds_the_deadline_while_the_agent_is_away(node: RealNode) -> None:
    sandbox_id = await node.create(timeout_seconds=3)
    await node.end(signal.SIGKILL)
    assert _has_processes(sandbox_id)
    async with asyncio.timeout(120):
        while _has_processes(sandbox_id):  # noqa: ASYNC110 - nobody else is there to tell
            await asyncio.sleep(0.1)
    await node.start()
    assert (await node.ended(sandbox_id))["reason"] == "wall_timeout"


async def test_many_at_once(node: RealNode) -> None:
    ids = await asyncio.gather(*(node.create() for _ in range(8)))
    results = await asyncio.gather(*(node.run(each, "hostname") for each in ids))
    assert [result["stdout"].strip() for result in results] == ids
    ended = await asyncio.gather(*(node.stop(each) for each in ids))
    assert {report["state"] for report in ended} == {"stopped"}
