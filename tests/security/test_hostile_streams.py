"""A guest that was taken over lies in attachments and connections: the node ends them, and neither hangs nor bloats."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from test_hostile_guest import MORE_MEMORY_KIB, peak_kib

from hostile_guest import (
    ANSWERS,
    PROCESS,
    HostileGuest,
    Script,
    body,
    exit_frame,
    flood,
    head,
    raw,
    record,
    stdout,
    switched,
    then_close,
    then_silence,
    trickle,
)
from live_stand import StandSandbox, open_socket, serving
from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json
from sandboxd.contract.sockets import MAY_WRITE
from sandboxd.guest_client import upgrade
from sandboxd.guest_client.connection import Limits
from sandboxd.guest_client.http import HttpGuest
from sandboxd.processes import attachment, live

SHORT = Limits(connect_seconds=0.5, answer_seconds=0.5, stall_seconds=0.5)
BOUND_SECONDS = 20
ATTACH = "GET processes/*/attach"
DIAL = "GET dial"
HEADERS = {MAY_WRITE: "true"}


def first(after: object = 0, **changes: Any) -> bytes:
    state = {"state": "running", "exit_code": None, "reason": None, "ended_at": None}
    return encode_json(FrameKind.ATTACHED, 0, record(PROCESS, **(state | {"after": after} | changes)))


@pytest.fixture
async def hostile(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[HostileGuest]:
    monkeypatch.setattr(live, "VERDICT_SECONDS", 0.3)
    monkeypatch.setattr(attachment, "BREAK_SECONDS", 0.3)
    monkeypatch.setattr(upgrade, "_KEEPALIVE_SECONDS", 0.2)
    async with HostileGuest().serving() as guest:
        yield guest


@pytest.fixture
async def sandbox(hostile: HostileGuest) -> AsyncGenerator[StandSandbox]:
    client = HttpGuest("127.0.0.1", "token", open_socket=open_socket, port=hostile.port, limits=SHORT)
    yield StandSandbox(client)
    await client.close()


@asynccontextmanager
async def opened(sandbox: StandSandbox, path: str) -> AsyncGenerator[aiohttp.ClientWebSocketResponse]:
    async with (
        asyncio.timeout(BOUND_SECONDS),
        serving(sandbox) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(url + path, headers=HEADERS, max_msg_size=0) as socket,
    ):
        yield socket


async def seen(sandbox: StandSandbox, path: str) -> tuple[list[bytes], int | None]:
    """Everything a client gets, and the close code; or no bytes and the status of a refusal. In bounded memory."""
    before, found = peak_kib(), list[bytes]()
    try:
        async with opened(sandbox, path) as socket:
            while (message := await socket.receive()).type == aiohttp.WSMsgType.BINARY:
                found.append(message.data)
            code = socket.close_code
    except aiohttp.WSServerHandshakeError as error:
        code = error.status
    assert peak_kib() - before < MORE_MEMORY_KIB
    assert sandbox.users == 0
    return found, code


@pytest.mark.parametrize("lie", ANSWERS)
async def test_no_answer_to_an_attachment_is_believed(hostile: HostileGuest, sandbox: StandSandbox, lie: str) -> None:
    hostile.lie(ATTACH, ANSWERS[lie])
    found, code = await seen(sandbox, f"/processes/{PROCESS}/attach")
    assert found == []
    assert code in {404, 502}


@pytest.mark.parametrize("lie", ANSWERS)
async def test_no_answer_to_a_dial_is_believed(hostile: HostileGuest, sandbox: StandSandbox, lie: str) -> None:
    if lie == "switching protocols":
        return  # that is what it should say
    hostile.lie(DIAL, ANSWERS[lie])
    found, code = await seen(sandbox, "/dial?port=80")
    assert found == []
    assert code in {1011, 4404}


FIRSTS: dict[str, Script] = {
    "no first frame": then_silence(switched()),
    "closed behind the switch": then_close(switched()),
    "no frames": then_silence(switched(b"this is no frame at all, but a text of some length")),
    "a giant frame": raw(switched(b"\x07\0\0\0\xff\xff\xff\xff" + bytes(16))),
    "output first": raw(switched(stdout(0, b"a"), first())),
    "another process": raw(switched(first(id="prc" + "z" * 20))),
    "no position": raw(switched(first(after=None))),
    "a position that is none": raw(switched(first(after=-1))),
    "a position that was not asked for": raw(switched(first(after=3))),
    "a position beyond the end": raw(switched(first(after=7))),
    "a boolean position": raw(switched(first(after=True))),
    "half a frame": then_close(switched(first()[:100])),
    "a frame one byte at a time": trickle(switched(), b"\x07"),
    "deep nesting": raw(switched(encode(Frame(FrameKind.ATTACHED, 0, b"[" * 60_000)))),
    "flags": raw(switched(first()[:1] + b"\x01" + first()[2:])),
    "a giant offset": raw(switched(first(stdin_offset=2**70))),
}


@pytest.mark.parametrize("lie", FIRSTS)
async def test_no_first_frame_is_believed(hostile: HostileGuest, sandbox: StandSandbox, lie: str) -> None:
    hostile.lie(ATTACH, FIRSTS[lie])
    found, code = await seen(sandbox, f"/processes/{PROCESS}/attach")
    assert (found, code) == ([], 502)


LIES: dict[str, bytes] = {
    "a seq that jumps": stdout(5, b"b"),
    "an unknown kind": encode(Frame(0x33, 0, b"x")),
    "an input kind": encode(Frame(FrameKind.STDIN, 0, b"x")),
    "attached twice": first(),
    "an impossible time": stdout(0, b"a", 2**63 - 1),
    "lost everything": encode_json(FrameKind.LOST, 0, {"lost_bytes": 2**70}),
    "an exit elsewhere": exit_frame(7),
    "an exit nested deep": encode(Frame(FrameKind.EXIT, 0, b"[" * 60_000)),
    "output behind the exit": exit_frame(0) + stdout(0, b"a"),
    "an acknowledgement of nothing sent": encode(Frame(FrameKind.STDIN_ACK, 1)),
    "an acknowledgement with a payload": encode(Frame(FrameKind.STDIN_ACK, 0, b"x")),
    "an acknowledgement with flags": b"\x08\x01" + bytes(22),
    "an error that is no JSON": encode(Frame(FrameKind.ERROR, 0, b"boom")),
    "an error nested deep": encode(Frame(FrameKind.ERROR, 0, b"[" * 60_000)),
    "an unknown error": encode_json(FrameKind.ERROR, 0, {"code": "boom", "message": "x"}),
    "an error that is none of ours": encode_json(FrameKind.ERROR, 0, {"code": "unauthenticated", "message": "x"}),
    "an error with wrong members": encode_json(FrameKind.ERROR, 0, {"code": "stdin_gap", "message": "", "offset": "x"}),
    "an error elsewhere": encode(Frame(FrameKind.ERROR, 2**63, b'{"code":"stdin_closed","message":"x"}')),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_ends_the_attachment(hostile: HostileGuest, sandbox: StandSandbox, lie: str) -> None:
    hostile.lie(ATTACH, then_silence(switched(first(), LIES[lie])))
    found, code = await seen(sandbox, f"/processes/{PROCESS}/attach")
    assert code == 1011
    assert [frame[0] for frame in found] in ([0x07], [0x07, 0x04])
    assert len(sandbox.reports) == 1


@pytest.mark.parametrize(
    "silence",
    [
        then_close(switched(first())),
        then_silence(switched(first())),
        trickle(switched(first(), stdout(0, bytes(65_536))[:24]), b"x"),
    ],
)
async def test_silence_and_breaks_mean_attach_again(
    hostile: HostileGuest, sandbox: StandSandbox, silence: Script
) -> None:
    hostile.lie(ATTACH, silence)
    found, code = await seen(sandbox, f"/processes/{PROCESS}/attach")
    assert (len(found), code) == (1, 1001)


async def test_a_guest_of_an_older_version_is_no_liar(hostile: HostileGuest, sandbox: StandSandbox) -> None:
    old = body({"code": "route_not_found", "message": "no route"}, 404)
    hostile.lie(ATTACH, old)
    hostile.lie(DIAL, old)
    assert await seen(sandbox, f"/processes/{PROCESS}/attach") == ([], 501)
    assert await seen(sandbox, "/dial?port=80") == ([], 1011)
    assert sandbox.reports == []


async def test_a_long_error_is_cut(hostile: HostileGuest, sandbox: StandSandbox) -> None:
    long = encode_json(FrameKind.ERROR, 0, {"code": "stdin_closed", "message": "x" * 60_000})
    hostile.lie(ATTACH, then_close(switched(first(), long, exit_frame(0))))
    found, code = await seen(sandbox, f"/processes/{PROCESS}/attach")
    assert code == 1000
    assert len(found[1]) < 4096
    assert json.loads(found[1][24:])["code"] == "stdin_closed"


async def test_a_flood_that_nobody_reads_is_not_taken_in(hostile: HostileGuest, sandbox: StandSandbox) -> None:
    """The guest is stopped by the client that does not read; what is held between them is a few buffers."""
    written = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(switched(first()))
        while True:
            writer.write(stdout(written, bytes(65_536)))
            written += 65_536
            await writer.drain()

    hostile.lie(ATTACH, endless)
    before = peak_kib()
    async with opened(sandbox, f"/processes/{PROCESS}/attach"):
        held = -1
        while not written or held != written:
            held = written
            await asyncio.sleep(0.3)
        assert written < 64 << 20
    assert peak_kib() - before < MORE_MEMORY_KIB


async def test_input_that_a_guest_does_not_take_is_not_taken_in(
    hostile: HostileGuest, sandbox: StandSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "_KEEPALIVE_SECONDS", 15)

    async def deaf(writer: asyncio.StreamWriter) -> None:
        writer.write(switched(first(stdin_closed=False)))
        writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - it can
        await asyncio.Event().wait()

    hostile.lie(ATTACH, deaf)
    before, sent = peak_kib(), 0
    async with opened(sandbox, f"/processes/{PROCESS}/attach") as socket:
        try:
            async with asyncio.timeout(5):
                while sent < 256 << 20:
                    await socket.send_bytes(encode(Frame(FrameKind.STDIN, sent, bytes(262_144))))
                    sent += 262_144
        except TimeoutError:
            pass
        assert sent < 64 << 20
    assert peak_kib() - before < MORE_MEMORY_KIB


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (then_close(switched(b"some bytes")), None),
        (flood(switched(), bytes(65_536)), None),
        (raw(head(200, "Content-Length: 2") + b"{}"), 1011),
        (body({"code": "port_not_listening", "message": "x", "port": 80}, 502), 4502),
        (body({"code": "port_not_listening", "message": "x"}, 502), 1011),
        (body({"code": "invalid_request", "message": "x" * 60_000}, 422), 1011),
    ],
)
async def test_a_connection_inside_that_lies(
    hostile: HostileGuest, sandbox: StandSandbox, script: Script, code: int | None
) -> None:
    hostile.lie(DIAL, script)
    async with opened(sandbox, "/dial?port=80") as socket:
        message = await socket.receive()
        if code is None:
            assert message.type == aiohttp.WSMsgType.BINARY
        else:
            assert socket.close_code == code
