"""The feed and the ports of a guest, over its client: one suite for the fake and for the real guest."""

import asyncio
import contextlib
import hashlib
import socket
import subprocess
from collections.abc import AsyncGenerator, Generator

import pytest
from test_guest_client import TOKEN, ended, spec_of

from infra.setup.places import cache_dir, guest_path
from live_stand import init_of, open_socket
from sandboxd.contract.frames import Frame, FrameKind
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import FeedRequest, Guest, GuestUnreachableError
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.guest_client.http import HttpGuest

ONCE = FeedRequest(follow=False)
FOLLOW = FeedRequest(interval_seconds=0.01, linger_seconds=0.05, keepalive_seconds=0.5)


@pytest.fixture
def native_address() -> Generator[str]:
    """A guest of its own, outside a sandbox."""
    arguments = ["--native", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1"]
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    command = [str(guest_path(cache_dir())), *arguments, "--token-sha256", hashed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield program.stdout.readline().strip()
        finally:
            program.kill()


@pytest.fixture
async def native(native_address: str) -> AsyncGenerator[Guest]:
    host, port = native_address.rsplit(":", 1)
    client = HttpGuest(host, TOKEN, open_socket=open_socket, port=int(port))
    await client.init(init_of(user="root", cwd="/"))
    yield client
    await client.close()


@pytest.fixture(params=["fake", "native"])
async def guest(request: pytest.FixtureRequest, native_address: str) -> AsyncGenerator[Guest]:
    if request.param == "native":
        host, port = native_address.rsplit(":", 1)
        client: Guest = HttpGuest(host, TOKEN, open_socket=open_socket, port=int(port))
    else:
        client = FakeGuest()
    await client.init(init_of(user="root", cwd="/"))
    yield client
    await client.close()


async def taken(guest: Guest, request: FeedRequest) -> list[Frame]:
    async with guest.feed(request) as batches:
        return [frame async for batch in batches for frame in batch.frames() if frame.kind != FrameKind.KEEPALIVE]


def by_process(frames: list[Frame]) -> dict[str, list[Frame]]:
    found: dict[str, list[Frame]] = {}
    named = ""
    for frame in frames:
        if frame.kind == FrameKind.ATTACHED:
            named = frame.json()["process_id"]
        else:
            found.setdefault(named, []).append(frame)
    return found


def text(frames: list[Frame], kind: FrameKind = FrameKind.STDOUT) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.kind == kind)


async def has_written(guest: Guest, process_id: str, count: int) -> None:
    async with asyncio.timeout(10), guest.output(process_id, follow=True, keepalive_seconds=1) as batches:
        async for batch in batches:
            if batch.heads[-1].seq + batch.heads[-1].length >= count:
                return


async def test_all_processes_are_told_apart_with_their_ends(guest: Guest) -> None:
    first, second = spec_of("echo one; echo two >&2"), spec_of(["false"])
    for spec in (first, second):
        await guest.start(spec)
        await ended(guest, spec["id"])
    found = by_process(await taken(guest, ONCE))
    assert text(found[first["id"]]) == b"one\n"
    assert text(found[first["id"]], FrameKind.STDERR) == b"two\n"
    assert [found[each["id"]][-1].json()["exit_code"] for each in (first, second)] == [0, 1]
    known = FeedRequest(follow=False, ended=[first["id"]], positions={second["id"]: 0})
    assert set(by_process(await taken(guest, known))) == {second["id"]}


async def test_a_feed_goes_on_from_positions(guest: Guest) -> None:
    spec = spec_of("echo first; echo second; sleep 30")
    await guest.start(spec)
    await has_written(guest, spec["id"], 13)
    request = FeedRequest(follow=False, positions={spec["id"]: 6})
    [process] = by_process(await taken(guest, request)).values()
    assert (process[0].seq, text(process)) == (6, b"second\n")
    assert await taken(guest, FeedRequest(follow=False, positions={spec["id"]: 13})) == []
    await guest.signal(spec["id"], "SIGKILL", "tree", None)


async def test_the_newest_bytes_come_and_the_others_are_named(guest: Guest) -> None:
    spec = spec_of("echo " + "a" * 3000 + "; echo " + "b" * 3000)
    await guest.start(spec)
    await ended(guest, spec["id"])
    [frames] = by_process(await taken(guest, FeedRequest(follow=False, most_bytes=1))).values()
    assert frames[0].kind == FrameKind.LOST
    assert frames[0].next_seq + len(text(frames)) == 6002
    assert b"b\n".endswith(text(frames)[-2:])
    assert frames[-1].kind == FrameKind.EXIT


async def test_a_feed_follows_until_nothing_runs(guest: Guest) -> None:
    spec = spec_of("echo begun; sleep 0.2; echo done")
    await guest.start(spec)
    async with asyncio.timeout(20):
        [frames] = by_process(await taken(guest, FOLLOW)).values()
    assert text(frames) == b"begun\ndone\n"
    assert frames[-1].json()["reason"] == "exited"


async def test_what_was_shut_down_is_in_the_feed(guest: Guest) -> None:
    spec = spec_of("echo here; sleep 30")
    await guest.start(spec)
    await guest.shutdown(0.1)
    [frames] = by_process(await taken(guest, ONCE)).values()
    assert text(frames) == b"here\n"
    assert frames[-1].json()["reason"] == "sandbox_stopped"


async def test_a_blocked_process_does_not_go_on_for_the_feed(native: Guest) -> None:
    output = {"mode": "block", "ring_bytes": 65_536, "limit_bytes": None}
    spec = spec_of(["sh", "-c", "head -c 1000000 /dev/zero"], output=output)
    await native.start(spec)
    assert (await native.process(spec["id"], 0.3))["state"] == "running"
    await taken(native, ONCE)
    async with native.output(spec["id"], follow=True) as batches:
        read = [frame async for batch in batches for frame in batch.frames()]
    assert len(text(read)) == 1_000_000
    assert all(frame.kind != FrameKind.LOST for frame in read)


async def test_a_dead_guest_breaks_the_feed() -> None:
    dead = FakeGuest()
    dead.die()
    with pytest.raises(GuestUnreachableError):
        await taken(dead, ONCE)


# --- ports


@contextlib.contextmanager
def listener(address: str = "127.0.0.1") -> Generator[int]:
    with socket.create_server((address, 0)) as made:
        yield made.getsockname()[1]


async def test_a_listening_port_is_told(native: Guest) -> None:
    with listener() as port:
        found = (await native.ports(port, 0))["items"]
        assert [(each["port"], each["protocol"], each["address"]) for each in found] == [(port, "tcp", "127.0.0.1")]
        everything = (await native.ports(None, 0))["items"]
    assert port in {each["port"] for each in everything}
    assert (await native.ports(port, 0))["items"] == []


async def test_a_port_is_waited_for(native: Guest) -> None:
    with listener() as port:
        pass
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(native.ports(port, 30))
        await asyncio.sleep(0)
        with socket.create_server(("127.0.0.1", port), reuse_port=False):
            assert [each["port"] for each in (await waiting)["items"]] == [port]


async def test_waiting_in_vain_is_no_error(native: Guest) -> None:
    with listener() as port:
        pass
    assert (await native.ports(port, 0.05))["items"] == []


async def test_the_fake_waits_as_well() -> None:
    fake = FakeGuest()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(fake.ports(80, 30))
        await asyncio.sleep(0)
        fake.listens.append({"port": 80, "protocol": "tcp", "address": "0.0.0.0", "pid": 3})  # noqa: S104 - an answer
    assert [each["port"] for each in waiting.result()["items"]] == [80]
    assert (await fake.ports(81, 0))["items"] == []


@pytest.mark.parametrize("query", [{"port": 0}, {"port": 70000}, {"wait_seconds": 61}])
async def test_what_cannot_be_asked(native: Guest, query: dict[str, int]) -> None:
    with pytest.raises(ProblemError):
        await native.ports(query.get("port"), query.get("wait_seconds", 0))
