"""Output comes whole and once, wherever the stream is cut."""

from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandlot import (
    AsyncClient,
    AsyncSandbox,
    Client,
    Frame,
    Process,
    ProtocolError,
    RetryPolicy,
    Sandbox,
    UnreachableError,
)
from sandlot.frames import FRAMES, NDJSON, decoder_for
from stub_api import Fault, StubApi, StubProcess, running

_FAST = RetryPolicy(first_seconds=0, longest_seconds=0)


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


def _process(api: StubApi, output: list[tuple[str, bytes]], *, exit_code: int = 0) -> StubProcess:
    sandbox = api.add_sandbox()
    process = api.add_process(sandbox["id"])
    for kind, data in output:
        process.write(kind, data)
    process.end(exit_code)
    return process


def _open(client: Client, process: StubProcess) -> Process:
    return Sandbox.get(process.sandbox_id, client=client).process(process.spec["id"])


def _joined(frames: list[Frame]) -> dict[str, bytes]:
    return {kind: b"".join(frame.data for frame in frames if frame.kind == kind) for kind in ("stdout", "stderr")}


_PIECES = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=300)), min_size=1, max_size=8
)


@given(
    output=_PIECES,
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    frame_bytes=st.integers(1, 200),
    media_type=st.sampled_from([FRAMES, NDJSON]),
    clean=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_loses_nothing_and_repeats_nothing(
    output: list[tuple[str, bytes]], cuts: list[int], frame_bytes: int, media_type: str, clean: bool
) -> None:
    with running() as api, Client(api.url, api.key, retries=_FAST) as client:
        process = _process(api, output, exit_code=3)
        api.cuts, api.frame_bytes, api.clean_end_after_cut = list(cuts), frame_bytes, clean
        stream = _open(client, process).output(media_type=media_type)
        frames = list(stream)
        assert _joined(frames) == {
            kind: b"".join(data for name, data in output if name == kind) for kind in ("stdout", "stderr")
        }
        assert [frame.kind for frame in frames].count("exit") == 1
        assert frames[-1].exit is not None
        assert frames[-1].exit.exit_code == 3
        assert all(earlier.next == later.seq for earlier, later in pairwise(frames))
        assert stream.position == process.length
        assert stream.lost_bytes == 0


@given(data=st.binary(max_size=400), sizes=st.lists(st.integers(1, 40), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_decoder_reads_any_chunking(data: bytes, sizes: list[int]) -> None:
    from sandboxd.contract.frames import Frame as WireFrame  # noqa: PLC0415 - the contract's own name for it
    from sandboxd.contract.frames import FrameKind, encode, encode_json  # noqa: PLC0415 - the same

    wire = encode(WireFrame(0x55, 0, b"unknown")) + encode(WireFrame(FrameKind.STDOUT, 5, data))
    wire += encode_json(FrameKind.LOST, 5 + len(data), {"lost_bytes": 9})
    decoder = decoder_for(FRAMES)
    frames: list[Frame] = []
    position = 0
    while position < len(wire):
        size = sizes[position % len(sizes)]
        frames += decoder.feed(wire[position : position + size])
        position += size
    assert [(frame.kind, frame.seq, frame.next) for frame in frames] == [
        ("stdout", 5, 5 + len(data)),
        ("lost", 5 + len(data), 14 + len(data)),
    ]
    assert frames[0].data == data


async def test_the_async_client_resumes_too(api: StubApi) -> None:
    process = _process(api, [("stdout", b"a" * 100), ("stderr", b"b" * 100)])
    api.cuts, api.frame_bytes = [10, 70, 200], 30
    async with AsyncClient(api.url, api.key, retries=_FAST) as client:
        sandbox = await AsyncSandbox.get(process.sandbox_id, client=client)
        async with (await sandbox.process(process.spec["id"])).output() as output:
            frames = [frame async for frame in output]
    assert _joined(frames) == {"stdout": b"a" * 100, "stderr": b"b" * 100}


def test_what_the_sandbox_dropped_is_named(api: StubApi) -> None:
    process = _process(api, [("stdout", b"tail")])
    process.lost_bytes = 1000
    with Client(api.url, api.key, retries=_FAST) as client:
        stream = _open(client, process).output()
        kinds = [(frame.kind, frame.lost_bytes) for frame in stream]
    assert kinds == [("lost", 1000), ("stdout", 0), ("exit", 0)]
    assert stream.lost_bytes == 1000


def test_a_tail_goes_on_from_its_position(api: StubApi) -> None:
    process = _process(api, [("stdout", b"0123456789")])
    api.frame_bytes, api.cuts = 2, [24 + 2]
    with Client(api.url, api.key, retries=_FAST) as client:
        frames = list(_open(client, process).output(tail_bytes=6))
    assert _joined(frames)["stdout"] == b"456789"


def test_a_present_end_ends_the_iteration_without_follow(api: StubApi) -> None:
    sandbox = api.add_sandbox()
    process = api.add_process(sandbox["id"])
    process.write("stdout", b"so far")
    with Client(api.url, api.key, retries=_FAST) as client:
        stream = _open(client, process).output(follow=False)
        assert [frame.data for frame in stream] == [b"so far"]
        process.write("stdout", b" and more")
        rest = _open(client, process).output(after=stream.position, follow=False)
        assert [frame.data for frame in rest] == [b" and more"]


def test_output_left_early_closes_its_connection(api: StubApi) -> None:
    sandbox = api.add_sandbox()
    process = api.add_process(sandbox["id"])
    process.write("stdout", b"first")
    with Client(api.url, api.key, retries=_FAST) as client, _open(client, process).output() as stream:
        assert next(iter(stream)).data == b"first"
    assert list(stream) == []


def test_a_server_that_always_breaks_is_given_up(api: StubApi) -> None:
    process = _process(api, [("stdout", b"x" * 100)])
    api.cuts = [5] * 100
    policy = RetryPolicy(attempts=4, first_seconds=0)
    with Client(api.url, api.key, retries=policy) as client, pytest.raises(UnreachableError):
        list(_open(client, process).output())
    assert len(api.seen("/output")) == 4


def test_a_refusal_while_resuming_is_the_error(api: StubApi) -> None:
    process = _process(api, [("stdout", b"x" * 100)])
    api.frame_bytes, api.cuts = 10, [24 + 10]
    with Client(api.url, api.key, retries=_FAST) as client:
        stream = iter(_open(client, process).output())
        assert next(stream).data == b"x" * 10
        api.faults.append(Fault("/output", 503, {"code": "node_unreachable", "retryable": True}))
        assert next(stream).data == b"x" * 10


def test_an_answer_of_another_kind_is_refused() -> None:
    def page(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>", headers={"content-type": "text/html"})

    with httpx.Client(transport=httpx.MockTransport(page)) as http:
        client = Client("http://stub", "key", http=http, retries=_FAST)
        with pytest.raises(ProtocolError, match="not JSON"):
            client.me()
    with pytest.raises(ProtocolError, match="text/html"):
        decoder_for("text/html")
