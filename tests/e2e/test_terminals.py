"""Terminals and connections through a whole real platform: keys, sizes, jobs, programs that paint, and kill -9."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from harness import PATIENCE_SECONDS, Platform
from sandboxd.contract.frames import OUTPUT_KINDS, Frame, FrameKind, encode
from sandboxd.contract.sockets import PROCESS_PROTOCOL
from sockets import Attached, attached, dialled, one_frame

GUIDE = Path(__file__).resolve().parents[2] / "docs/api-guide.md"
BASH = {"argv": ["bash", "--norc", "--noprofile", "-i"], "tty": {}, "env": {"PS1": "ready> ", "HISTFILE": ""}}
TERMINALS = 10


@pytest.fixture
def sandbox(platform: Platform) -> Iterator[str]:
    made = platform.create()["id"]
    yield made
    platform.http.delete(f"/v1/sandboxes/{made}").raise_for_status()


@pytest.fixture
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def start(platform: Platform, sandbox: str, **spec: Any) -> str:
    """Start a process; its address."""
    answer = platform.http.post(f"/v1/sandboxes/{sandbox}/processes", json=spec)
    assert answer.status_code == 201, answer.text
    return f"{platform.url}/v1/sandboxes/{sandbox}/processes/{answer.json()['id']}"


def headers(platform: Platform) -> dict[str, str]:
    return {"Authorization": f"Bearer {platform.key}"}


async def prompt(client: Attached, count: int) -> None:
    await client.until(lambda _: client.text.count(b"ready> ") >= count)


async def test_a_shell_with_keys_sizes_and_jobs(
    platform: Platform, sandbox: str, session: aiohttp.ClientSession
) -> None:
    async with attached(session, start(platform, sandbox, **BASH), headers(platform)) as client:
        await prompt(client, 1)
        await client.type(b"stty size; trap 'echo now $(stty size)' WINCH\r")
        await client.until_text(b"24 80")
        await prompt(client, 2)
        await client.resize(50, 132)
        await client.type(b"\r")
        await client.until_text(b"now 50 132")
        await client.type(b"sleep 600\r")
        await client.until_text(b"sleep 600\r\n")
        await running(platform, sandbox, "sleep 600")
        await client.type(b"\x1a")
        await client.until_text(b"Stopped")
        await client.type(b"bg; jobs\r")
        await client.until_text(b"Running")
        await client.type(b"fg\r")
        await client.until(lambda _: client.text.count(b"sleep 600") >= 5)
        await client.type(b"\x03")
        await client.type(b"echo status $?\r")
        await client.until_text(b"status 130")
        await client.type(b"exit 7\r")
        assert await client.rest() == 1000
        assert client.exit["exit_code"] == 7


async def running(platform: Platform, sandbox: str, command: str) -> None:
    """Wait until a command runs inside."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"shell": f"pgrep -fx '{command}'"})
            if found.json()["exit_code"] == 0:
                return
            await asyncio.sleep(0.05)


async def test_programs_with_prompts_of_their_own(
    platform: Platform, sandbox: str, session: aiohttp.ClientSession
) -> None:
    async with attached(session, start(platform, sandbox, argv=["python3", "-q"], tty={}), headers(platform)) as client:
        await client.until_text(b">>> ")
        await client.type(b"print(6 * 7)\r")
        await client.until_text(b"42")
        await client.type(b"while True: pass\r\r")
        await client.until(lambda _: client.text.count(b"... ") >= 1)
        await client.type(b"\x03")
        await client.until_text(b"KeyboardInterrupt")
        await client.type(b"\x04")
        assert await client.rest() == 1000
    async with attached(session, start(platform, sandbox, argv=["node"], tty={}), headers(platform)) as client:
        await client.until_text(b"> ")
        await client.type(b"6 * 7\r")
        await client.until_text(b"42")
        await client.type(b".exit\r")
        assert await client.rest() == 1000


async def test_a_flood_is_interrupted_although_nobody_reads_it(
    platform: Platform, sandbox: str, session: aiohttp.ClientSession
) -> None:
    async with attached(session, start(platform, sandbox, **BASH), headers(platform)) as client:
        await prompt(client, 1)
        await client.type(b"yes flood\r")
        await client.until_text(b"flood\r\nflood")
        await running(platform, sandbox, "yes flood")
        await client.type(b"\x03")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["pgrep", "-x", "yes"]})
                if found.json()["exit_code"] == 1:
                    break
                await asyncio.sleep(0.05)
        await client.type(b"echo do''ne\r")
        await client.until_text(b"done")


async def test_a_server_on_loopback_is_reached(
    platform: Platform, sandbox: str, session: aiohttp.ClientSession
) -> None:
    server = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8123"]
    process = start(platform, sandbox, argv=server, env={"PYTHONUNBUFFERED": "1"})
    url = f"{platform.url}/v1/sandboxes/{sandbox}"
    async with attached(session, process, headers(platform)) as client:
        await client.until_text(b"8123")
        async with dialled(session, url, headers(platform), 8123) as socket:
            await socket.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
            received = b""
            while (message := await socket.receive(PATIENCE_SECONDS)).type == aiohttp.WSMsgType.BINARY:
                received += message.data
            assert received.startswith(b"HTTP/1.0 200 OK")
            assert message.data == '{"eof":true}'
        async with dialled(session, url, headers(platform), 8124) as socket:
            await socket.receive(PATIENCE_SECONDS)
            assert socket.close_code == 4502
        await client.signal("SIGKILL")
        assert await client.rest() == 1000
        assert client.exit["reason"] == "killed"


def test_the_guides_example_runs(platform: Platform) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    [code] = [block for block in blocks if "ws_connect" in block]
    env = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "50 132" in done.stdout
    assert done.stdout.endswith("exited\n")


async def test_an_attached_sandbox_is_not_idle(platform: Platform, session: aiohttp.ClientSession) -> None:
    """It ends only after the last client has gone, although the process does nothing."""
    sandbox = platform.create(idle_timeout_seconds=10, idle_ignores_processes=True)["id"]
    async with attached(session, start(platform, sandbox, argv=["cat"], stdin=True), headers(platform)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12):  # longer than the idle time-out: nothing is what is waited for
                await client.until(lambda frames: frames[-1].kind == FrameKind.EXIT)
        assert platform.http.get(f"/v1/sandboxes/{sandbox}").json()["state"] == "running"
    assert await asyncio.to_thread(platform.ended, sandbox)
    assert platform.http.get(f"/v1/sandboxes/{sandbox}").json()["reason"] == "idle_timeout"


class Returning:
    """A client of one terminal that attaches again whenever it is cut off, and counts what it must not lose."""

    def __init__(self, session: aiohttp.ClientSession, url: str, headers: dict[str, str], input_bytes: bytes) -> None:
        self._session, self._url, self._headers = session, url, headers
        self._input = input_bytes
        self.received = b""
        self.position = 0
        self.acknowledged = 0
        self.breaks = 0

    async def run(self, stops: Mapping[int, asyncio.Event]) -> None:
        """Send everything, resting at each stop until its event, and receive to the end."""
        while True:
            try:
                if await self._attach(stops):
                    return
            except (aiohttp.ClientError, OSError):
                pass
            self.breaks += 1
            await asyncio.sleep(0.05)

    async def _attach(self, stops: Mapping[int, asyncio.Event]) -> bool:
        url = f"{self._url}/attach?after={self.position}"
        async with self._session.ws_connect(url, headers=self._headers, protocols=(PROCESS_PROTOCOL,)) as socket:
            message = await socket.receive()
            if message.type != aiohttp.WSMsgType.BINARY:
                return False
            offset = one_frame(message.data).json()["stdin_offset"]
            assert offset >= self.acknowledged, "something acknowledged was lost"
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(socket, offset, stops))
                done = await self._receive(socket)
                sending.cancel()
            return done

    async def _send(
        self, socket: aiohttp.ClientWebSocketResponse, offset: int, stops: Mapping[int, asyncio.Event]
    ) -> None:
        try:
            while offset < len(self._input):
                part = self._input[offset : offset + 100]
                await socket.send_bytes(encode(Frame(FrameKind.STDIN, offset, part)))
                offset += len(part)
                await asyncio.sleep(0.01)
                for at, event in stops.items():
                    if offset >= at:
                        await event.wait()
            await socket.send_bytes(encode(Frame(FrameKind.STDIN_CLOSE, offset)))
        except (aiohttp.ClientError, OSError):
            return

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        async for message in socket:
            frame = one_frame(message.data)
            if frame.kind in OUTPUT_KINDS:
                assert frame.seq == self.position
                self.received += frame.payload
                self.position = frame.next_seq
            elif frame.kind == FrameKind.STDIN_ACK:
                self.acknowledged = max(self.acknowledged, frame.seq)
            assert frame.kind != FrameKind.ERROR, frame
            if frame.kind == FrameKind.EXIT:
                return True
        return False


async def test_terminals_survive_kill_9_of_both_programs(
    start_platform: Callable[..., Platform], session: aiohttp.ClientSession
) -> None:
    platform = start_platform(heartbeat_seconds="1")
    sandbox = platform.create()["id"]
    script = "stty -icanon -echo -icrnl -isig min 1; printf go; exec head -c 20000"
    processes = [start(platform, sandbox, argv=["sh", "-c", script], tty={}) for _ in range(TERMINALS)]
    for process in processes:
        async with attached(session, process, headers(platform)) as client:
            await client.until_text(b"go")
    letters = [os.urandom(10_000).hex().encode() for _ in processes]
    clients = [
        Returning(session, process, headers(platform), text) for process, text in zip(processes, letters, strict=True)
    ]
    killed = {"api": asyncio.Event(), "node": asyncio.Event()}

    async def kill(program: str, at: int) -> None:
        """Kill a program when every client has so much acknowledged, and more under way."""
        while min(client.acknowledged for client in clients) < at:  # noqa: ASYNC110 - what is seen from outside
            await asyncio.sleep(0.01)
        os.kill(platform.pid(program), signal.SIGKILL)
        killed[program].set()

    async with asyncio.timeout(4 * PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run({5000: killed["api"], 12_000: killed["node"]}))
        await kill("api", 3000)
        await kill("node", 9000)
    for client, text in zip(clients, letters, strict=True):
        assert client.received == b"go" + text
        assert client.breaks >= 2
    assert platform.http.get(f"/v1/sandboxes/{sandbox}").json()["state"] == "running"
