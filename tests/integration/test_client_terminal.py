"""Terminals by the command line: keys, sizes, breaks, leaving and coming back."""

import signal
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from cli_kit import environment, sandlot, terminal, wait_until
from stub_api import StubApi, StubProcess, running

_COMMAND = [sys.executable, "-m", "sandlot"]


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


def _has_size(process: StubProcess, size: tuple[int, int]) -> bool:
    return process.sizes[-1:] == [size]


def test_a_terminal_is_one_wherever_it_breaks(api: StubApi) -> None:
    sandbox = api.add_sandbox(name="box")
    api.cuts, api.input_cuts = [500, 700], [300, 80, 90]
    with terminal([*_COMMAND, "exec", "-it", "box", "--", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        for number in range(20):
            screen.type(f"line {number}\n".encode())
            screen.expect(f"LINE {number}\r\n".encode())
        screen.type(b"exit 7\n")
        assert screen.leave() == 7
        assert screen.seen == b"".join(f"LINE {number}\r\n".encode() for number in range(20))
    started = api.seen("/processes")[0].json
    assert started["tty"] == {"rows": 40, "cols": 100}
    assert started["env"]["TERM"] == "dumb"
    assert api.sandboxes[sandbox["id"]]["state"] == "running"


def test_interrupts_are_keys_and_sizes_follow(api: StubApi) -> None:
    api.add_sandbox(name="box")
    with terminal([*_COMMAND, "exec", "-t", "box", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        process = _started(api)
        screen.type(b"\x03\x1a\n")
        screen.expect(b"\x03\x1a\r\n")
        assert process.signals == []
        screen.resize(50, 132)
        wait_until(partial(_has_size, process, (50, 132)))
        process.end(130, "signaled", signal="SIGINT")
        assert screen.leave() == 130
        assert not screen.is_raw()


def test_detach_keys_leave_and_attach_comes_back(api: StubApi) -> None:
    api.add_sandbox(name="box")
    with terminal([*_COMMAND, "exec", "-t", "box", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        screen.type(b"one\n")
        screen.expect(b"ONE\r\n")
        screen.type(b"\x10")
        screen.type(b"\x11")
        assert screen.leave() == 0
        assert b"detached; go on with: sandlot attach" in screen.seen
    assert _started(api).exit is None
    with terminal([*_COMMAND, "attach", "box"], environment(api)) as screen:
        screen.expect(b"ONE\r\n")
        screen.type(b"exit 3\n")
        assert screen.leave() == 3


def test_a_run_that_is_left_keeps_its_sandbox(api: StubApi) -> None:
    with terminal([*_COMMAND, "run", "--detach-keys", "~,.", "--", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        screen.type(b"~x\n")
        screen.expect(b"~X\r\n")
        screen.type(b"~.")
        assert screen.leave() == 0
    assert [one["state"] for one in api.sandboxes.values()] == ["running"]


def test_a_run_at_a_terminal_ends_its_sandbox(api: StubApi) -> None:
    with terminal([*_COMMAND, "run", "python:3.12", "--", "shout"], environment(api)) as screen:
        screen.type(b"exit 5\n")
        assert screen.leave() == 5
    assert api.seen("POST /v1/sandboxes")[0].json["image"] == "python:3.12"
    assert [one["state"] for one in api.sandboxes.values()] == ["stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_ended_is_put_back(api: StubApi, number: signal.Signals) -> None:
    with terminal([*_COMMAND, "run", "--", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        screen.type(b"x\n")
        screen.expect(b"X\r\n")
        screen.process.send_signal(number)
        assert screen.leave() == 128 + number
        assert not screen.is_raw()
    assert [one["state"] for one in api.sandboxes.values()] == ["stopped"]


def test_without_a_terminal_there_is_none(api: StubApi) -> None:
    with terminal([*_COMMAND, "run", "-T", "--", "echo", "plain"], environment(api)) as screen:
        assert screen.leave() == 0
    assert "tty" not in api.seen("/processes")[0].json
    api.add_sandbox(name="box")
    done = sandlot(api, "exec", "-t", "box", "shout")
    assert done.returncode == 2
    assert b"not a terminal" in done.stderr


def test_a_sandbox_that_ends_is_told_at_the_terminal(api: StubApi) -> None:
    sandbox = api.add_sandbox(name="box")
    with terminal([*_COMMAND, "exec", "-t", "box", "shout"], environment(api)) as screen:
        wait_until(screen.is_raw)
        screen.type(b"x\n")
        screen.expect(b"X\r\n")
        api.sandboxes[sandbox["id"]] |= {"state": "failed", "reason": "out_of_memory"}
        _started(api).end(137, "sandbox_stopped")
        assert screen.leave() == 137
        assert b"the sandbox is failed: out_of_memory" in screen.seen


def _started(api: StubApi) -> StubProcess:
    wait_until(lambda: api.processes)
    return api.process_started()
