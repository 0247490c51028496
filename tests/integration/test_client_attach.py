"""Terminals and connections to ports: nothing is lost or doubled, wherever either direction is cut."""

import socket
import threading
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandlot import (
    AsyncClient,
    AsyncSandbox,
    Attachment,
    Client,
    PortNotListeningError,
    ProcessEndedError,
    ProcessNotFoundError,
    ProtocolError,
    RetryPolicy,
    Sandbox,
    SandboxEndedError,
    SandlotError,
    StdinClosedError,
    UnreachableError,
)
from sandlot._unacked import WINDOW_BYTES, Unacked
from sandlot.frames import Control, decode_message, encode_message
from stub_api import StubApi, StubProcess, running

_FAST = RetryPolicy(first_seconds=0, longest_seconds=0)


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def client(api: StubApi) -> Iterator[Client]:
    with Client(api.url, api.key, retries=_FAST) as client:
        yield client


def _attachment(client: Client, process: StubProcess, *, tail_bytes: int | None = None) -> Attachment:
    sandbox = Sandbox.get(process.sandbox_id, client=client)
    return sandbox.process(process.spec["id"]).attach(tail_bytes=tail_bytes)


def _output(attachment: Attachment) -> bytes:
    return b"".join(frame.data for frame in attachment)


@given(
    output=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 900), max_size=6),
    frame_bytes=st.integers(1, 150),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_of_an_attachment_loses_no_output(output: list[bytes], cuts: list[int], frame_bytes: int) -> None:
    with running() as api, Client(api.url, api.key, retries=_FAST) as client:
        process = api.add_process(api.add_sandbox()["id"], tty={"rows": 24, "cols": 80})
        for data in output:
            process.write("terminal", data)
        process.end(5)
        api.cuts, api.frame_bytes = [cut + 1 for cut in cuts], frame_bytes
        with _attachment(client, process) as attachment:
            assert _output(attachment) == b"".join(output)
        assert attachment.exit is not None
        assert attachment.exit.exit_code == 5
        assert attachment.position == process.length


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 4000), max_size=5),
    input_cuts=st.lists(st.integers(1, 4000), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_of_an_attachment_writes_input_once(
    pieces: list[bytes], cuts: list[int], input_cuts: list[int]
) -> None:
    with running() as api, Client(api.url, api.key, retries=_FAST) as client:
        api.cuts, api.input_cuts = list(cuts), list(input_cuts)
        process = api.add_process(api.add_sandbox()["id"], argv=["cat"], stdin=True)
        process.begin()
        with _attachment(client, process) as attachment:
            for piece in pieces:
                attachment.write(piece)
            attachment.close_stdin()
            assert _output(attachment) == b"".join(pieces)
        assert bytes(process.stdin) == b"".join(pieces)


async def test_a_terminal_talks_both_ways_at_once(api: StubApi) -> None:
    api.cuts, api.input_cuts = [700, 900], [300, 500]
    said: list[bytes] = []
    async with (
        AsyncClient(api.url, api.key, retries=_FAST) as client,
        await AsyncSandbox.create(client=client) as sandbox,
    ):
        process = await sandbox.start(["shout"], tty=(24, 80))
        async with process.attach() as terminal, anyio.create_task_group() as tasks:

            async def talk() -> None:
                for number in range(20):
                    await terminal.write(f"line {number}\n")
                await terminal.resize(50, 132)
                await terminal.write("exit 4\n")

            tasks.start_soon(talk)
            said = [frame.data async for frame in terminal]
    assert b"".join(said) == b"".join(f"LINE {number}\r\n".encode() for number in range(20))
    assert terminal.exit is not None
    assert terminal.exit.exit_code == 4
    assert api.process_started().sizes[-1] == (50, 132)


def test_more_input_than_the_window_needs_no_reader(api: StubApi, client: Client) -> None:
    data = bytes(3 * WINDOW_BYTES + 5)
    process = api.add_process(api.add_sandbox()["id"], argv=["cat"], stdin=True)
    process.begin()
    with _attachment(client, process) as attachment:
        attachment.write(data)
        attachment.close_stdin()
        assert len(_output(attachment)) == len(data)


def test_a_tail_goes_on_where_it_is_cut(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    process.write("stdout", b"0123456789")
    process.end(0)
    api.cuts, api.frame_bytes = [700], 1
    with _attachment(client, process, tail_bytes=6) as attachment:
        assert _output(attachment) == b"456789"


def test_a_server_that_leaves_is_attached_to_again(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    process.write("stdout", b"all")
    process.end(0)
    api.close_sockets_with = [1001, 4503, 1011]
    with _attachment(client, process) as attachment:
        assert _output(attachment) == b"all"
    assert len(api.seen("/attach")) == 4


@pytest.mark.parametrize(
    ("code", "kind"), [(4404, ProcessNotFoundError), (4410, SandboxEndedError), (4400, ProtocolError)]
)
def test_a_close_code_is_the_error_it_stands_for(
    api: StubApi, client: Client, code: int, kind: type[SandlotError]
) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    api.close_sockets_with = [code]
    with pytest.raises(kind), _attachment(client, process):
        pass


def test_a_sandbox_that_ended_refuses_an_attachment_with_its_reason(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    attachment = _attachment(client, process)
    api.sandboxes[process.sandbox_id] |= {"state": "failed", "reason": "out_of_memory"}
    with pytest.raises(SandboxEndedError) as caught:
        list(attachment)
    assert caught.value.reason == "out_of_memory"


def test_input_nobody_will_read_is_an_error(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    process.write("stdout", b"done")
    with _attachment(client, process) as attachment:
        attachment.write(b"late")
        next(iter(attachment))
        process.end(3)
        list(attachment)
        with pytest.raises((StdinClosedError, ProcessEndedError)):
            attachment.write(b"later")
    process = api.add_process(process.sandbox_id, stdin=True, id="prc" + "c" * 20)
    with _attachment(client, process) as attachment:
        process.end(0)
        list(attachment)
        with pytest.raises(ProcessEndedError):
            attachment.write(b"late")


def test_leaving_the_block_ends_nothing(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    process.write("stdout", b"first")
    with _attachment(client, process) as attachment:
        assert next(iter(attachment)).data == b"first"
    assert process.exit is None
    assert list(attachment) == []


def test_an_attachment_signals(api: StubApi, client: Client) -> None:
    process = api.add_process(api.add_sandbox()["id"])
    with _attachment(client, process) as attachment:
        attachment.signal("SIGINT")
        list(attachment)
    assert process.signals == ["SIGINT"]


@given(steps=st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 60)), max_size=30))
@settings(deadline=None)
def test_unacknowledged_input_is_the_end_of_all_input(steps: list[bytes | int]) -> None:
    kept, written, arrived = Unacked(0), b"", 0
    for step in steps:
        if isinstance(step, bytes):
            assert kept.add(step) == len(written)
            written += step
        else:
            arrived = min(len(written), max(arrived, step))
            kept.acknowledge(arrived)
        assert kept.rest() == (arrived, written[arrived:])
        assert kept.end == len(written)
    with pytest.raises(ProtocolError):
        kept.acknowledge(len(written) + 1)


def test_another_writers_input_moves_ours_on() -> None:
    kept = Unacked(0)
    kept.add(b"abc")
    kept.join(10)
    assert (kept.rest(), kept.add(b"d")) == ((10, b""), 10)
    with pytest.raises(ProtocolError):
        kept.join(3)


@pytest.mark.parametrize("message", ["text", b"short", bytes(24) + b"more than it says"])
def test_what_is_no_frame_is_refused(message: bytes | str) -> None:
    with pytest.raises(ProtocolError):
        decode_message(message)


def test_unknown_frames_are_skipped() -> None:
    assert decode_message(bytes([0x55]) + bytes(23)) is None
    assert decode_message(bytes([0x01, 1]) + bytes(22)) is None
    ack = decode_message(bytes([0x08]) + bytes(14) + b"\x05" + bytes(8))
    assert ack == Control("stdin_ack", 5, {})
    assert encode_message("resize", fields={"rows": 2, "cols": 3})[24:] == b'{"rows": 2, "cols": 3}'


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what comes, and ends when the other side does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    while data := connection.recv(65_536):
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_dial_is_a_stream_with_two_ends(api: StubApi, client: Client, echo: int) -> None:
    api.ports[8080] = echo
    data = bytes(range(256)) * 1000
    with Sandbox.create(client=client) as sandbox, sandbox.dial(8080) as connection:
        connection.send(data)
        connection.send_eof()
        back = b""
        while more := connection.receive():
            back += more
    assert back == data


def test_dial_says_when_nothing_listens(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox, sandbox.dial(81) as connection, pytest.raises(PortNotListeningError):
        connection.receive()


def test_a_broken_connection_is_an_error_not_an_end(api: StubApi, client: Client, echo: int) -> None:
    api.ports[8080], api.cuts = echo, [20]
    with Sandbox.create(client=client) as sandbox, sandbox.dial(8080) as connection:
        connection.send(bytes(100))
        with pytest.raises(UnreachableError):
            list(iter(connection.receive, b""))


def test_ports_are_waited_for(api: StubApi, client: Client) -> None:
    api.ports[8080], api.ports_appear_after = 1, 3
    with Sandbox.create(client=client) as sandbox:
        assert sandbox.wait_for_port(8080).port == 8080
        assert [one.port for one in sandbox.ports()] == [8080]
        with pytest.raises(PortNotListeningError):
            sandbox.wait_for_port(9090, timeout_seconds=0)
