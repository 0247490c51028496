"""The frame codec: whatever the chunks, the same frames; whatever the bytes, an error or frames, never a loop."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    Decoder,
    Frame,
    FrameError,
    FrameKind,
    batch_of,
    encode,
    encode_json,
)

frames_of = st.lists(
    st.builds(
        Frame,
        kind=st.integers(0, 255),
        seq=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=300),
        time_us=st.integers(-(2**63), 2**63 - 1),
        skip=st.just(value=False),
    ),
    max_size=20,
)


def _chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(frames_of, st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_survive_any_cut(frames: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(map(encode, frames))
    found = [frame for chunk in _chunks(data, cuts) for frame in decoder.feed(chunk)]
    decoder.finish()
    assert found == frames


@given(frames_of, st.lists(st.integers(0, 10_000), max_size=12))
def test_batches_hold_exactly_the_bytes_that_came(frames: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(map(encode, frames))
    batches = [decoder.cut(chunk) for chunk in _chunks(data, cuts)]
    assert b"".join(batch.data for batch in batches) == data
    assert [bytes(batch.payload(head)) for batch in batches for head in batch.heads] == [f.payload for f in frames]


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5))
def test_any_bytes_are_frames_or_an_error(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder(max_payload=500)
    taken = 0
    try:
        for chunk in _chunks(data, cuts):
            taken += sum(HEADER_BYTES + len(frame.payload) for frame in decoder.feed(chunk))
        assert taken + decoder.pending_bytes == len(data)
        decoder.finish()
    except FrameError:
        pass
    assert decoder.pending_bytes < HEADER_BYTES + 500 + len(data)


def test_a_length_beyond_the_limit_is_refused_before_its_payload_comes() -> None:
    header = encode(Frame(FrameKind.STDOUT, 0, b""))
    lying = header[:4] + (MAX_PAYLOAD + 1).to_bytes(4, "big") + header[8:]
    with pytest.raises(FrameError, match="65537"):
        Decoder().cut(lying)


def test_a_cut_stream_is_an_error() -> None:
    decoder = Decoder()
    decoder.cut(encode(Frame(FrameKind.STDOUT, 0, b"hello"))[:-1])
    with pytest.raises(FrameError, match="28 bytes"):
        decoder.finish()


@pytest.mark.parametrize("place", [1, 2, 3])
def test_flags_and_reserved_bits_make_a_frame_unknown(place: int) -> None:
    data = bytearray(encode(Frame(FrameKind.STDOUT, 7, b"x")))
    data[place] = 1
    (frame,) = Decoder().feed(bytes(data))
    assert frame.skip


def test_next_seq_counts_output_and_losses() -> None:
    assert Frame(FrameKind.STDERR, 5, b"abc").next_seq == 8
    assert Frame(FrameKind.KEEPALIVE, 5).next_seq == 5
    (lost,) = Decoder().feed(encode_json(FrameKind.LOST, 5, {"lost_bytes": 10}))
    assert lost.next_seq == 15


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b"\xff"])
def test_a_payload_that_is_no_object_is_an_error(payload: bytes) -> None:
    with pytest.raises(FrameError):
        Frame(FrameKind.EXIT, 0, payload).json()


def test_a_batch_gives_single_frames() -> None:
    frames = [Frame(FrameKind.STDOUT, 0, b"ab"), Frame(FrameKind.EXIT, 2, b"{}")]
    assert list(batch_of(*frames).frames()) == frames
