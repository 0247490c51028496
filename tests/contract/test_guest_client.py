"""What the node relies on in a guest, over its client: one suite for the fake and for the real guest."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from infra.setup.places import cache_dir, guest_path
from live_stand import init_of, open_socket
from sandboxd.contract.frames import Frame, FrameKind
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, GuestUnreachableError
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.guest_client.file_calls import Target, WriteOptions
from sandboxd.guest_client.http import HttpGuest

TOKEN = "5a" * 32


@pytest.fixture
def native_address() -> Generator[str]:
    """A guest of its own, outside a sandbox."""
    arguments = ["--native", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1"]
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    with subprocess.Popen(
        [str(guest_path(cache_dir())), *arguments, "--token-sha256", hashed], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            yield program.stdout.readline().strip()
        finally:
            program.kill()


@pytest.fixture(params=["fake", "native"])
async def fresh(request: pytest.FixtureRequest) -> AsyncGenerator[Guest]:
    """A guest that was told nothing yet."""
    if request.param == "fake":
        yield FakeGuest()
        return
    host, port = request.getfixturevalue("native_address").rsplit(":", 1)
    guest = HttpGuest(host, TOKEN, open_socket=open_socket, port=int(port))
    yield guest
    await guest.close()


@pytest.fixture
async def guest(fresh: Guest) -> Guest:
    """A guest that knows who it is."""
    await fresh.init(init_of(user="root", cwd="/"))
    return fresh


def spec_of(command: list[str] | str, **fields: Any) -> dict[str, Any]:
    named = {"shell": command} if isinstance(command, str) else {"argv": command}
    base: dict[str, Any] = {
        "id": new_id("prc", os.urandom), "env": {}, "cwd": None, "user": None, "tty": None, "stdin": False,
        "merge_stderr": False, "timeout_seconds": None, "kill_grace_seconds": 0.2, "tag": None,
        "output": {"mode": "ring", "ring_bytes": 4_194_304, "limit_bytes": None},
    }  # fmt: skip
    return base | named | fields


async def everything(guest: Guest, spec: dict[str, Any]) -> list[Frame]:
    async with guest.start_followed(spec) as followed:
        assert followed.started.process["id"] == spec["id"]
        return [frame async for batch in followed.batches() for frame in batch.frames()]


async def read(guest: Guest, process_id: str, **options: Any) -> list[Frame]:
    async with guest.output(process_id, **options) as batches:
        return [frame async for batch in batches for frame in batch.frames()]


def channel(frames: list[Frame], kind: FrameKind) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.kind == kind)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def ended(guest: Guest, process_id: str) -> dict[str, Any]:
    return await guest.process(process_id, wait_seconds=30)


async def test_it_says_whether_it_knows_who_it_is(fresh: Guest) -> None:
    assert not (await fresh.health()).initialized
    with pytest.raises(ProblemError) as refused:
        await fresh.start(spec_of(["true"]))
    assert refused.value.code == "sandbox_not_ready"
    result = await fresh.init(init_of(user="root", cwd="/"))
    assert result.cwd == "/"
    assert result.shell is not None
    assert (await fresh.health()).initialized


async def test_output_and_exit_come_in_order(guest: Guest) -> None:
    frames = await everything(guest, spec_of("echo out; echo err >&2; exit 3"))
    assert channel(frames, FrameKind.STDOUT) == b"out\n"
    assert channel(frames, FrameKind.STDERR) == b"err\n"
    assert [frame.kind for frame in frames].count(FrameKind.EXIT) == 1
    assert frames[-1].kind == FrameKind.EXIT
    assert frames[-1].seq == 8
    assert (frames[-1].json()["exit_code"], frames[-1].json()["reason"]) == (3, "exited")


async def test_the_same_start_again_joins(guest: Guest) -> None:
    spec = spec_of("echo once")
    first = await everything(guest, spec)
    assert (await guest.start(spec)).joined
    assert channel(await everything(guest, spec), FrameKind.STDOUT) == channel(first, FrameKind.STDOUT)
    with pytest.raises(ProblemError) as refused:
        await guest.start(spec | {"shell": "echo twice"})
    assert refused.value.code == "idempotency_mismatch"


async def test_a_command_that_is_not_there_is_a_process_that_did_not_start(guest: Guest) -> None:
    frames = await everything(guest, spec_of(["no-such-command-anywhere"]))
    exit_ = frames[-1].json()
    assert (exit_["exit_code"], exit_["reason"]) == (127, "not_started")
    assert exit_["start_error"]["code"] == "command_not_found"


async def test_reads_resume_where_they_stopped(guest: Guest) -> None:
    spec = spec_of("echo hello")
    frames = await everything(guest, spec)
    again = await read(guest, spec["id"], after=2)
    assert channel(again, FrameKind.STDOUT) == b"llo\n"
    assert again[0].seq == 2
    assert again[-1].payload == frames[-1].payload
    assert channel(await read(guest, spec["id"], tail_bytes=3), FrameKind.STDOUT) == b"lo\n"
    with pytest.raises(ProblemError) as refused:
        await read(guest, spec["id"], after=7)
    assert (refused.value.code, refused.value.members) == ("seq_out_of_range", {"next_seq": 6})


async def test_a_read_that_does_not_follow_ends_at_the_present(guest: Guest) -> None:
    spec = spec_of(["cat"], stdin=True)
    await guest.start(spec)
    frames = await read(guest, spec["id"])
    assert [frame.kind for frame in frames] == [FrameKind.KEEPALIVE]
    await guest.signal(spec["id"], "SIGKILL", "tree", None)


async def test_what_falls_out_of_the_ring_is_named_and_the_head_is_kept(guest: Guest) -> None:
    spec = spec_of(["yes"], timeout_seconds=0.5, output={"mode": "ring", "ring_bytes": 65_536, "limit_bytes": None})
    await guest.start(spec)
    record = await ended(guest, spec["id"])
    assert record["next_seq"] > 200_000
    frames = await read(guest, spec["id"])
    assert frames[0].kind == FrameKind.LOST
    assert frames[0].next_seq == frames[1].seq
    assert frames[-1].seq == record["next_seq"]
    head = await guest.head(spec["id"])
    assert head[0].seq == 0
    assert len(channel(head, FrameKind.STDOUT)) == 65_536


async def test_standard_input_is_written_once_however_often_it_is_sent(guest: Guest) -> None:
    spec = spec_of(["cat"], stdin=True)
    await guest.start(spec)
    assert await guest.write_stdin(spec["id"], pieces(b"hel", b"lo"), offset=0, close=False) == {
        "offset": 5, "closed": False,
    }  # fmt: skip
    with pytest.raises(ProblemError) as refused:
        await guest.write_stdin(spec["id"], pieces(b"x"), offset=9, close=False)
    assert (refused.value.code, refused.value.members) == ("stdin_gap", {"offset": 5})
    answer = await guest.write_stdin(spec["id"], pieces(b"hello wor", b"ld"), offset=0, close=True)
    assert answer == {"offset": 11, "closed": True}
    assert channel(await read(guest, spec["id"], follow=True), FrameKind.STDOUT) == b"hello world"
    with pytest.raises(ProblemError) as late:
        await guest.write_stdin(spec["id"], pieces(b"x"), offset=11, close=False)
    assert late.value.code in {"process_ended", "stdin_closed"}


async def test_input_is_given_whole(guest: Guest) -> None:
    frames = await everything(guest, spec_of(["cat"], input_base64="AP8K"))
    assert channel(frames, FrameKind.STDOUT) == b"\x00\xff\n"


async def test_signals_say_how_it_ended(guest: Guest) -> None:
    for name, code, reason in (("SIGTERM", 143, "signaled"), ("SIGKILL", 137, "killed")):
        spec = spec_of(["sleep", "60"])
        await guest.start(spec)
        await guest.signal(spec["id"], name, "tree", "some-key")
        record = await ended(guest, spec["id"])
        assert (record["exit_code"], record["reason"], record["signal"]) == (code, reason, name)
        with pytest.raises(ProblemError) as refused:
            await guest.signal(spec["id"], name, "tree", None)
        assert refused.value.code == "process_ended"
        assert (refused.value.members, refused.value.reason) == ({"exit_code": code}, reason)


async def test_a_timeout_ends_even_what_ignores_the_first_signal(guest: Guest) -> None:
    frames = await everything(guest, spec_of("trap '' TERM; sleep 60", timeout_seconds=0.3))
    assert (frames[-1].json()["exit_code"], frames[-1].json()["reason"]) == (124, "timed_out")


async def test_lists_are_oldest_first_and_filtered(guest: Guest) -> None:
    first, second = spec_of(["sleep", "60"], tag="one"), spec_of(["true"], tag="two")
    await guest.start(first)
    await guest.start(second)
    await ended(guest, second["id"])
    assert [row["id"] for row in await guest.processes(None, None)] == [first["id"], second["id"]]
    assert [row["id"] for row in await guest.processes("running", None)] == [first["id"]]
    assert [row["id"] for row in await guest.processes(None, "two")] == [second["id"]]
    await guest.signal(first["id"], "SIGKILL", "tree", None)


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"user": "nobody-here"}, "user_not_found"), ({"cwd": "/no/such/directory"}, "cwd_not_found")],
)
async def test_a_start_that_cannot_be_is_refused(guest: Guest, fields: dict[str, str], code: str) -> None:
    with pytest.raises(ProblemError) as refused:
        await guest.start(spec_of(["true"], **fields))
    assert refused.value.code == code
    assert await guest.processes(None, None) == []


async def test_a_process_nobody_started_is_not_found(guest: Guest) -> None:
    unknown = new_id("prc", os.urandom)
    with pytest.raises(ProblemError) as refused:
        await guest.process(unknown)
    assert refused.value.code == "process_not_found"
    with pytest.raises(ProblemError):
        await read(guest, unknown)


async def test_a_file_is_there_for_the_next_process(guest: Guest, tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "file")
    options = WriteOptions(mode="0600", parents=True)
    answer, new = await guest.files.write(Target(path.encode()), pieces(b"con", b"tent"), options)
    assert (answer["path"], answer["mode"], new) == (path, "0600", True)
    assert channel(await everything(guest, spec_of(["cat", path])), FrameKind.STDOUT) == b"content"


async def test_shutdown_ends_every_process_and_starts_no_more(guest: Guest) -> None:
    frames: list[Frame] = []
    spec = spec_of("trap '' TERM; echo ready; sleep 60")
    async with guest.start_followed(spec) as followed, asyncio.TaskGroup() as group:
        async for batch in followed.batches():
            frames += batch.frames()
            if len(frames) == 1:
                group.create_task(guest.shutdown(0.3))
    assert (frames[-1].json()["exit_code"], frames[-1].json()["reason"]) == (137, "sandbox_stopped")
    with pytest.raises(ProblemError) as refused:
        await guest.start(spec_of(["true"]))
    assert refused.value.code == "sandbox_not_ready"


async def test_many_calls_at_once_are_kept_apart(guest: Guest) -> None:
    async def one(number: int) -> bool:
        frames = await everything(guest, spec_of(["echo", str(number)]))
        return channel(frames, FrameKind.STDOUT) == b"%d\n" % number

    assert all(await asyncio.gather(*map(one, range(40))))


async def test_metrics_and_backstop_answer(guest: Guest) -> None:
    await guest.set_backstop(3600)
    await guest.set_backstop(None)
    assert (await guest.metrics())["ports"] is not None


async def test_nobody_there_is_unreachable() -> None:
    with open_socket() as taken:
        taken.bind(("127.0.0.1", 0))
        guest = HttpGuest("127.0.0.1", TOKEN, open_socket=open_socket, port=taken.getsockname()[1])
        with pytest.raises(GuestUnreachableError):
            await guest.health()
        await guest.close()


async def test_a_wrong_token_is_refused(native_address: str) -> None:
    host, port = native_address.rsplit(":", 1)
    guest = HttpGuest(host, "00" * 32, open_socket=open_socket, port=int(port))
    with pytest.raises(Exception, match="unauthenticated"):
        await guest.health()
    await guest.close()
