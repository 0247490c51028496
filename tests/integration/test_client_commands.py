"""Copies, logs, statistics, ports, logins and the doctor, by the command line."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_kit import BARE, environment, popen, sandlot, terminal, wait_until
from stub_api import Fault, StubApi, StubFiles, running


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def inside(api: StubApi) -> StubFiles:
    return api.files[api.add_sandbox(name="box")["id"]]


def test_copies_follow_the_rules_of_cp(api: StubApi, inside: StubFiles, tmp_path: Path) -> None:
    (tmp_path / "app" / "lib").mkdir(parents=True)
    (tmp_path / "app" / "main.py").write_text("main")
    (tmp_path / "app" / "lib" / "x.pyc").write_text("no")
    source = str(tmp_path / "app")
    for arguments in (
        (f"{source}/main.py", "box:one.py"),
        (f"{source}/main.py", "box:/srv/"),
        (source, "box:/new"),
        ("--exclude", "*.pyc", source, "box:/new"),
        (f"{source}/.", "box:/new"),
    ):
        done = sandlot(api, "cp", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert {one for one in inside.entries if inside.entries[one].type == "file"} == {
        "/home/user/one.py",
        "/srv/main.py",
        "/new/main.py",
        "/new/lib/x.pyc",
        "/new/app/main.py",
    }
    done = sandlot(api, "cp", "--json", "box:/new", str(tmp_path / "back"))
    assert json.loads(done.stdout) == {"path": str(tmp_path / "back")}
    assert (tmp_path / "back" / "app" / "main.py").read_text() == "main"
    assert sandlot(api, "cp", "box:/new", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "new" / "main.py").is_file()
    assert sandlot(api, "cp", "box:/srv/main.py", f"{tmp_path}/in/").returncode == 0
    assert (tmp_path / "in" / "main.py").is_file()


def test_copies_of_streams(api: StubApi, inside: StubFiles) -> None:
    data = os.urandom(600_000)
    assert sandlot(api, "cp", "-", "box:/data", stdin=data).returncode == 0
    assert inside.entries["/data"].data == data
    api.cuts = [100_000]
    assert sandlot(api, "cp", "box:/data", "-").stdout == data
    inside.write("/tree/a", b"1")
    packed = sandlot(api, "cp", "--archive", "box:/tree", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames() == ["a"]
    assert sandlot(api, "cp", "--archive", "-", "box:/copy", stdin=packed).returncode == 0
    assert inside.entries["/copy/a"].data == b"1"


def test_what_cannot_be_copied_is_one_line(api: StubApi, inside: StubFiles, tmp_path: Path) -> None:
    done = sandlot(api, "cp", str(tmp_path / "none"), "box:/x")
    assert done.returncode == 1
    assert done.stderr.decode() == f"sandlot: {tmp_path}/none: No such file or directory\n"
    assert sandlot(api, "cp", "box:/none", str(tmp_path)).stderr.startswith(b"sandlot: file_not_found: ")
    assert sandlot(api, "cp", "a", "b").returncode == 2
    api.faults.append(Fault("/files", drop="after"))
    done = sandlot(api, "cp", "-", "box:/x", stdin=b"once")
    assert (done.returncode, done.stderr) == (
        1,
        b"sandlot: the connection broke, and standard input cannot be read again\n",
    )


def test_logs(api: StubApi, inside: StubFiles) -> None:
    line = {"at": "2026-11-22T10:59:01.123Z", "process_id": "prc1", "kind": "stdout", "text": "a\n", "cursor": "1"}
    api.logs = [line, line | {"kind": "stderr", "text": "b\n", "cursor": "2"}]
    api.logs += [line | {"text": text, "cursor": text} for text in ("c", "d\ne\n")]
    done = sandlot(api, "logs", "box")
    assert (done.stdout, done.stderr) == (b"a\ncd\ne\n", b"b\n")
    stamp = b"2026-11-22T10:59:01.123+00:00 "
    assert sandlot(api, "logs", "-t", "box").stdout == stamp + b"a\n" + stamp + b"cd\n" + stamp + b"e\n"
    done = sandlot(api, "logs", "--json", "-f", "box")
    assert [json.loads(one)["text"] for one in done.stdout.splitlines()] == ["a\n", "b\n", "c", "d\ne\n"]


def test_watch_prints_until_it_is_interrupted(api: StubApi, inside: StubFiles) -> None:
    with popen(api, "watch", "box", "/") as command:
        assert command.stdout is not None
        wait_until(lambda: inside.watches)
        inside.write("/f", b"1")
        assert command.stdout.readline() == b"create  /f\n"
        command.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.stderr is not None
        assert command.stderr.read() == b""


def test_names_from_inside_cannot_steer_the_terminal(api: StubApi, inside: StubFiles) -> None:
    hostile = os.fsdecode(b"/\x1b]0;owned\x07\xff\n")
    with popen(api, "watch", "box", "/") as command, popen(api, "watch", "--json", "box", "/") as as_json:
        assert command.stdout is not None
        assert as_json.stdout is not None
        wait_until(lambda: len(inside.watches) == 2)
        inside.write(hostile, b"")
        assert command.stdout.readline() == b"create  /\\x1b]0;owned\\x07\\xff\\n\n"
        assert json.loads(as_json.stdout.readline())["kind"] == "ready"
        assert json.loads(as_json.stdout.readline())["path"] == hostile
        for one in (command, as_json):
            one.send_signal(signal.SIGINT)
    problem = {"code": "file_not_found", "detail": "no \x1b[2J", "hint": "Look \x9b2J."}
    api.faults.append(Fault("/files/stat", 404, problem))
    done = sandlot(api, "cp", "box:/x", "/tmp/none")
    assert (
        done.stderr
        == b"sandlot: file_not_found: no \\x1b[2J\nsandlot: Look \\x9b2J.\nsandlot: request req" + b"a" * 20 + b"\n"
    )


def test_stats(api: StubApi, inside: StubFiles) -> None:
    table = sandlot(api, "stats").stdout.decode()
    assert all(word in table for word in ("12.5%", "50.0MiB / 1.0GiB"))
    assert "\x1b" not in table
    assert json.loads(sandlot(api, "stats", "--json", "box").stdout)[0]["processes"] == 3
    with terminal([sys.executable, "-m", "sandlot", "stats"], environment(api) | {"TERM": "xterm"}) as screen:
        screen.expect(rb"12\.5%")
        screen.process.send_signal(signal.SIGINT)
        assert screen.leave() == 130


def test_port_forward(api: StubApi, inside: StubFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        api.ports[80] = server.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    asked = b""
                    while data := connection.recv(1000):
                        asked += data
                    connection.sendall(asked.upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with popen(api, "port-forward", "box", "0:80") as command:
            assert command.stdout is not None
            said = command.stdout.readline().decode()
            address = ("127.0.0.1", int(said.split(" ")[0].rpartition(":")[2]))
            assert said.endswith(f" -> 80 in {next(iter(api.sandboxes))}\n")
            for _ in range(2):
                with socket.create_connection(address) as connection:
                    connection.sendall(b"hello")
                    connection.shutdown(socket.SHUT_WR)
                    assert connection.makefile("rb").read() == b"HELLO"
            del api.ports[80]
            with socket.create_connection(address) as connection:
                assert connection.recv(10) == b""
            assert command.stderr is not None
            assert b"port_not_listening" in command.stderr.readline()
            command.send_signal(signal.SIGINT)
            assert command.wait() == 130
        thread.join()


def test_rm_by_filter_and_all(api: StubApi) -> None:
    for name in ("a", "b", "c"):
        api.add_sandbox(name=name)
    assert sandlot(api, "ps", "-q", "--filter", "name=b").stdout.decode().split() == [[*api.sandboxes][1]]
    assert sandlot(api, "rm", "--filter", "name=b").returncode == 0
    assert [one["state"] for one in api.sandboxes.values()] == ["running", "stopped", "running"]
    assert sandlot(api, "rm", "--all", "--filter", "name=b").returncode == 2
    assert sandlot(api, "rm").returncode == 2
    assert sandlot(api, "rm", "--all", "--json").returncode == 0
    assert {one["state"] for one in api.sandboxes.values()} == {"stopped"}


def test_extend_and_inspect(api: StubApi, inside: StubFiles) -> None:
    assert sandlot(api, "extend", "box", "10m").returncode == 0
    assert api.seen("/extend")[0].json == {"timeout_seconds": 600}
    assert sandlot(api, "extend", "box", "soon").returncode == 2
    assert json.loads(sandlot(api, "inspect", "box").stdout)[0]["name"] == "box"
    assert sandlot(api, "create", "--name", "box", "--reuse").stdout.decode().strip() == next(iter(api.sandboxes))
    done = sandlot(api, "create", "--name", "box")
    assert done.returncode == 1
    assert b"name_taken" in done.stderr


def test_a_login_is_kept_for_its_owner_only(api: StubApi, tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path), "SANDLOT_URL": "", "SANDLOT_API_KEY": ""}
    key = f"{api.key}\n".encode()
    assert sandlot(api, "ps", env=home).returncode == 2
    for profile in ((), ("--profile", "work")):
        done = sandlot(api, "login", "--url", api.url, "--key-stdin", *profile, stdin=key, env=home)
        assert done.returncode == 0, done.stderr
        assert b"for project stub" in done.stdout
    file = tmp_path / "sandlot" / "config.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert sandlot(api, "ps", env=home).returncode == 0
    assert sandlot(api, "logout", env=home).returncode == 0
    assert sandlot(api, "ps", env=home).returncode == 2
    assert sandlot(api, "--profile", "work", "ps", env=home).returncode == 0
    assert sandlot(api, "ps", env=home | {"SANDLOT_PROFILE": "work"}).returncode == 0
    assert sandlot(api, "--profile", "none", "ps", env=home).returncode == 2
    assert sandlot(api, "logout", "--profile", "work", env=home).returncode == 0
    assert sandlot(api, "logout", env=home).returncode == 1


def test_a_login_that_does_not_work_is_not_kept(api: StubApi, tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    done = sandlot(api, "login", "--url", api.url, "--key-stdin", stdin=b"sandlot_wrong\n", env=home)
    assert done.returncode == 1
    assert b"unauthenticated" in done.stderr
    assert b"sandlot_wrong" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_is_wrong_and_what_to_do(api: StubApi) -> None:
    said = sandlot(api, "doctor").stdout.decode()
    assert f"ok    settings {api.url}, from SANDLOT_URL" in said
    assert "valid: a caller of project stub" in said
    assert "FAIL  clock" in said
    wrong = json.loads(sandlot(api, "doctor", "--json", env={"SANDLOT_API_KEY": "sandlot_wrong"}).stdout)
    assert [(one["what"], one["ok"]) for one in wrong] == [("settings", True), ("server", True), ("key", False)]
    done = sandlot(api, "doctor", env={"SANDLOT_URL": "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert b"FAIL  server   cannot connect" in done.stdout
    assert b"Check SANDLOT_URL" in done.stdout


def test_https_to_a_server_without_tls_says_so(api: StubApi) -> None:
    done = sandlot(api, "doctor", env={"SANDLOT_URL": api.url.replace("http://", "https://")})
    assert b"does not speak TLS" in done.stdout


def test_a_reader_that_leaves_is_no_error(api: StubApi) -> None:
    api.add_sandbox(name="box")
    line = {"at": None, "process_id": "prc1", "kind": "stdout", "text": "x" * 1000 + "\n", "cursor": "1"}
    api.logs = [line | {"cursor": str(number)} for number in range(1000)]
    with popen(api, "logs", "box") as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait() == 128 + signal.SIGPIPE


def test_the_shell_completes_names(api: StubApi, inside: StubFiles) -> None:
    asked = {"_SANDLOT_COMPLETE": "complete_bash", "COMP_WORDS": "sandlot exec b", "COMP_CWORD": "2"}
    assert sandlot(api, env=asked).stdout.split() == [b"box"]
    assert sandlot(api, env=asked | {"SANDLOT_URL": "http://127.0.0.1:1"}).stdout.split() == []


def test_shell_completion_is_there() -> None:
    command = [sys.executable, "-m", "sandlot", "--show-completion", "bash"]
    done = subprocess.run(
        command,
        env=BARE | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete" in done.stdout
