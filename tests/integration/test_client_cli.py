"""The `sandlot` command as a program of its own: streams, signals, exit codes, JSON, errors."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli_kit import environment, popen, sandlot, wait_until
from stub_api import Fault, StubApi, StubProcess, running


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


def _states(api: StubApi) -> list[str]:
    return [one["state"] for one in api.sandboxes.values()]


def test_run_is_like_running_it_here(api: StubApi) -> None:
    def act(process: StubProcess) -> None:
        process.write("stdout", b"to out\n")
        process.write("stderr", b"to err\n")
        process.write("stdout", b"\xff\x00more\n")
        process.end(3)

    api.on_start = act
    api.cuts = [30, 40]
    done = sandlot(api, "run", "--image", "python", "--env", "A=b=c", "--", "prog", "--flag", "x y")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"to out\n\xff\x00more\n", b"to err\n")
    assert api.seen("POST /v1/sandboxes")[0].json["image"] == "python"
    started = api.seen("/processes")[0].json
    assert started["argv"] == ["prog", "--flag", "x y"]
    assert started["env"] == {"A": "b=c"}
    assert _states(api) == ["stopped"]


def test_standard_input_is_passed_on(api: StubApi) -> None:
    data = os.urandom(300_000)
    done = sandlot(api, "run", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_a_file_as_standard_input_and_output(api: StubApi, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"from a file")
    with (
        source.open("rb") as stdin,
        target.open("wb") as stdout,
        popen(api, "run", "cat", stdin=stdin, stdout=stdout) as process,
    ):
        process.wait()
    assert target.read_bytes() == b"from a file"


def test_an_open_pipe_nobody_writes_to_holds_nothing_up(api: StubApi) -> None:
    with popen(api, "run", "--", "echo", "done") as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
        assert process.wait() == 0


def test_interrupts_reach_the_program_and_grow(api: StubApi) -> None:
    started = threading.Event()
    programs: list[StubProcess] = []

    def act(process: StubProcess) -> None:
        programs.append(process)
        process.write("stdout", b"up\n")
        started.set()

    api.on_start = act
    with popen(api, "run", "--", "stubborn") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        assert started.wait()
        (program,) = programs
        for count in (1, 2, 3):
            command.send_signal(signal.SIGINT)
            wait_until(partial(_has_signals, program, count))
        assert program.signals == ["SIGINT", "SIGTERM", "SIGKILL"]
        program.end(137, "killed", signal="SIGKILL")
        assert command.wait() == 137
    assert _states(api) == ["stopped"]


def test_a_termination_asks_the_program_to_terminate(api: StubApi) -> None:
    api.on_start = lambda process: process.write("stdout", b"up\n")
    with popen(api, "run", "--", "waits") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        command.send_signal(signal.SIGTERM)
        assert command.wait() == 143
    assert api.process_started().signals == ["SIGTERM"]
    assert _states(api) == ["stopped"]


def test_a_reader_that_leaves_ends_the_command_and_the_sandbox(api: StubApi) -> None:
    ended = threading.Event()

    def act(process: StubProcess) -> None:
        def write() -> None:
            while not ended.is_set() and process.length < 64 * 1024 * 1024:
                process.write("stdout", b"y\n" * 30_000)

        threading.Thread(target=write, daemon=True).start()

    api.on_start = act
    try:
        with popen(api, "run", "--", "yes") as command:
            assert command.stdout is not None
            assert command.stderr is not None
            assert command.stdout.readline() == b"y\n"
            command.stdout.close()
            assert command.stderr.read() == b""
            assert command.wait() == 128 + signal.SIGPIPE
    finally:
        ended.set()
    assert _states(api) == ["stopped"]


def test_a_command_that_is_not_there(api: StubApi) -> None:
    done = sandlot(api, "run", "--", "missing")
    assert (done.returncode, done.stderr) == (127, b"sandlot: missing: command not found\n")


def test_the_end_of_the_sandbox_is_told_apart_from_the_end_of_the_program(api: StubApi) -> None:
    def act(process: StubProcess) -> None:
        api.sandboxes[process.sandbox_id] |= {"state": "failed", "reason": "out_of_memory"}
        process.end(137, "sandbox_stopped")

    api.on_start = act
    done = sandlot(api, "run", "--", "hog")
    assert (done.returncode, done.stderr) == (137, b"sandlot: the sandbox is failed: out_of_memory\n")


def test_run_as_json_prints_one_object(api: StubApi) -> None:
    done = sandlot(api, "run", "--json", "--", "echo", "hi")
    value = json.loads(done.stdout)
    assert (value["stdout"], value["exit_code"], value["sandbox_id"]) == ("hi\n", 0, next(iter(api.sandboxes)))
    assert done.stdout.count(b"\n") == 1


def test_create_ps_exec_rm(api: StubApi) -> None:
    made = sandlot(api, "create", "--name", "mine", "--metadata", "team=x", "--egress", "blocked", "--timeout", "60")
    sandbox_id = made.stdout.decode().strip()
    assert sandbox_id in api.sandboxes
    assert api.seen("POST /v1/sandboxes")[0].json["timeout_seconds"] == 60
    table = sandlot(api, "ps").stdout.decode()
    assert all(word in table for word in (sandbox_id, "running", "mine", "base"))
    assert json.loads(sandlot(api, "ps", "--json").stdout)[0]["id"] == sandbox_id
    assert sandlot(api, "exec", sandbox_id, "--", "exit", "5").returncode == 5
    assert _states(api) == ["running"]
    assert sandlot(api, "rm", sandbox_id).stdout.decode().split() == [sandbox_id]
    assert _states(api) == ["stopped"]
    assert json.loads(sandlot(api, "ps", "--all", "--json").stdout)[0]["state"] == "stopped"


def test_json_of_create_has_no_token(api: StubApi) -> None:
    done = sandlot(api, "create", "--json")
    assert json.loads(done.stdout)["state"] == "running"
    assert b"secret-token" not in done.stdout


def test_rm_goes_on_after_one_that_is_not_there(api: StubApi) -> None:
    sandbox = api.add_sandbox()
    done = sandlot(api, "rm", "sbx" + "q" * 20, sandbox["id"])
    assert done.returncode == 1
    assert done.stdout.decode().split() == [sandbox["id"]]
    assert b"sandbox_not_found" in done.stderr


@pytest.mark.parametrize("missing", ["SANDLOT_URL", "SANDLOT_API_KEY"])
@pytest.mark.parametrize("arguments", [["run", "--", "ls"], ["create"], ["ps"], ["exec", "x", "ls"], ["rm", "x"]])
def test_without_url_or_key_it_says_what_to_set(api: StubApi, missing: str, arguments: list[str]) -> None:
    present = {name: value for name, value in environment(api).items() if name != missing}
    command = [sys.executable, "-m", "sandlot", *arguments]
    done = subprocess.run(command, env=present, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"Set {missing}" in done.stderr
    assert api.requests == []


def test_an_error_of_the_api_has_code_hint_and_an_exit_code_of_its_own(api: StubApi) -> None:
    problem = {"code": "no_such_gpu", "detail": "none here", "hint": "Ask for none.", "request_id": "req123"}
    api.faults.append(Fault("POST /v1/sandboxes", 422, problem))
    done = sandlot(api, "run", "--", "ls")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.decode() == "sandlot: no_such_gpu: none here\nsandlot: Ask for none.\nsandlot: request req123\n"
    api.faults.append(Fault("POST /v1/sandboxes", 422, problem))
    done = sandlot(api, "create", "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr) == {"error": problem}


def test_a_stream_refused_half_way_still_removes_the_sandbox(api: StubApi) -> None:
    api.on_start = lambda process: process.write("stdout", b"part")
    api.cuts = [24 + 4 + 1]
    ended = {"code": "sandbox_ended", "detail": "gone", "reason": "guest_failed"}
    api.frame_bytes = 4
    api.faults += [Fault("/never"), Fault("/output", 410, ended)]
    done = sandlot(api, "run", "--", "waits")
    assert done.returncode == 125
    assert b"sandbox_ended: gone" in done.stderr
    assert _states(api) == ["stopped"]


@pytest.mark.parametrize("arguments", [["run"], ["exec"], ["rm"], ["nonsense"], ["run", "--env", "=x", "--", "ls"]])
def test_a_wrong_command_line_is_a_usage_error(api: StubApi, arguments: list[str]) -> None:
    assert sandlot(api, *arguments).returncode == 2


def _has_signals(program: StubProcess, count: int) -> bool:
    return len(program.signals) == count
