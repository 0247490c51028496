"""One sandbox, or its callers, cannot have the node agent for themselves."""

import asyncio

import pytest

from hostile_guest import PROCESS, HostileGuest, attached, exit_frame, frames, stdout
from live_stand import open_socket
from sandboxd.app.bounds import Bounds, Most
from sandboxd.contract.frames import Decoder
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.http import HttpGuest
from sandboxd.guest_client.pace import STEP_FRAMES, Pace

ONE, OTHER = "sbx" + "a" * 20, "sbx" + "b" * 20


def test_the_pace_is_free_up_to_the_credit_and_then_the_rate() -> None:
    pace = Pace(frames_per_second=100, burst_frames=50)
    assert pace.take(50, now=1000.0) == 0
    assert pace.take(100, now=1000.0) == pytest.approx(1.0)
    assert pace.take(100, now=1001.0) == pytest.approx(1.0)


def test_credit_does_not_add_up_for_ever() -> None:
    pace = Pace(frames_per_second=100, burst_frames=50)
    assert pace.take(150, now=1_000_000.0) == pytest.approx(1.0)


def test_frames_are_cut_step_by_step() -> None:
    data = b"".join(stdout(seq, b"x") for seq in range(10))
    decoder = Decoder()
    cut = [decoder.cut(data[:-3], 4), decoder.cut(b"", 4), decoder.cut(b"", 4), decoder.cut(data[-3:], 4)]
    assert [[head.seq for head in batch.heads] for batch in cut] == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9]]
    decoder.finish()


async def test_no_step_takes_more_frames_than_the_others_can_wait_for() -> None:
    """However many tiny frames lie ready, they come a step at a time, all of them, and in order."""
    hostile = HostileGuest()
    count = 10_000
    many = b"".join(stdout(seq, b"x") for seq in range(count))
    hostile.lie("POST processes?follow", frames(attached(), many, exit_frame(count)))
    async with hostile.serving(), asyncio.timeout(60):
        guest = HttpGuest("127.0.0.1", "t", open_socket=open_socket, port=hostile.port)
        async with guest.start_followed({"id": PROCESS, "argv": ["true"]}) as followed:
            heads = [batch.heads async for batch in followed.batches()]
        await guest.close()
    assert max(map(len, heads)) <= STEP_FRAMES
    assert [head.seq for batch in heads for head in batch] == [*range(count), count]


def test_calls_beyond_a_bound_are_refused_and_freed_when_over() -> None:
    bounds = Bounds(Most(calls_of_one=2, calls=3))
    with bounds.call(ONE), bounds.call(ONE):
        with pytest.raises(ProblemError, match="this sandbox"), bounds.call(ONE):
            pass
        with bounds.call(OTHER), pytest.raises(ProblemError, match="this node") as raised, bounds.call(OTHER):
            pass
        assert (raised.value.code, raised.value.status) == ("too_many_streams", 429)
    with bounds.call(ONE), bounds.call(ONE), bounds.call(OTHER):
        pass


def test_bytes_beyond_a_bound_are_refused_and_freed_when_over() -> None:
    bounds = Bounds(Most(bytes_of_one=10, bytes=15))
    with bounds.call(ONE) as one, bounds.call(OTHER) as other:
        one.take(10)
        with pytest.raises(ProblemError, match="this sandbox"):
            one.take(1)
        other.take(5)
        with pytest.raises(ProblemError, match="this node"):
            other.take(1)
    with bounds.call(OTHER) as other:
        other.take(10)
