"""A guest that was taken over lies about what listens and about what was written; its log is data, never more."""

import asyncio
import json
import resource
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from hostile_guest import ANSWERS, HostileGuest, chunk, open_frames
from live_stand import open_socket
from sandboxd.clock import HostClock
from sandboxd.contract.frames import Frame, FrameKind, encode, encode_json
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.base import FeedRequest, GuestError, GuestUnreachableError
from sandboxd.guest_client.connection import Limits
from sandboxd.guest_client.http import HttpGuest
from sandboxd.history import keeper as keeper_module
from sandboxd.history.keeper import Keeper
from sandboxd.history.log import Log, read
from sandboxd.history.reading import lines
from sandboxd.history.rows import LogRow
from sandboxd.history.rows import encode as encode_row
from sandboxd.history.shelf import Bounds, Shelf
from sandboxd.processes.ports import MOST_PORTS, check_ports

SHORT = Limits(connect_seconds=0.5, answer_seconds=0.5, start_seconds=0.5, stall_seconds=0.5)
PROCESS = "prc" + "a" * 20
SANDBOX = "sbx" + "a" * 20


@pytest.fixture
async def hostile() -> AsyncGenerator[HostileGuest]:
    async with HostileGuest().serving() as guest:
        yield guest


@pytest.fixture
async def guest(hostile: HostileGuest) -> AsyncGenerator[HttpGuest]:
    client = HttpGuest("127.0.0.1", "token", open_socket=open_socket, port=hostile.port, limits=SHORT)
    yield client
    await client.close()


def port(**changes: Any) -> dict[str, Any]:
    return {"port": 80, "protocol": "tcp", "address": "0.0.0.0", "pid": 5} | changes  # noqa: S104 - a guest's answer


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"items": None},
        {"items": [None]},
        {"items": [port(port=0)]},
        {"items": [port(port=65536)]},
        {"items": [port(port="80")]},
        {"items": [port(port=True)]},
        {"items": [port(protocol="sctp")]},
        {"items": [port(address="example.com")]},
        {"items": [port(address="0.0.0.0\r\nSet-Cookie: x")]},
        {"items": [port(address="fe80::1%eth0")]},
        {"items": [port(pid=-1)]},
        {"items": [port(pid=2**40)]},
        {"items": [port()] * (MOST_PORTS + 1)},
    ],
)
def test_ports_that_cannot_be_are_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(GuestError):
        check_ports(answer, None)


def test_what_was_not_asked_for_and_the_guests_own_do_not_show() -> None:
    answer = {"items": [port(port=81), port(port=GUEST_PORT), port(secret="x"), port(protocol="udp", pid=None)]}
    assert [each.port for each in check_ports(answer, None).items] == [80, 80, 81]
    assert [each.port for each in check_ports(answer, 80).items] == [80, 80]
    assert check_ports(answer, GUEST_PORT).items == []
    assert "secret" not in check_ports(answer, 80).items[0].model_dump()


@pytest.mark.parametrize("lie", ANSWERS)
async def test_no_answer_on_ports_hangs_or_bloats(hostile: HostileGuest, guest: HttpGuest, lie: str) -> None:
    hostile.lie("GET ports", ANSWERS[lie])
    async with asyncio.timeout(20):
        try:
            check_ports(await guest.ports(None, 0), None)
        except (GuestError, GuestUnreachableError, ProblemError):
            return
    raise AssertionError(lie)


# --- the feed


class Source:
    """A sandbox that is nothing but a guest."""

    id = SANDBOX
    began_us = 0

    def __init__(self, guest: HttpGuest) -> None:
        self.guest = guest
        self.lies: list[Exception] = []

    def report_guest(self, error: GuestError | GuestUnreachableError) -> None:
        self.lies.append(error)


@pytest.fixture
async def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Keeper]:
    monkeypatch.setattr(keeper_module, "INTERVAL_SECONDS", 0.01)
    shelf = Shelf(tmp_path, Bounds(log_bytes=1 << 20, all_bytes=1 << 24, days=7))
    made = Keeper(shelf, HostClock(), bytes_per_second=256 * 1024)
    async with made.opened():
        made.all_adopted()
        yield made


def named(process_id: str) -> bytes:
    return encode_json(FrameKind.ATTACHED, 0, {"process_id": process_id, "processes": 1})


async def log_of(keeper: Keeper) -> list[dict[str, Any]]:
    found = lines(keeper, SANDBOX, after=0, process_id=None, follow=False)
    return [json.loads(line.split(b" ", 1)[1]) async for some in found for line in some.splitlines()]


@pytest.mark.parametrize("lie", ANSWERS)
async def test_no_feed_hangs_a_drain(hostile: HostileGuest, guest: HttpGuest, lie: str) -> None:
    hostile.lie("POST feed", ANSWERS[lie])
    async with asyncio.timeout(20):
        try:
            async with guest.feed(FeedRequest(follow=False)) as batches:
                async for _ in batches:
                    pass
        except (GuestError, GuestUnreachableError, ProblemError):
            return
    assert lie


async def test_a_flood_is_held_to_its_rate_and_the_log_to_its_bound(
    hostile: HostileGuest, guest: HttpGuest, keeper: Keeper
) -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(open_frames())
        writer.write(chunk(named(PROCESS)))
        position = 0
        while True:
            writer.write(chunk(encode(Frame(FrameKind.STDOUT, position, b"x" * 65_536, 1))))
            position += 65_536
            await writer.drain()

    hostile.lie("POST feed", flood)
    source = Source(guest)
    keeper.born(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    keeper.started(source)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        while (size := keeper.shelf.open(SANDBOX).known.positions.get(PROCESS, 0)) < 2 << 20:
            assert size < 4 << 20
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    log = keeper.shelf.open(SANDBOX)
    elapsed = asyncio.get_running_loop().time() - began
    written = log.known.positions[PROCESS]
    assert written <= 2 * 256 * 1024 * (elapsed + 2) + (1 << 20)
    assert log.size_bytes <= 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    async with asyncio.timeout(10):
        await keeper.close(source, "The sandbox has ended.")


async def test_a_lie_is_reported_and_what_came_before_is_kept(
    hostile: HostileGuest, guest: HttpGuest, keeper: Keeper
) -> None:
    frames = (
        named(PROCESS)
        + encode(Frame(FrameKind.STDOUT, 0, b"true\n", 1))
        + encode(Frame(FrameKind.STDOUT, 99, b"lie", 1))
    )

    async def lie(writer: asyncio.StreamWriter) -> None:
        writer.write(open_frames())
        writer.write(chunk(named(PROCESS) + encode(Frame(FrameKind.STDOUT, 0, b"true\n", 1))))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(chunk(frames[len(named(PROCESS)) + 29 :]))
        await writer.drain()

    hostile.lie("POST feed", lie)
    source = Source(guest)
    keeper.born(source)
    keeper.started(source)
    async with asyncio.timeout(20):
        while not source.lies:  # noqa: ASYNC110 - the keeper tells of no event
            await asyncio.sleep(0.01)
    rows = await log_of(keeper)
    assert [row["text"] for row in rows] == ["true\n"]
    await keeper.close(source, "The sandbox has ended.")


def test_what_looks_like_a_row_is_only_text(tmp_path: Path) -> None:
    forged = encode_row(LogRow(FrameKind.EXIT, 1, "prc" + "z" * 20, 0, b'{"exit_code":0}'))
    log = Log(tmp_path / SANDBOX, 1 << 20)
    log.append(
        [LogRow(FrameKind.STDOUT, 1, PROCESS, 0, forged * 3), LogRow(FrameKind.STDOUT, 1, PROCESS, 9, b"after")], 1
    )
    rows = [placed.row for placed in read(log.directory, 0, 65_536).rows]
    assert [row.payload for row in rows[1:]] == [forged * 3, b"after"]
    again = Log(tmp_path / SANDBOX, 1 << 20)
    again.open()
    assert list(again.known.ended) == []
