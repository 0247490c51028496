"""The client and its command against a whole real platform: big input, signals, many streams, ends with reasons."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from harness import Platform
from sandlot import AsyncClient, AsyncSandbox, Client, Sandbox, SandboxEndedError, SandboxNotFoundError


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with Client(platform.url, platform.key) as client:
        yield client


def _popen(platform: Platform, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen[bytes](
        [sys.executable, "-m", "sandlot", *arguments],
        env=os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_megabytes_go_in_and_come_out_unchanged(platform: Platform) -> None:
    data = os.urandom(3_000_000)
    with _popen(platform, "run", "--", "cat") as command:
        out, err = command.communicate(data)
    assert (command.returncode, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_an_interrupt_reaches_the_program_inside(platform: Platform, client: Client) -> None:
    program = (
        "import signal, sys, time\n"
        "def leave(*_): print('interrupted', flush=True); sys.exit(9)\n"
        "signal.signal(signal.SIGINT, leave); print('up', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    before = {info.id for info in Sandbox.list(client=client)}
    with _popen(platform, "run", "--", "python3", "-c", program) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        command.send_signal(signal.SIGINT)
        assert command.stdout.read() == b"interrupted\n"
        assert command.wait() == 9
    assert {info.id for info in Sandbox.list(client=client)} <= before


def test_create_exec_ps_rm(platform: Platform) -> None:
    def say(*arguments: str) -> tuple[int, str, str]:
        with _popen(platform, *arguments) as command:
            out, err = command.communicate()
        return command.returncode, out.decode(), err.decode()

    code, said, _ = say("create", "--metadata", "made=here", "--env", "LEVEL=3")
    sandbox_id = said.strip()
    assert code == 0
    assert say("exec", sandbox_id, "--", "sh", "-c", "echo $LEVEL; echo no >&2; exit 7") == (7, "3\n", "no\n")
    assert say("exec", sandbox_id, "no-such-command")[0] == 127
    listed: list[dict[str, Any]] = json.loads(say("ps", "--json")[1])
    assert [one["metadata"] for one in listed if one["id"] == sandbox_id] == [{"made": "here"}]
    assert say("rm", sandbox_id)[0] == 0
    code, _, said = say("exec", sandbox_id, "true")
    assert code == 125
    assert "sandbox_ended" in said


def test_a_block_ends_its_sandbox_and_the_reason_stays(client: Client) -> None:
    with Sandbox.create(metadata={"a": "b"}, client=client) as sandbox:
        assert sandbox.run("echo $((6 * 7))").stdout == "42\n"
        assert sandbox.run(["cat"], input=b"\xff\x00").lossy
        process = sandbox.start(["sleep", "1000"], tag="long")
        assert [one.id for one in sandbox.processes(tag="long")] == [process.id]
        process.signal("SIGTERM")
        ended = process.wait()
        assert (ended.exit_code, ended.reason) == (143, "signaled")
    again = Sandbox.get(sandbox.id, client=client)
    assert (again.info.state, again.info.reason) == ("stopped", "requested")
    with pytest.raises(SandboxEndedError) as caught:
        again.run(["true"])
    assert caught.value.reason == "requested"
    with pytest.raises(SandboxNotFoundError):
        Sandbox.get("sbx" + "2" * 20, client=client)


async def test_many_streams_of_one_sandbox_at_once(platform: Platform) -> None:
    totals: dict[int, int] = {}

    async def read(sandbox: AsyncSandbox, number: int) -> None:
        process = await sandbox.start(["head", "-c", str(100_000 + number), "/dev/zero"])
        async with process.output() as output:
            totals[number] = sum([len(frame.data) async for frame in output])
        assert output.lost_bytes == 0

    async with (
        AsyncClient(platform.url, platform.key) as client,
        await AsyncSandbox.create(client=client) as sandbox,
        anyio.create_task_group() as tasks,
    ):
        for number in range(8):
            tasks.start_soon(read, sandbox, number)
    assert totals == {number: 100_000 + number for number in range(8)}
