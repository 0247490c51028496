"""Attaching and dialling over a node and a fake guest: every frame, every close code, breaks, and slow readers."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import aiohttp
import pytest

from live_stand import SANDBOX_ID, StandSandbox, init_of, serving
from sandboxd.app import sockets as sockets_of
from sandboxd.contract.frames import Frame, FrameKind, encode
from sandboxd.contract.sockets import MAY_WRITE, PROCESS_PROTOCOL
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.guest_client.fake import FakeGuest
from sockets import PATIENCE_SECONDS, Attached, attached, dialled

_OPEN = {aiohttp.WSMsgType.PING, aiohttp.WSMsgType.BINARY}
WRITER = {MAY_WRITE: "true"}


Attaching = AbstractAsyncContextManager[Attached]


class Node:
    """A client of one stand."""

    def __init__(self, url: str, session: aiohttp.ClientSession, sandbox: StandSandbox, guest: FakeGuest) -> None:
        self.url, self.session, self.sandbox, self.guest = url, session, sandbox, guest

    async def start(self, *argv: str, **spec: Any) -> str:
        """Start a process; its address."""
        body = {"argv": argv, "stdin": True, **spec}
        async with self.session.post(self.url + "/processes", json=body) as answer:
            assert answer.status == 201, await answer.text()
            return f"{self.url}/processes/{(await answer.json())['id']}"

    def attach(self, process: str, query: str = "", headers: dict[str, str] = WRITER, **options: Any) -> Attaching:
        return attached(self.session, process, headers, query, **options)


@pytest.fixture
async def node() -> AsyncGenerator[Node]:
    guest = FakeGuest()
    await guest.init(init_of())
    sandbox = StandSandbox(guest)
    connector = aiohttp.TCPConnector(limit=0)
    async with serving(sandbox) as url, aiohttp.ClientSession(connector=connector) as session:
        yield Node(url, session, sandbox, guest)


async def test_all_of_it_from_attached_to_exit(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        assert client.socket.protocol == PROCESS_PROTOCOL
        assert client.socket.compress == 0
        assert (client.process["sandbox_id"], client.process["after"]) == (SANDBOX_ID, 0)
        assert node.sandbox.users == 1
        await client.type(b"hello")
        await client.until(lambda _: client.acknowledged == 5 and client.text == b"hello")
        await client.end()
        assert await client.rest() == 1000
        assert client.exit["exit_code"] == 0
        assert [frame.kind for frame in client.frames].count(FrameKind.EXIT) == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        while node.sandbox.users:  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0)


async def test_an_ended_process_is_read_from_any_position(node: Node) -> None:
    process = await node.start("echo", "0123456789")
    for query, text in (("after=4", b"456789\n"), ("tail_bytes=3", b"89\n"), ("", b"0123456789\n")):
        async with node.attach(process, query) as client:
            assert await client.rest() == 1000
            assert client.text == text
            assert client.process["after"] == 11 - len(text)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("after=12", 416, "seq_out_of_range"),
        ("after=1&tail_bytes=1", 422, "invalid_request"),
        ("follow=true", 422, "invalid_request"),
    ],
)
async def test_what_is_wrong_before_is_an_answer(node: Node, path: str, status: int, code: str) -> None:
    process = await node.start("echo", "0123456789")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with node.attach(process, path):
            pass
    assert refused.value.status == status
    key = "A" * 22 + "=="
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    async with node.session.get(f"{process}/attach?{path}", headers=handshake) as answer:
        assert (answer.status, (await answer.json())["code"]) == (status, code)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upgrade": "websocket"},
        {"Connection": "Upgrade", "Upgrade": "h2c"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "12", "Sec-WebSocket-Key": "A" * 24},
    ],
)
async def test_what_is_no_handshake_is_refused(node: Node, headers: dict[str, str]) -> None:
    process = await node.start("cat")
    for path in (f"{process}/attach", f"{node.url}/dial?port=80"):
        async with node.session.get(path, headers=headers) as answer:
            body = await answer.json()
            assert (answer.status, body["code"]) == (400, "malformed_request")


async def test_another_protocol_is_not_spoken_and_none_is_taken_for_ours(node: Node) -> None:
    process = await node.start("cat")
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with node.attach(process, protocols=("sandlot.process.v2",)):
            pass
    async with node.attach(process, protocols=()) as client:
        assert client.socket.protocol is None


async def test_compression_is_refused_silently(node: Node) -> None:
    async with node.attach(await node.start("cat"), compress=15) as client:
        assert client.socket.compress == 0


# --- input


async def test_repeated_input_is_skipped_and_a_gap_is_said(node: Node) -> None:
    async with node.attach(await node.start("cat")) as client:
        await client.type(b"hello ")
        await client.send(FrameKind.STDIN, b"hello world", 0)
        await client.send(FrameKind.STDIN, b"beyond", 20)
        await client.until(lambda _: client.problems)
        assert (client.problems[0]["code"], client.problems[0]["offset"]) == ("stdin_gap", 11)
        assert client.problems[0]["request_id"].startswith("req")
        client.offset = 11
        await client.end()
        assert await client.rest() == 1000
        assert (client.text, client.acknowledged) == (b"hello world", 11)


async def test_sizes_and_signals(node: Node) -> None:
    process = await node.start("cat", tty={"rows": 24, "cols": 80})
    async with node.attach(process) as client:
        await client.resize(40, 100)
        await client.send(FrameKind.RESIZE, b'{"rows":0,"cols":1}')
        await client.send(FrameKind.RESIZE, b'{"rows":1,"cols":1,"more":1}')
        await client.send(FrameKind.SIGNAL, b"{")
        await client.send(FrameKind.SIGNAL, b'{"signal":"SIGNOTHING"}')
        await client.until(lambda _: len(client.problems) == 4)
        codes = [problem["code"] for problem in client.problems]
        assert codes == ["invalid_request", "invalid_request", "malformed_request", "invalid_request"]
        await client.signal("SIGINT")
        assert await client.rest() == 1000
        assert client.exit["signal"] == "SIGINT"
    async with node.attach(process) as client:
        assert client.process["tty"] == {"rows": 40, "cols": 100}


async def test_a_caller_that_may_only_watch_is_told_so_and_watches_on(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process, headers={}) as watcher, node.attach(process) as writer:
        await watcher.type(b"intrusion")
        await watcher.signal("SIGKILL")
        await watcher.resize(1, 1)
        await watcher.end()
        await watcher.until(lambda _: len(watcher.problems) == 4)
        assert {problem["code"] for problem in watcher.problems} == {"scope_required"}
        assert watcher.problems[0]["required_scope"] == "processes:write"
        await writer.type(b"allowed")
        await watcher.until_text(b"allowed")
        assert watcher.text == b"allowed"


async def test_unknown_kinds_are_skipped(node: Node) -> None:
    async with node.attach(await node.start("cat")) as client:
        for kind in (0x00, 0x01, 0x04, 0x45, 0xFF):
            await client.send(kind, b"x")
        flagged = bytearray(encode(Frame(FrameKind.STDIN, 0, b"x")))
        flagged[1] = 1
        await client.socket.send_bytes(bytes(flagged))
        await client.type(b"known")
        await client.until_text(b"known")
        assert client.text == b"known"
        assert client.problems == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x41" * 23,
        encode(Frame(FrameKind.STDIN, 0, b"abc"))[:-1],
        encode(Frame(FrameKind.STDIN, 0, b"abc")) + b"d",
        encode(Frame(FrameKind.STDIN, 0, b"abc")) * 2,
        encode(Frame(FrameKind.STDIN_CLOSE, 0, b"abc")),
        encode(Frame(FrameKind.STDIN, 2**63, b"abc")),
        encode(Frame(FrameKind.RESIZE, 0, b" " * 2000)),
    ],
)
async def test_a_message_that_is_not_one_frame_closes(node: Node, message: bytes) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        await client.socket.send_bytes(message)
        assert await client.rest() == 4400
    async with node.attach(process) as client:
        assert client.process["state"] == "running"
        assert client.process["stdin_offset"] == 0


async def test_text_and_what_is_too_large_close(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        await client.socket.send_str("hello")
        assert await client.rest() == 1003
    async with node.attach(process) as client:
        await client.type(b"x" * 262_144)
        await client.until(lambda _: client.acknowledged == 262_144)
        await client.type(b"x" * 262_145)
        assert await client.rest() == 1009


async def test_a_fragmented_message_is_one_message(node: Node) -> None:
    async with node.attach(await node.start("cat")) as client:
        message = encode(Frame(FrameKind.STDIN, 0, b"in pieces"))
        writer: Any = client.socket._writer
        transport = writer.transport
        for first, last, part in (
            (True, False, message[:10]),
            (False, False, message[10:11]),
            (False, True, message[11:]),
        ):
            head = bytes([(0x80 if last else 0) | (2 if first else 0), 0x80 | len(part)])
            transport.write(head + b"\0\0\0\0" + part)
        await client.until_text(b"in pieces")


# --- what breaks


async def test_breaks_lose_and_double_nothing_either_way(node: Node) -> None:
    process = await node.start("cat")
    whole, received = os.urandom(200_000), b""
    sizes = (1, 1000, 65_536, 65_537, 150_000, 200_000)
    for cut in sizes:
        async with node.attach(process, f"after={len(received)}") as client:
            await client.type(whole[client.offset : cut])
            await client.until(lambda _, at=client: at.text or at.acknowledged)
            received += client.text
            client.cut()
    async with node.attach(process, f"after={len(received)}") as client:
        await client.type(whole[client.offset :])
        await client.end()
        assert await client.rest() == 1000
        received += client.text
    assert received == whole


async def test_detaching_ends_nothing(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        await client.type(b"a")
    async with node.attach(process) as client:
        assert client.process["state"] == "running"
        await client.until_text(b"a")


async def test_a_broken_way_to_the_guest_means_attach_again(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        node.guest.die()
        assert await client.rest() == 1001
    node.guest.revive()
    async with node.attach(process) as client:
        assert client.process["state"] == "running"
    node.guest.fail("attach", GuestUnreachableError("silent"))


async def test_a_sandbox_that_ends_gives_every_reader_an_exit(node: Node) -> None:
    process = await node.start("cat")
    async with node.attach(process) as client:
        await client.type(b"last")
        await client.until_text(b"last")
        node.guest.die()
        node.sandbox.ended.set()
        assert await client.rest() == 1000
        assert client.frames[-2].kind == FrameKind.LOST
        assert (client.exit["reason"], client.exit["exit_code"]) == ("sandbox_stopped", 137)


async def test_a_node_that_stops_says_so(node: Node) -> None:
    guest = FakeGuest()
    await guest.init(init_of())
    async with AsyncExitStack() as stack:
        inner = AsyncExitStack()
        url = await inner.enter_async_context(serving(StandSandbox(guest)))
        other = Node(url, node.session, node.sandbox, guest)
        guest.echoing.add(80)
        process = await other.start("cat")
        client = await stack.enter_async_context(other.attach(process))
        dial = await stack.enter_async_context(dialled(node.session, url, {}, 80))
        async with asyncio.TaskGroup() as group:
            ends = group.create_task(client.rest()), group.create_task(dial.receive())
            group.create_task(inner.aclose())
        assert ends[0].result() == 1001
        assert dial.close_code == 1001


# --- life


async def test_a_silent_client_is_given_up_and_a_living_one_is_not(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_of, "PING_SECONDS", 0.05)
    monkeypatch.setattr(sockets_of, "PONG_SECONDS", 0.15)
    process = await node.start("cat")
    over = asyncio.Event()

    def kept(frames: list[Frame]) -> bool:
        return over.is_set() and frames[-1].kind == FrameKind.KEEPALIVE

    async with (
        node.attach(process) as living,
        node.attach(process, autoping=False) as silent,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(living.until(kept))
        pings = 0
        while (message := await silent.socket.receive(PATIENCE_SECONDS)).type in _OPEN:
            pings += message.type == aiohttp.WSMsgType.PING
        assert pings >= 2
        over.set()
        await living.type(b"alive")
    assert next(frame.seq for frame in living.frames if frame.kind == FrameKind.KEEPALIVE) == 0


async def test_a_reader_that_does_not_read_costs_little_and_stops_nobody(node: Node) -> None:
    process = await node.start("yes", output={"mode": "ring", "ring_bytes": 1_048_576})
    async with node.attach(process) as slow, node.attach(process) as fast:
        await fast.until(lambda _: len(fast.text) > 8_000_000)
        await fast.signal("SIGINT")
        assert await fast.rest() == 1000
        assert await slow.rest() == 1000
        assert slow.exit["signal"] == "SIGINT"
        lost = sum(frame.next_seq - frame.seq for frame in slow.frames if frame.kind == FrameKind.LOST)
        assert lost + len(slow.text) == slow.position
        assert lost > 0


async def test_input_that_is_not_taken_is_not_read_either(node: Node) -> None:
    process = await node.start("cat")
    fake = node.guest._processes[process.rpartition("/")[2]]
    fake.takes_stdin = False
    async with node.attach(process) as client:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 64:
                await client.type(b"x" * 262_144)
                sent += 1

        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(flood())
            held = -1
            while held != sent:
                held = sent
                await asyncio.sleep(0.2)
            assert sent < 64
            fake.takes_stdin = True
            fake.wake()
            await flooding
        await client.until(lambda _: client.acknowledged == 64 * 262_144)


async def test_two_hundred_attached_at_once(node: Node) -> None:
    processes = [await node.start("cat") for _ in range(20)]
    async with AsyncExitStack() as stack:
        opening = [node.attach(process) for process in processes for _ in range(10)]
        clients = [await stack.enter_async_context(one) for one in opening]
        assert node.sandbox.users == 200
        for index, client in enumerate(clients):
            await client.type(b"%03d." % index)
        for index, client in enumerate(clients):
            await client.until(lambda _, one=client: len(one.text) == 40)
            begin = index // 10 * 10
            assert sorted(client.text.split(b".")[:-1]) == [b"%03d" % each for each in range(begin, begin + 10)]


# --- dialling


async def test_bytes_go_both_ways_and_each_end_is_said(node: Node) -> None:
    node.guest.echoing.add(8080)
    async with dialled(node.session, node.url, {}, 8080) as socket:
        assert socket.protocol == "sandlot.tcp.v1"
        assert node.sandbox.users == 1
        await socket.send_bytes(b"hello")
        assert (await socket.receive(PATIENCE_SECONDS)).data == b"hello"
        await socket.send_str('{"eof":true}')
        message = await socket.receive(PATIENCE_SECONDS)
        assert (message.type, json.loads(message.data)) == (aiohttp.WSMsgType.TEXT, {"eof": True})
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 1000


async def test_nothing_listens(node: Node) -> None:
    async with dialled(node.session, node.url, {}, 81) as socket:
        message = await socket.receive(PATIENCE_SECONDS)
        assert (message.type, socket.close_code, message.extra) == (aiohttp.WSMsgType.CLOSE, 4502, "port_not_listening")


@pytest.mark.parametrize("query", ["", "port=0", "port=65536", "port=49979", "port=x", "port=80&host=10.0.0.1"])
async def test_ports_that_are_none(node: Node, query: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await node.session.ws_connect(f"{node.url}/dial?{query}")
    assert refused.value.status == 422
    assert node.guest.calls["dial"] == 0


@pytest.mark.parametrize("text", ["eof", '{"eof":false}', '{"eof":true,"more":1}', "{}", "[" * 5000])
async def test_there_is_one_text_message(node: Node, text: str) -> None:
    node.guest.echoing.add(80)
    async with dialled(node.session, node.url, {}, 80) as socket:
        await socket.send_str(text)
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 1003


async def test_bytes_behind_the_end_and_too_many_at_once(node: Node) -> None:
    node.guest.echoing.add(80)
    async with dialled(node.session, node.url, {}, 80) as socket:
        await socket.send_bytes(b"x" * 1_048_577)
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 1009


async def test_a_dialled_sandbox_that_ends(node: Node) -> None:
    node.guest.echoing.add(80)
    async with dialled(node.session, node.url, {}, 80) as socket:
        await socket.send_bytes(b"x")
        await socket.receive(PATIENCE_SECONDS)
        node.sandbox.ended.set()
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 4410
