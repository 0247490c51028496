"""The whole client against a real platform: its guide, terminals through crashes, files, ports, logs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import guide_stand
from cli_kit import terminal, wait_until
from harness import Platform
from sandlot import Client, PortNotListeningError, Sandbox

_COMMAND = [sys.executable, "-m", "sandlot"]


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with Client(platform.url, platform.key) as client:
        yield client


def _environment(platform: Platform) -> dict[str, str]:
    return {**os.environ, "SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key, "TERM": "dumb"}


def test_the_guide_prints_what_it_says(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDLOT_URL", platform.url)
    monkeypatch.setenv("SANDLOT_API_KEY", platform.key)
    assert guide_stand.session() == ""
    assert guide_stand.console(_environment(platform)) == []


@pytest.mark.parametrize("program", ["api", "node"])
def test_a_terminal_outlives_a_killed_program(start_platform: Callable[..., Platform], program: str) -> None:
    platform = start_platform()
    with Client(platform.url, platform.key) as client, Sandbox.create(name="box", client=client):
        command = [
            *_COMMAND,
            "exec",
            "-it",
            "box",
            "--",
            "sh",
            "-c",
            "stty -echo; while read line; do echo =$line=; done",
        ]
        with terminal(command, _environment(platform)) as screen:
            wait_until(screen.is_raw)
            screen.type(b"before\n")
            screen.expect(b"=before=")
            os.kill(platform.pid(program), signal.SIGKILL)
            screen.type(b"after\n")
            screen.expect(b"=after=")
            screen.resize(33, 99)
            screen.type(b"\x04")
            assert screen.leave() == 0
            assert screen.seen.count(b"=before=") == screen.seen.count(b"=after=") == 1


def test_a_shell_at_a_terminal(platform: Platform, client: Client) -> None:
    with (
        Sandbox.create(name="shell", client=client),
        terminal([*_COMMAND, "exec", "-it", "shell", "--", "bash"], _environment(platform)) as screen,
    ):
        screen.expect(rb"\$ ")
        screen.type(b"stty size\n")
        screen.expect(rb"40 100\r\n")
        screen.resize(30, 90)
        screen.type(b"while [ \"$(stty size)\" != '30 90' ]; do sleep 0.1; done; echo re''sized\n")
        screen.expect(rb"resized\r\n")
        screen.type(b"sh -c \"echo st''arted; exec sleep 1000\"\n")  # said by what the key will meet
        screen.expect(rb"started\r\n")
        screen.type(b"\x03")
        screen.expect(rb"(?s)started\r\n.*\$ ")  # what is typed before the prompt is back may go with the line
        screen.type(b"exit 9\n")
        assert screen.leave() == 9


def test_trees_ports_and_logs(platform: Platform, client: Client, tmp_path: Path) -> None:
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "deep" / "page").write_bytes(os.urandom(3_000_000))
    with Sandbox.create(name="site", client=client) as sandbox:
        sandbox.files.upload(tmp_path / "site", "site")
        assert [one.name for one in sandbox.files.iterate("site", depth=2)] == ["deep", "page"]
        sandbox.files.download("site", tmp_path / "back")
        sent, came = (tmp_path / name / "deep" / "page" for name in ("site", "back"))
        assert sent.read_bytes() == came.read_bytes()
        with pytest.raises(PortNotListeningError):
            sandbox.wait_for_port(8000, timeout_seconds=0)
        sandbox.start(["python3", "-m", "http.server", "8000", "-d", "site"])
        assert sandbox.wait_for_port(8000).port == 8000
        with subprocess.Popen[bytes](
            [*_COMMAND, "port-forward", "site", "0:8000"], env=_environment(platform), stdout=subprocess.PIPE
        ) as forward:
            assert forward.stdout is not None
            port = int(forward.stdout.readline().split(b" ")[0].rpartition(b":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET /deep/page HTTP/1.0\r\n\r\n")
                answer = connection.makefile("rb").read()
            forward.send_signal(signal.SIGINT)
        assert answer.endswith(sent.read_bytes())
        sandbox.run("echo kept")
        wait_until(partial(_has_log, sandbox, b"kept\n"))
    assert _has_log(sandbox, b"kept\n")


def _has_log(sandbox: Sandbox, data: bytes) -> bool:
    return data in b"".join(line.data for line in sandbox.logs())
