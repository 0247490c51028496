"""The guest protocol: output, standard input and terminals."""

import base64
import hashlib
import secrets

import pytest

from guest_kit import RawGuest, eventually, output_bytes
from sandboxd.contract.frames import OUTPUT_KINDS, FrameKind

RING = {"mode": "ring", "ring_bytes": 65_536, "limit_bytes": None}
BLOCK = {"mode": "block", "ring_bytes": 65_536, "limit_bytes": None}


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


def test_output_resumes_at_every_byte(guest: RawGuest) -> None:
    process = guest.start("printf 0123; sleep 0.1; printf 45 >&2; sleep 0.1; printf 6789")["id"]
    guest.ended(process)
    whole = [
        (frame.kind, byte) for frame in guest.output(process) for byte in frame.payload if frame.kind in OUTPUT_KINDS
    ]
    assert bytes(byte for _, byte in whole) == b"0123456789"
    for after in range(11):
        frames = guest.output(process, after=after)
        rest = [(frame.kind, byte) for frame in frames for byte in frame.payload if frame.kind in OUTPUT_KINDS]
        assert rest == whole[after:]
        assert frames[0].seq == after
        assert (frames[-1].kind, frames[-1].seq) == (FrameKind.EXIT, 10)
    reply = guest.call("GET", f"processes/{process}/output", query={"after": 11})
    assert reply.refused(416, "seq_out_of_range")["next_seq"] == 10


def test_tails(guest: RawGuest) -> None:
    process = guest.start("printf 0123456789")["id"]
    guest.ended(process)
    for tail, expected in ((0, b""), (3, b"789"), (99, b"0123456789")):
        assert output_bytes(guest.output(process, tail_bytes=tail)) == expected
    guest.call("GET", f"processes/{process}/output", query={"tail_bytes": 1, "after": 1}).refused(
        422, "invalid_request"
    )


def test_a_read_ends_at_the_present_end(guest: RawGuest) -> None:
    process = guest.start("printf abc; sleep 60")["id"]
    eventually(lambda: guest.show(process)["next_seq"] == 3)
    frames = guest.output(process)
    assert [(frame.kind, frame.seq) for frame in frames] == [(FrameKind.STDOUT, 0), (FrameKind.KEEPALIVE, 3)]
    guest.signal(process, "SIGKILL")


def test_a_silent_follower_is_kept_alive(guest: RawGuest) -> None:
    process = guest.start("printf abc; sleep 60")["id"]
    stream = guest.follow(process, keepalive_seconds=0.1)
    stream.until(lambda frames: [frame.kind for frame in frames].count(FrameKind.KEEPALIVE) >= 3)
    guest.signal(process, "SIGKILL")
    assert stream.rest()[-1].kind == FrameKind.EXIT


def test_a_late_follower_gets_all_at_once(guest: RawGuest) -> None:
    process = guest.start("head -c 3000000 /dev/zero")["id"]
    guest.ended(process)
    stream = guest.follow(process, keepalive_seconds=600)  # nothing will wake it but its own hunger
    assert len(output_bytes(stream.rest())) == 3_000_000


def test_readers_are_bounded_and_all_see_all(guest: RawGuest) -> None:
    process = guest.start("read line; echo $line", stdin=True)["id"]
    streams = [guest.follow(process) for _ in range(16)]
    reply = guest.call("GET", f"processes/{process}/output", query={"follow": 1})
    assert reply.refused(429, "too_many_streams")["limit"] == 16
    assert guest.stdin(process, b"hello\n").status == 200
    for stream in streams:
        stream.rest()
        assert stream.text() == b"hello\n"
    assert eventually(lambda: guest.call("GET", f"processes/{process}/output").status == 200)


def test_what_falls_out_of_the_ring_is_named(guest: RawGuest) -> None:
    script = "import sys; sys.stdout.write(''.join('%09d\\n' % i for i in range(40000)))"
    process = guest.start(["python3", "-c", script], output=RING)["id"]
    view = guest.ended(process)
    assert (view["first_seq"], view["next_seq"]) == (400_000 - 65_536, 400_000)
    lost, *frames = guest.output(process)
    assert (lost.kind, lost.seq, lost.json()) == (FrameKind.LOST, 0, {"lost_bytes": 334_464})
    expected = "".join(f"{number:09d}\n" for number in range(40_000)).encode()
    assert output_bytes(frames) == expected[334_464:]
    head = guest.call("GET", f"processes/{process}/head").frames
    assert output_bytes(head) == expected[:65_536]
    assert head[0].seq == 0
    inside = guest.output(process, after=399_990)
    assert output_bytes(inside) == b"000039999\n"


def test_the_head_has_both_channels(guest: RawGuest) -> None:
    script = (
        "import os\nos.write(2, b'first'); os.write(1, b'o' * 100000); os.write(2, b'e' * 100000); os.write(1, b'last')"
    )
    process = guest.start(["python3", "-c", script], output=RING)["id"]
    guest.ended(process)
    head = guest.call("GET", f"processes/{process}/head").frames
    for kind, expected in ((FrameKind.STDOUT, b"o" * 65_536), (FrameKind.STDERR, b"first" + b"e" * 65_531)):
        assert b"".join(frame.payload for frame in head if frame.kind == kind) == expected
    assert [frame.seq for frame in head] == sorted(frame.seq for frame in head)
    assert FrameKind.EXIT not in [frame.kind for frame in head]


def test_alternating_channels_stay_bounded(guest: RawGuest) -> None:
    script = "import os\nfor i in range(20000): os.write(1 + i % 2, b'x')"
    process = guest.start(["python3", "-c", script], output=RING)["id"]
    view = guest.ended(process)
    assert (view["stdout_bytes"], view["stderr_bytes"], view["next_seq"]) == (10_000, 10_000, 20_000)
    frames = guest.output(process)
    assert frames[-1].seq == 20_000
    assert sum(frame.next_seq - frame.seq for frame in frames) == 20_000


def test_too_much_output_ends_a_process(guest: RawGuest) -> None:
    ran = guest.run(["yes"], output={"mode": "ring", "ring_bytes": 1 << 20, "limit_bytes": 100_000})
    assert (ran.exit["reason"], ran.exit["exit_code"]) == ("output_limit", 137)
    assert len(ran.stdout) == 100_000
    exact = guest.run(
        "head -c 100000 /dev/zero", output={"mode": "ring", "ring_bytes": 1 << 20, "limit_bytes": 100_000}
    )
    assert exact.exit["reason"] == "exited"


def test_a_blocked_process_waits_for_its_reader(guest: RawGuest) -> None:
    process = guest.start("head -c 3000000 /dev/zero; exit 7", output=BLOCK)["id"]
    full = eventually(lambda: _settled(guest, process))
    assert full < 300_000
    assert guest.show(process)["state"] == "running"
    stream = guest.follow(process)
    frames = stream.rest()
    assert FrameKind.LOST not in [frame.kind for frame in frames]
    assert len(output_bytes(frames)) == 3_000_000
    assert frames[-1].json()["exit_code"] == 7


def _settled(guest: RawGuest, process: str) -> int:
    """Return how much was written, once it is more than half of the ring and a repeated look sees no more."""
    first = guest.show(process)["next_seq"]
    again = guest.show(process, 0.3)["next_seq"]
    return first if first == again and first > 32_768 else 0


def test_nothing_blocked_is_lost_when_the_process_ends(guest: RawGuest) -> None:
    process = guest.start("head -c 90000 /dev/zero", output=BLOCK)["id"]
    guest.ended(process)
    frames = guest.output(process)
    assert len(output_bytes(frames)) == 90_000
    assert FrameKind.LOST not in [frame.kind for frame in frames]


# --- stdin


def test_stdin_by_offset(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    assert guest.stdin(process, b"abc", 0).json == {"offset": 3, "closed": False}
    assert guest.stdin(process, b"abcde", 0).json == {"offset": 5, "closed": False}
    assert guest.stdin(process, b"abc", 1).json == {"offset": 5, "closed": False}
    assert guest.stdin(process, b"xyz", 9).refused(409, "stdin_gap")["offset"] == 5
    assert guest.stdin(process, b"f").json == {"offset": 6, "closed": False}
    assert guest.stdin(process, b"fg", 5, close=True).json == {"offset": 7, "closed": True}
    assert guest.stdin(process, b"fg", 5, close=True).json == {"offset": 7, "closed": True}
    ended = guest.ended(process)
    assert (ended["stdin_offset"], ended["stdin_closed"]) == (7, True)
    assert output_bytes(guest.output(process)) == b"abcdefg"
    assert guest.stdin(process, b"x", 7).refused(409, "process_ended")["exit_code"] == 0


def test_repeated_input_has_had_its_effect_after_the_end_too(guest: RawGuest) -> None:
    process = guest.start(["cat"], stdin=True)["id"]
    guest.stdin(process, b"abc", 0, close=True)
    guest.ended(process)
    assert guest.stdin(process, b"abc", 0, close=True).json == {"offset": 3, "closed": True}
    assert guest.stdin(process, b"bc", 1).json == {"offset": 3, "closed": True}
    guest.stdin(process, b"abcd", 0, close=True).refused(409, "process_ended")
    guest.stdin(process, b"").refused(409, "process_ended")
    guest.stdin(process, b"", 4).refused(409, "process_ended")


def test_a_repeated_close_is_the_same_close(guest: RawGuest) -> None:
    process = guest.start("cat; sleep 60", stdin=True)["id"]
    for _ in range(2):
        assert guest.stdin(process, b"abc", 0, close=True).json == {"offset": 3, "closed": True}
    guest.stdin(process, b"abcd", 0).refused(409, "stdin_closed")
    guest.signal(process, "SIGKILL")


def test_large_stdin_streams(guest: RawGuest) -> None:
    data = secrets.token_bytes(3_000_000)
    process = guest.start(["sha256sum"], stdin=True)["id"]
    assert guest.stdin(process, data, 0, close=True).json == {"offset": len(data), "closed": True}
    guest.ended(process)
    local = hashlib.sha256(data).hexdigest().encode()
    assert output_bytes(guest.output(process)).startswith(local)


def test_stdin_nobody_reads(guest: RawGuest) -> None:
    process = guest.start("exec <&-; sleep 60", stdin=True)["id"]
    reply = eventually(lambda: _refusal(guest, process))
    assert reply == "stdin_closed"
    guest.signal(process, "SIGKILL")
    without = guest.start("sleep 60")["id"]
    guest.stdin(without, b"x").refused(409, "stdin_closed")
    guest.signal(without, "SIGKILL")


def _refusal(guest: RawGuest, process: str) -> str | None:
    reply = guest.stdin(process, b"x" * 1000)
    return None if reply.status == 200 else reply.json["code"]


def test_input_given_with_the_start(guest: RawGuest) -> None:
    data = secrets.token_bytes(500_000)
    ran = guest.run(["cat"], input_base64=base64.b64encode(data).decode())
    assert ran.stdout == data
    assert guest.show(ran.attached["id"])["stdin_offset"] == len(data)
    assert guest.run(["cat"], input_base64="").stdout == b""
    unread = guest.run(["true"], input_base64=base64.b64encode(data).decode())
    assert unread.exit["exit_code"] == 0
    fed = guest.start("sleep 60", input_base64="eA==")["id"]
    guest.stdin(fed, b"y").refused(409, "stdin_closed")
    guest.signal(fed, "SIGKILL")


# --- terminals


def test_a_terminal(guest: RawGuest) -> None:
    ran = guest.run("tty -s && echo yes; stty size; echo $TERM; echo err >&2", tty={"rows": 11, "cols": 33})
    assert ran.exit["exit_code"] == 0
    assert ran.terminal == b"yes\r\n11 33\r\nxterm-256color\r\nerr\r\n"
    assert guest.show(ran.attached["id"])["tty"] == {"rows": 11, "cols": 33}


def test_a_terminal_is_typed_at_and_resized(guest: RawGuest) -> None:
    process = guest.start(
        "stty -echo; echo ready; read line; echo got:$line; stty size; cat; echo end", tty={"rows": 9, "cols": 9}
    )["id"]
    stream = guest.follow(process)
    stream.until(lambda _: b"ready" in stream.text(FrameKind.TERMINAL))
    assert guest.call("POST", f"processes/{process}/resize", {"rows": 20, "cols": 70}).status == 204
    assert guest.stdin(process, b"hello\n", 0).json == {"offset": 6, "closed": False}
    stream.until(lambda _: b"20 70" in stream.text(FrameKind.TERMINAL))
    assert guest.stdin(process, b"", 6, close=True).status == 200
    stream.rest()
    assert b"got:hello\r\n20 70\r\n" in stream.text(FrameKind.TERMINAL)
    assert stream.text(FrameKind.TERMINAL).endswith(b"end\r\n")
    body = {"rows": 20, "cols": 70}
    guest.call("POST", f"processes/{process}/resize", body).refused(409, "process_ended")


def test_only_terminals_are_resized(guest: RawGuest) -> None:
    process = guest.start("sleep 60")["id"]
    guest.call("POST", f"processes/{process}/resize", {"rows": 20, "cols": 70}).refused(422, "invalid_request")
    guest.call("POST", f"processes/{process}/resize", {"rows": 0, "cols": 70}).refused(422, "invalid_request")
    guest.signal(process, "SIGKILL")
