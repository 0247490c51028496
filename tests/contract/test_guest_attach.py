"""The guest protocol: attachments to processes, both ways over one connection, and terminals through them."""

import os
import time
from collections.abc import Generator
from contextlib import ExitStack

import pytest

from guest_kit import RawGuest, eventually, process_id
from guest_streams import Attached, RefusedError
from sandboxd.contract.frames import FrameKind
from sandboxd.contract.processes import Process

BASH = ["bash", "--norc", "--noprofile", "-i"]
PROMPT = {"PS1": "ready> ", "HISTFILE": ""}
TTY = {"rows": 24, "cols": 80}
WINDOW = 1 << 20


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> Generator[RawGuest]:
    yield raw_guest
    for process in raw_guest.call("GET", "processes", query={"state": "running"}).json["items"]:
        raw_guest.signal(process["id"], "SIGKILL")


def shell(guest: RawGuest) -> str:
    return guest.start(BASH, tty=TTY, env=PROMPT)["id"]


# --- one attachment


def test_it_begins_with_the_process_and_ends_with_its_exit(guest: RawGuest) -> None:
    process = guest.start("printf out; printf err >&2; exit 3")["id"]
    guest.ended(process)
    with Attached(guest, process) as attached:
        assert attached.process["after"] == 0
        Process.model_validate({**attached.process, "sandbox_id": "sbx" + "a" * 20})
        assert attached.rest()["exit_code"] == 3
        assert sorted(attached.text) == sorted(b"outerr")
    with Attached(guest, process, "after=4") as attached:
        assert attached.process["after"] == 4
        attached.rest()
        assert len(attached.text) == 2
    with Attached(guest, process, "tail_bytes=1") as attached:
        assert attached.process["after"] == 5
        attached.rest()
        assert len(attached.text) == 1


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("after=100", 416, "seq_out_of_range"),
        ("after=0&tail_bytes=1", 422, "invalid_request"),
        ("follow=1", 422, "invalid_request"),
    ],
)
def test_what_cannot_be_attached_to_is_refused(guest: RawGuest, query: str, status: int, code: str) -> None:
    process = guest.start("true")["id"]
    with pytest.raises(RefusedError) as refused:
        Attached(guest, process, query)
    assert (refused.value.status, refused.value.code) == (status, code)
    with pytest.raises(RefusedError, match="process_not_found"):
        Attached(guest, process_id())


def test_it_needs_an_upgrade(guest: RawGuest) -> None:
    process = guest.start("true")["id"]
    guest.call("GET", f"processes/{process}/attach").refused(400, "malformed_request")


def test_input_is_acknowledged_and_repeated_bytes_are_skipped(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    with Attached(guest, process) as attached:
        attached.type(b"hello ")
        attached.until(lambda _: attached.acknowledged == 6)
        attached.send(FrameKind.STDIN, b"hello world", 0)
        attached.send(FrameKind.STDIN, b"hello world", 0)
        attached.send(FrameKind.STDIN, b"world!", 6)
        attached.until(lambda _: attached.acknowledged == 12)
        attached.send(FrameKind.STDIN, b"beyond", 13)
        attached.until(lambda _: attached.problems == ["stdin_gap"])
        attached.send(FrameKind.STDIN_CLOSE, seq=11)
        attached.send(FrameKind.STDIN_CLOSE, seq=12)
        attached.send(FrameKind.STDIN_CLOSE, seq=12)
        attached.send(FrameKind.STDIN, b"hello", 0)
        assert attached.rest()["exit_code"] == 0
        assert attached.text == b"hello world!"
        assert attached.problems == ["stdin_gap", "invalid_request"]


def test_what_is_wrong_with_input_is_said_and_the_attachment_goes_on(guest: RawGuest) -> None:
    process = guest.start(["sleep", "60"])["id"]
    with Attached(guest, process) as attached:
        attached.type(b"x")
        attached.end()  # closed already: nothing to be said
        attached.resize(10, 10)
        attached.resize(0, 10)
        attached.send(FrameKind.RESIZE, b"{")
        attached.signal("SIGNOTHING")
        attached.send(0x45, b"x")
        attached.send(FrameKind.SIGNAL, b'{"signal":"SIGTERM","scope":"tree","more":1}')
        attached.until(lambda _: len(attached.problems) == 7)
        expected = ["stdin_closed", *["invalid_request"] * 2, "malformed_request", *["invalid_request"] * 3]
        assert attached.problems == expected
        attached.signal("SIGTERM")
        assert attached.rest()["signal"] == "SIGTERM"


def test_what_is_no_frame_ends_the_attachment_alone(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    for garbage in (b"\x41\x01" + b"\0" * 22, b"\x41\0\0\0\xff\xff\xff\xff" + b"\0" * 16):
        with Attached(guest, process) as attached:
            attached.link.sendall(garbage)
            while attached.link.recv(65_536):
                pass
    assert guest.show(process)["state"] == "running"


def test_silence_is_broken_by_keepalives(guest: RawGuest) -> None:
    process = guest.start("printf abc; sleep 60")["id"]
    with Attached(guest, process, "keepalive_seconds=0.05") as attached:
        attached.until(lambda frames: [frame.kind for frame in frames].count(FrameKind.KEEPALIVE) >= 3)
        assert attached.frames[-1].seq == 3


# --- breaks, and several at once


def test_a_break_loses_and_doubles_nothing(guest: RawGuest) -> None:
    """Whatever a connection is cut in the middle of: what was taken counts at once, wherever it still is."""
    process = guest.start("sleep 0.3; exec cat", stdin=True)["id"]
    whole = os.urandom(300_000)
    position, received = 0, b""
    for cut in (1, 70_000, 70_001, 200_000, 300_000):
        with Attached(guest, process, f"after={len(received)}") as attached:
            position = attached.offset
            attached.type(whole[position:cut])
            if cut % 2:
                attached.until(lambda _, at=cut, one=attached: one.acknowledged == at)
            received += attached.text
    with Attached(guest, process, f"after={len(received)}") as attached:
        attached.type(whole[attached.offset :])
        attached.end()
        attached.rest()
        received += attached.text
    assert received == whole


def test_input_of_several_interleaves_and_all_see_all(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    with Attached(guest, process) as first, Attached(guest, process) as second:
        for line in (b"one\n", b"two\n", b"three\n"):
            for attached in (first, second):
                attached.type(line)
                first.until(lambda _, of=line: first.text.count(of) + second.text.count(of) > 0)
        first.until(lambda _: len(first.text) == 28)
        second.until(lambda _: len(second.text) == 28)
        assert first.text == second.text
        assert sorted(first.text.split()) == sorted(b"one two three one two three".split())
        assert first.acknowledged == second.acknowledged == 14


def test_sixteen_read_and_one_more_is_refused(guest: RawGuest) -> None:
    process = guest.start(["sleep", "60"])["id"]
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(Attached(guest, process))
        with pytest.raises(RefusedError, match="too_many_streams"):
            Attached(guest, process)
    eventually(lambda: guest.call("GET", f"processes/{process}/output").status == 200)


def test_two_hundred_attached_at_once(guest: RawGuest) -> None:
    processes = [guest.start(["cat"], stdin=True)["id"] for _ in range(13)]
    with ExitStack() as stack:
        all_of = [[stack.enter_context(Attached(guest, process)) for _ in range(16)] for process in processes]
        for number, one in enumerate(all_of):
            for attached in one:
                attached.type(b"%02d." % number)
        for number, one in enumerate(all_of):
            for attached in one:
                attached.until(lambda _, at=attached: len(at.text) == 48)
                assert attached.text == b"%02d." % number * 16
        assert guest.run("echo others go on").stdout == b"others go on\n"


def test_what_a_process_does_not_read_is_held_within_a_window(guest: RawGuest) -> None:
    """A window of unread input holds up no signal and no other call, and what was taken outlives the attachment."""
    script = "trap 'printf caught' USR1; printf set; while :; do sleep 0.05; [ -e /tmp/go-on ] && exec wc -c; done"
    process = guest.start(script, stdin=True)["id"]
    with Attached(guest, process) as attached:
        attached.until_text(b"set")
        for _ in range(4):
            attached.type(b"x" * (WINDOW // 4))
        attached.signal("SIGUSR1", "process")
        attached.until_text(b"caught")
        assert attached.offset - attached.acknowledged > 0
    view = guest.show(process)
    assert view["stdin_offset"] == WINDOW
    guest.text("touch /tmp/go-on")
    try:
        with Attached(guest, process) as attached:
            assert attached.offset == WINDOW
            attached.type(b"more")
            attached.end()
            attached.rest()
            assert attached.text.endswith(f"{WINDOW + 4}\n".encode())
    finally:
        guest.text("rm -f /tmp/go-on")


def test_a_process_that_closed_its_input_says_so(guest: RawGuest) -> None:
    process = guest.start("exec 0<&-; printf closed; sleep 60", stdin=True)["id"]
    with Attached(guest, process) as attached:
        attached.until_text(b"closed")
        attached.type(b"x" * 100_000)
        attached.until(lambda _: attached.problems == ["stdin_closed"])
    assert guest.show(process)["stdin_closed"] is True


def test_calls_and_attachments_write_in_turns(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    with Attached(guest, process) as attached:
        attached.type(b"first ")
        attached.until(lambda _: attached.acknowledged == 6)
        assert guest.stdin(process, b"second ", 6).json == {"offset": 13, "closed": False}
        attached.type(b"third")
        attached.until(lambda _: attached.acknowledged == 11)
        assert guest.show(process)["stdin_offset"] == 18
        assert guest.stdin(process, b"", 18, close=True).json == {"offset": 18, "closed": True}
        attached.type(b"!")
        attached.rest()
        assert attached.text == b"first second third"


def test_a_reader_that_does_not_read_stops_nobody(guest: RawGuest) -> None:
    process = guest.start(["head", "-c", "30000000", "/dev/zero"])["id"]
    with Attached(guest, process) as slow:
        with Attached(guest, process) as fast:
            assert fast.rest()["exit_code"] == 0
        slow.rest()
        ends = [frame.next_seq for frame in slow.frames if frame.kind != FrameKind.ATTACHED]
        assert ends[-1] == 30_000_000


def test_a_blocking_process_waits_for_its_attachment(guest: RawGuest) -> None:
    policy = {"mode": "block", "ring_bytes": 65_536, "limit_bytes": None}
    process = guest.start(["head", "-c", "3000000", "/dev/zero"], output=policy)["id"]
    eventually(lambda: guest.show(process)["next_seq"] > 32_000)
    with Attached(guest, process) as attached:
        attached.rest()
        assert len(attached.text) == 3_000_000
        assert FrameKind.LOST not in [frame.kind for frame in attached.frames]


def test_the_output_limit_is_seen(guest: RawGuest) -> None:
    policy = {"mode": "ring", "ring_bytes": 65_536, "limit_bytes": 1000}
    process = guest.start("read line; yes", stdin=True, output=policy)["id"]
    with Attached(guest, process) as attached:
        attached.type(b"\n")
        assert attached.rest()["reason"] == "output_limit"
        assert len(attached.text) == 1000


# --- terminals


def test_a_shell_has_its_size_and_hears_of_a_new_one(guest: RawGuest) -> None:
    with Attached(guest, shell(guest)) as attached:
        attached.until_text(b"ready> ")
        attached.type(b"stty size; tty; trap 'echo resized to $(stty size)' WINCH\r")
        attached.until_text(b"24 80\r\n/dev/pts/")
        attached.until(lambda _: attached.text.count(b"ready> ") == 2)
        attached.resize(50, 132)
        attached.type(b"\r")
        attached.until_text(b"resized to 50 132")
        attached.type(b"exit 7\r")
        assert attached.rest()["exit_code"] == 7


def test_keys_interrupt_stop_and_quit(guest: RawGuest) -> None:
    with Attached(guest, shell(guest)) as attached:
        attached.until_text(b"ready> ")
        attached.type(b"sleep 600\r")
        attached.until_text(b"sleep 600\r\n")
        running_below(guest, attached, b"sleep")
        attached.type(b"\x03")
        attached.until(lambda _: attached.text.count(b"ready> ") == 2)
        attached.type(b"echo status $?\r")
        attached.until_text(b"status 130")
        attached.type(b"sleep 601\r")
        running_below(guest, attached, b"sleep")
        attached.type(b"\x1a")
        attached.until_text(b"Stopped")
        attached.type(b"jobs; bg; fg\r")
        attached.until(lambda _: attached.text.count(b"sleep 601") >= 4)
        running_below(guest, attached, b"sleep")
        attached.type(b"\x03")
        attached.type(b"echo after $?\r")
        attached.until_text(b"after 130")
        attached.type(b"sleep 602\r")
        running_below(guest, attached, b"sleep")
        attached.type(b"\x1c")
        attached.until_text(b"Quit")
        attached.type(b"\x04")
        assert attached.rest()["reason"] == "exited"


def running_below(guest: RawGuest, attached: Attached, name: bytes) -> None:
    """Wait until the shell has started a program."""
    pid = attached.process["pid"]
    eventually(lambda: name.decode() in guest.run(f"ps --ppid {pid} -o comm=").stdout.decode())


@pytest.mark.parametrize("typed", [b"", b"ends with a line\r", b"ends within a line"])
def test_closing_ends_a_terminals_input(guest: RawGuest, typed: bytes) -> None:
    process = guest.start(["cat"], tty=TTY)["id"]
    with Attached(guest, process) as attached:
        if typed:
            attached.type(typed)
        attached.end()
        assert attached.rest()["exit_code"] == 0
    assert guest.show(process)["stdin_offset"] == len(typed)


def test_a_flood_is_interrupted_at_once_although_nobody_reads_it(guest: RawGuest) -> None:
    with Attached(guest, shell(guest)) as attached:
        attached.until_text(b"ready> ")
        attached.type(b"yes flood\r")
        attached.until_text(b"flood\r\nflood")
        running_below(guest, attached, b"yes")
        time.sleep(0.3)  # let everything on the way fill up
        attached.type(b"\x03")
        pid = attached.process["pid"]
        eventually(lambda: b"yes" not in guest.run(f"ps --ppid {pid} -o comm=").stdout)
        attached.type(b"echo do''ne\r")
        attached.until_text(b"done")


def test_programs_that_paint_the_screen(guest: RawGuest) -> None:
    with Attached(guest, shell(guest)) as attached:
        attached.until_text(b"ready> ")
        attached.type(b"python3 -q\r")
        attached.until_text(b">>> ")
        attached.type(b"print(6 * 7)\r")
        attached.until_text(b"42")
        attached.type(b"import time; time.sleep(600)\r")
        attached.until_text(b"sleep(600)\r\n")
        time.sleep(0.2)  # Python says nothing when it has begun to sleep
        attached.type(b"\x03")
        attached.until_text(b"KeyboardInterrupt")
        attached.type(b"exit()\r")
        attached.until(lambda _: attached.text.count(b"ready> ") == 2)
        attached.type(b"seq 1000 | less\r")
        attached.until_text(b"\r\n:")
        attached.type(b"G")
        attached.until_text(b"(END)")
        attached.type(b"q")
        attached.until(lambda _: attached.text.count(b"ready> ") == 3)
        attached.type(b"top -d 60\r")
        attached.until_text(b"PID")
        attached.type(b"q")
        attached.until(lambda _: attached.text.count(b"ready> ") == 4)
        attached.type(b"exit\r")
        assert attached.rest()["exit_code"] == 0
