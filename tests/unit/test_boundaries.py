"""Where one frame of a server ends and the next begins, however the bytes are cut."""

from hypothesis import given
from hypothesis import strategies as st

from api.routes.passage import Boundaries, close_frame
from sandboxd.contract.sockets import CloseCode


def frame(payload: bytes, opcode: int = 2) -> bytes:
    if len(payload) < 126:
        return bytes((0x80 | opcode, len(payload))) + payload
    if len(payload) < 65_536:
        return bytes((0x80 | opcode, 126)) + len(payload).to_bytes(2) + payload
    return bytes((0x80 | opcode, 127)) + len(payload).to_bytes(8) + payload


FRAMES = st.lists(
    st.sampled_from([0, 1, 5, 125, 126, 127, 300, 65_535, 65_536, 70_000]).map(bytes).map(frame), max_size=6
)


@given(FRAMES, st.lists(st.integers(1, 70_010), max_size=20))
def test_boundaries_are_where_frames_end(frames: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(frames)
    ends = {0}
    for one in frames:
        ends.add(max(ends) + len(one))
    boundaries, at = Boundaries(), 0
    for size in [*cuts, len(whole)]:
        part = whole[at : at + size]
        assert boundaries.follow(part) == len(part)
        at += len(part)
        assert boundaries.between == (at in ends)
    assert not boundaries.closed


@given(FRAMES.filter(bool), st.integers(1, 100))
def test_bytes_are_followed_to_the_next_boundary(frames: list[bytes], begin: int) -> None:
    whole = b"".join(frames)
    boundaries = Boundaries()
    begin = min(begin, len(whole))
    boundaries.follow(whole[:begin])
    rest = boundaries.follow(whole[begin:], to_boundary=True)
    ends: list[int] = []
    for one in frames:
        ends.append((ends[-1] if ends else 0) + len(one))
    assert begin + rest == min(end for end in ends if end >= begin)
    assert boundaries.between


def test_a_close_frame_is_known_and_made() -> None:
    boundaries = Boundaries()
    boundaries.follow(frame(b"x") + frame(b"", opcode=9))
    assert not boundaries.closed
    made = close_frame(CloseCode.GOING_AWAY, "bye")
    assert made == b"\x88\x05\x03\xe9bye"
    boundaries.follow(made)
    assert boundaries.closed
    assert boundaries.between
