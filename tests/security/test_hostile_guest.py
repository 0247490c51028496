"""A guest that was taken over can neither hang, nor crash, nor bloat the node, whatever it sends."""

import asyncio
import json
import resource
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from hostile_guest import (
    ANSWERS,
    PROCESS,
    SILENCES,
    STREAMS,
    HostileGuest,
    Script,
    chunk,
    exit_frame,
    flood,
    frames,
    head,
    open_frames,
    raw,
    record,
    stdout,
    then_silence,
    trickle,
)
from hostile_guest import attached as attached_frame
from hostile_guest import body as body_script
from live_stand import StandSandbox, init_of, open_socket, serving
from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import Limits
from sandboxd.guest_client.http import HttpGuest
from sandboxd.processes import live, streams

SHORT = Limits(
    connect_seconds=0.5, answer_seconds=0.5, start_seconds=0.5, stall_seconds=0.5, write_seconds=2, idle_seconds=5,
    settle_seconds=0.05,
)  # fmt: skip
PATIENT = Limits(connect_seconds=10, answer_seconds=10, start_seconds=10, stall_seconds=10, write_seconds=10)
"""For liars that answer at once: a slow machine must not pass for a silent one."""
BOUND_SECONDS = 60
"""Every wait of the client is shorter; this only tells a hang from a slow machine."""
MORE_MEMORY_KIB = 96 * 1024

CALLS: dict[str, tuple[str, Callable[[Guest], Awaitable[object]]]] = {
    "health": ("GET health", lambda guest: guest.health(0.5)),
    "init": ("POST init", lambda guest: guest.init(init_of(), 0.5)),
    "start": ("POST processes", lambda guest: guest.start({"id": PROCESS, "argv": ["true"]})),
    "processes": ("GET processes", lambda guest: guest.processes(None, None)),
    "shutdown": ("POST shutdown", lambda guest: guest.shutdown(0)),
}


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> Limits:
    """Return how long the client waits: hardly, where silence is the lie."""
    callspec = getattr(request.node, "callspec", None)
    return PATIENT if callspec is not None and callspec.params.get("lie") in STREAMS else SHORT


@pytest.fixture
async def hostile(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> AsyncGenerator[HostileGuest]:
    for module in (live, streams):
        monkeypatch.setattr(module, "VERDICT_SECONDS", limits.stall_seconds)
    async with HostileGuest().serving() as guest:
        yield guest


@pytest.fixture
async def guest(hostile: HostileGuest, limits: Limits) -> AsyncGenerator[HttpGuest]:
    client = HttpGuest("127.0.0.1", "token", open_socket=open_socket, port=hostile.port, limits=limits)
    yield client
    await client.close()


@pytest.fixture
async def node(guest: HttpGuest) -> AsyncGenerator[tuple[str, StandSandbox]]:
    sandbox = StandSandbox(guest)
    async with serving(sandbox) as url:
        yield url, sandbox


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def refused(call: Awaitable[object]) -> Exception:
    """Return how a call failed, in bounded time and memory."""
    before = peak_kib()
    async with asyncio.timeout(BOUND_SECONDS):
        try:
            found = await call
        except (GuestError, GuestUnreachableError, ProblemError) as error:
            assert peak_kib() - before < MORE_MEMORY_KIB
            return error
    raise AssertionError(f"believed: {found!r}")


@pytest.mark.parametrize("name", CALLS)
async def test_an_honest_answer_is_believed(guest: HttpGuest, name: str) -> None:
    await CALLS[name][1](guest)


@pytest.mark.parametrize("lie", ANSWERS)
@pytest.mark.parametrize("name", ["health", "processes"])
async def test_no_lie_is_believed(hostile: HostileGuest, guest: HttpGuest, name: str, lie: str) -> None:
    call, method = CALLS[name]
    hostile.lie(call, ANSWERS[lie])
    error = await refused(method(guest))
    if not isinstance(error, GuestUnreachableError):
        assert isinstance(error, GuestError) or getattr(error, "code", None) == "process_not_found"


@pytest.mark.parametrize("lie", ["no JSON", "silence", "a body without end", "a redirect", "deep nesting"])
@pytest.mark.parametrize("name", ["init", "start", "shutdown"])
async def test_no_lie_is_believed_by_the_other_calls(
    hostile: HostileGuest, guest: HttpGuest, name: str, lie: str
) -> None:
    call, method = CALLS[name]
    hostile.lie(call, ANSWERS[lie])
    await refused(method(guest))


async def test_a_redirect_is_not_followed(hostile: HostileGuest, guest: HttpGuest) -> None:
    async with HostileGuest().serving() as other:
        to = head(307, f"Location: http://127.0.0.1:{other.port}/v1/health", "Content-Length: 0")
        hostile.lie("GET health", raw(to))
        await refused(guest.health(0.5))
        assert not other.requests


async def test_no_cookie_is_sent_back(hostile: HostileGuest, guest: HttpGuest) -> None:
    hostile.lie("GET health", body_script({"version": "h", "protocol": 2}))
    await refused(guest.health())
    assert guest._connection._session.cookie_jar.filter_cookies(guest._connection._url) == {}


async def test_an_idle_connection_takes_nothing_in(hostile: HostileGuest, guest: HttpGuest) -> None:
    async def script(writer: asyncio.StreamWriter) -> None:
        await body_script({"version": "h", "protocol": 1, "initialized": True, "processes_running": 0})(writer)
        await writer.drain()
        flooding.set()
        await flood(b"", (head(200, "Content-Length: 2") + b"{}") * 2000)(writer)

    flooding = asyncio.Event()
    hostile.lie("GET health", script)
    before = peak_kib()
    async with asyncio.timeout(BOUND_SECONDS):
        await guest.health()
        await flooding.wait()
        while guest._connection._session.connector is not None and hostile.requests["GET health"] < 3:
            await guest.health()
    assert peak_kib() - before < MORE_MEMORY_KIB


async def read_all(url: str, method: str = "GET", **options: Any) -> tuple[int, bytes, bool]:
    """Return status, body, and whether the answer broke off."""
    data = b""
    status = 0
    try:
        async with (
            asyncio.timeout(BOUND_SECONDS),
            aiohttp.ClientSession() as session,
            session.request(method, url, **options) as response,
        ):
            status = response.status
            async for part in response.content.iter_any():
                data += part
    except aiohttp.ClientError:
        return status, data, True
    return status, data, False


def code_of(data: bytes) -> str:
    return json.loads(data)["code"]


async def run(url: str, **options: Any) -> tuple[int, bytes, bool]:
    return await read_all(f"{url}/run", "POST", json={"argv": ["echo", "hello"], "id": PROCESS}, **options)


async def test_an_honest_stream_goes_through(node: tuple[str, StandSandbox]) -> None:
    status, data, broken = await run(node[0])
    assert (status, broken) == (200, False)
    assert json.loads(data)["stdout"] == "hello\n"


@pytest.mark.parametrize("lie", STREAMS)
async def test_no_lying_stream_becomes_a_result(
    hostile: HostileGuest, node: tuple[str, StandSandbox], lie: str
) -> None:
    script = STREAMS[lie]
    hostile.lie("POST processes?follow", script if "attached" in lie else _after_attached(script))
    hostile.lie("GET processes/*/output", script)
    status, data, broken = await run(node[0])
    assert (status, code_of(data), broken) == (502, "guest_failed", False)
    assert any(isinstance(error, GuestError) for error in node[1].reports)


@pytest.mark.parametrize("lie", [name for name in STREAMS if "attached" not in name])
@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/vnd.sandlot.frames", "text/event-stream"])
async def test_no_lie_passes_a_reader_of_output(
    hostile: HostileGuest, node: tuple[str, StandSandbox], lie: str, accept: str
) -> None:
    hostile.lie("GET processes/*/output", STREAMS[lie])
    url = f"{node[0]}/processes/{PROCESS}/output?follow=true"
    status, data, broken = await read_all(url, headers={"Accept": accept})
    if status == 502:
        assert code_of(data) == "guest_failed"
    else:
        assert broken, data
    assert node[1].reports


@pytest.mark.parametrize("lie", SILENCES)
async def test_a_stream_that_breaks_off_is_no_result(
    hostile: HostileGuest, node: tuple[str, StandSandbox], lie: str
) -> None:
    started = SILENCES[lie]
    hostile.lie("POST processes?follow", _after_attached(started))
    hostile.lie("GET processes/*/output", frames(b""))
    status, data, _ = await run(node[0])
    assert (status, code_of(data)) == (502, "guest_failed")
    assert any(isinstance(error, GuestUnreachableError) for error in node[1].reports)


def _after_attached(script: Script) -> Script:
    """The same stream behind an honest beginning."""

    class Prefixed:
        def __init__(self, writer: asyncio.StreamWriter) -> None:
            self._writer = writer
            self._first = True

        def write(self, data: bytes) -> None:
            if self._first:
                end = data.index(b"\r\n\r\n") + 4
                data = data[:end] + chunk(attached_frame()) + data[end:]
                self._first = False
            self._writer.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._writer, name)

    async def wrapped(writer: asyncio.StreamWriter) -> None:
        await script(Prefixed(writer))  # pyright: ignore[reportArgumentType] - stands in for the writer

    return wrapped


@pytest.mark.parametrize("lie", ["silence", "silence after a frame", "a frame that never ends"])
async def test_the_end_of_the_sandbox_ends_a_stream_that_hangs(
    hostile: HostileGuest, node: tuple[str, StandSandbox], lie: str
) -> None:
    url, sandbox = node
    script = SILENCES.get(lie) or trickle(open_frames(), b"")
    hostile.lie("POST processes?follow", _after_attached(script))

    async def end_soon() -> None:
        while not hostile.requests["POST processes?follow"]:  # noqa: ASYNC110 - a counter of the server
            await asyncio.sleep(0.01)
        sandbox.ended.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(end_soon())
        status, data, _ = await run(url)
    assert status == 200
    result = json.loads(data)
    assert (result["exit_code"], result["reason"], result["running"]) == (137, "sandbox_stopped", False)
    assert "out_of_memory" in result["message"]


async def test_a_reader_of_a_dead_sandbox_gets_lost_and_exit(
    hostile: HostileGuest, node: tuple[str, StandSandbox]
) -> None:
    url, sandbox = node
    hostile.lie("GET processes/*/output", SILENCES["silence after a frame"])
    async with asyncio.TaskGroup() as group:

        async def end_soon() -> None:
            while not hostile.requests["GET processes/*/output"]:  # noqa: ASYNC110 - a counter of the server
                await asyncio.sleep(0.01)
            sandbox.ended.set()

        group.create_task(end_soon())
        status, data, broken = await read_all(f"{url}/processes/{PROCESS}/output?follow=true")
    rows = [json.loads(line) for line in data.splitlines()]
    assert (status, broken) == (200, False)
    assert [row["kind"] for row in rows] == ["stdout", "lost", "exit"]
    assert (rows[1]["seq"], rows[1]["next"]) == (6, 6)
    assert (rows[2]["reason"], rows[2]["exit_code"], rows[2]["seq"]) == ("sandbox_stopped", 137, 6)
    assert sandbox.users == 0


async def test_a_broken_stream_is_resumed_where_it_broke(hostile: HostileGuest, node: tuple[str, StandSandbox]) -> None:
    hostile.lie("POST processes?follow", frames(attached_frame(), stdout(0, b"hel")))
    hostile.lie("GET processes/*/output", frames(stdout(3, b"lo\n"), exit_frame(6, exit_code=9)))
    status, data, _ = await run(node[0])
    result = json.loads(data)
    assert (status, result["stdout"], result["exit_code"]) == (200, "hello\n", 9)


async def test_a_flood_of_output_stays_within_bounds(hostile: HostileGuest, node: tuple[str, StandSandbox]) -> None:
    """A running process's snapshot has the size of a ring at most; more is a lie."""
    before = peak_kib()
    running = record(state="running", exit_code=None, reason=None, ended_at=None)
    hostile.lie("GET processes/*", body_script(running))

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(open_frames())
        seq = 0
        while True:
            writer.write(chunk(stdout(seq, b"x" * 65_536)))
            seq += 65_536
            await writer.drain()

    hostile.lie("GET processes/*/output", endless)
    status, data, _ = await read_all(f"{node[0]}/processes/{PROCESS}/result")
    assert (status, code_of(data)) == (502, "guest_failed")
    assert peak_kib() - before < MORE_MEMORY_KIB


async def test_a_flood_of_tiny_frames_stays_within_bounds(
    hostile: HostileGuest, node: tuple[str, StandSandbox]
) -> None:
    before = peak_kib()
    many = b"".join(stdout(seq, b"x") for seq in range(300_000))
    hostile.lie("POST processes?follow", frames(attached_frame(), many, exit_frame(300_000)))
    status, data, _ = await run(node[0])
    assert (status, json.loads(data)["stdout_bytes"]) == (200, 300_000)
    assert peak_kib() - before < MORE_MEMORY_KIB


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_code": 10**40}, {"exit_code": -1}, {"exit_code": None}, {"reason": "killed"}, {"reason": None},
        {"argv": "echo"}, {"argv": [1]}, {"id": "prc" + "d" * 20}, {"id": "../../etc"}, {"state": "sleeping"},
        {"state": "running"}, {"started_at": "0001-01-01T00:00:00+23:59"}, {"started_at": "yesterday"},
        {"started_at": "2026-11-22T10:59:00"}, {"duration_seconds": 1e400}, {"duration_seconds": -1},
        {"next_seq": 2**70}, {"next_seq": -1}, {"cwd": "x" * 100_000}, {"user": None}, {"uid": "root"},
        {"message": "x" * 100_000}, {"signal": "kill me"}, {"start_error": {"code": "boom", "message": ""}},
        {"tty": {"rows": 10**9, "cols": 1}}, {"peak_memory_bytes": 1.5},
    ],
)  # fmt: skip
async def test_no_lie_in_a_record_is_believed(
    hostile: HostileGuest, node: tuple[str, StandSandbox], changes: dict[str, Any]
) -> None:
    hostile.lie("GET processes/*", body_script(record(**changes)))
    hostile.lie("GET processes", body_script({"items": [record(**changes)]}))
    status, data, _ = await read_all(f"{node[0]}/processes/{PROCESS}")
    assert (status, code_of(data)) == (502, "guest_failed")
    if "id" not in changes or not str(changes["id"]).startswith("prc"):
        status, data, _ = await read_all(f"{node[0]}/processes")
        assert (status, code_of(data)) == (502, "guest_failed")


@pytest.mark.parametrize(
    "head_frames",
    [
        [stdout(0, b"x" * 65_536), stdout(65_536, b"x")],
        [stdout(5, b"x"), stdout(2, b"x")],
        [exit_frame(0)],
        [encode(Frame(FrameKind.STDOUT, 0, b"x", -5))],
        [b"half a frame"],
    ],
)
async def test_no_lie_in_the_kept_head_is_believed(
    hostile: HostileGuest, node: tuple[str, StandSandbox], head_frames: list[bytes]
) -> None:
    hostile.lie("GET processes/*/output", frames(encode_json(FrameKind.LOST, 0, {"lost_bytes": 6}), exit_frame(6)))
    hostile.lie("GET processes/*/head", frames(*head_frames))
    status, data, _ = await read_all(f"{node[0]}/processes/{PROCESS}/result")
    assert (status, code_of(data)) == (502, "guest_failed")


async def test_standard_input_that_nobody_takes_does_not_hang(
    hostile: HostileGuest, node: tuple[str, StandSandbox]
) -> None:
    async def endless() -> AsyncGenerator[bytes]:
        while True:
            yield b"x" * 65_536

    hostile.takes_no_input = True
    hostile.lie("POST processes/*/stdin", then_silence(b""))
    status, data, _ = await read_all(f"{node[0]}/processes/{PROCESS}/stdin", "POST", data=endless())
    assert status in {0, 502}
    assert status == 0 or code_of(data) == "guest_failed"
    assert node[1].reports


async def test_standard_input_answered_early_is_believed(hostile: HostileGuest, node: tuple[str, StandSandbox]) -> None:
    async def parts() -> AsyncGenerator[bytes]:
        for _ in range(200):
            yield b"x" * 65_536

    hostile.takes_no_input = True
    hostile.lie("POST processes/*/stdin", body_script({"offset": 4096, "closed": False}))
    status, data, _ = await read_all(f"{node[0]}/processes/{PROCESS}/stdin", "POST", data=parts())
    assert status in {0, 200}
    assert status == 0 or json.loads(data) == {"offset": 4096, "closed": False}
