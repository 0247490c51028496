"""Logs and samples over fakes: what is kept through stops, deaths, restarts and lies, and what it is shown as."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_kit import FakeNode, World, a_stop, crashing_node, node, until
from sandboxd.contract.history import SampleList
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.history import keeper as keeper_module
from sandboxd.history import reading
from sandboxd.history.reading import lines
from sandboxd.runtime.base import RuntimeEnd

PROCESS = "prc" + "a" * 20


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in (("INTERVAL_SECONDS", 0.01), ("_LINGER_SECONDS", 0.02), ("_BACK_OFF_SECONDS", (0.01,) * 4)):
        monkeypatch.setattr(keeper_module, name, value)
    return World(tmp_path)


async def start(opened: FakeNode, sandbox_id: str, shell: str, process_id: str = PROCESS) -> None:
    async with opened.manager.use(sandbox_id) as live:
        await live.guest.start({"id": process_id, "shell": shell, "stdin": False, "merge_stderr": False})
        live.process_started()


async def log_of(opened: FakeNode, sandbox_id: str, after: int = 0, **options: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"process_id": None, "follow": False, **options}
    found: list[dict[str, Any]] = []
    async with aclosing(lines(opened.manager.tools.keeper, sandbox_id, after=after, **given)) as some:
        async for rendered in some:
            for line in rendered.splitlines():
                position, row = line.split(b" ", 1)
                found.append(json.loads(row) | {"position": int(position)})
    return found


def text(rows: list[dict[str, Any]]) -> str:
    return "".join(row["text"] for row in rows if row["kind"] == "stdout")


async def has_logged(opened: FakeNode, sandbox_id: str, wanted: str) -> None:
    async with asyncio.timeout(20):
        while wanted not in text(await log_of(opened, sandbox_id)):  # noqa: ASYNC110 - files know of no event
            await asyncio.sleep(0.005)


async def test_what_is_printed_is_in_the_log_while_it_runs_and_after(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo hello; sleep 10000")
        await has_logged(opened, sandbox_id, "hello\n")
        await opened.manager.stop(sandbox_id, a_stop())
        rows = await log_of(opened, sandbox_id)
        assert [row["kind"] for row in rows] == ["stdout", "exit"]
        assert (rows[1]["reason"], rows[1]["process_id"]) == ("sandbox_stopped", PROCESS)
        await opened.manager.acknowledge([sandbox_id])
        assert await log_of(opened, sandbox_id) == rows
    async with node(world) as later:
        assert await log_of(later, sandbox_id) == rows


async def test_a_stop_takes_the_last_words_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "INTERVAL_SECONDS", 3600)  # the feed itself never comes to it
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo short")
        await opened.manager.stop(sandbox_id, a_stop())
        rows = await log_of(opened, sandbox_id)
        assert (text(rows), rows[-1]["kind"], rows[-1]["exit_code"]) == ("short\n", "exit", 0)


async def test_a_death_ends_the_log_with_what_is_missing(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo begun; sleep 10000")
        await has_logged(opened, sandbox_id, "begun\n")
        world.host_world.end(sandbox_id, RuntimeEnd(signal=9), oom=True)
        await opened.over(sandbox_id)
        rows = await log_of(opened, sandbox_id)
        assert [row["kind"] for row in rows] == ["stdout", "lost", "exit"]
        assert (rows[2]["reason"], rows[2]["exit_code"]) == ("sandbox_stopped", 137)
        assert "out_of_memory" in rows[2]["message"]


@pytest.mark.parametrize("dies_meanwhile", [False, True])
async def test_a_restart_goes_on_where_it_was(world: World, dies_meanwhile: bool) -> None:
    async with crashing_node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo one; sleep 0.2; echo two; sleep 10000")
        await has_logged(opened, sandbox_id, "one\n")
    if dies_meanwhile:
        world.host_world.end(sandbox_id, RuntimeEnd(signal=9))
    async with node(world) as opened:
        if dies_meanwhile:
            await opened.over(sandbox_id)
            rows = await log_of(opened, sandbox_id)
            assert [row["kind"] for row in rows] == ["stdout", "lost", "exit"]
            return
        await has_logged(opened, sandbox_id, "two\n")
        assert text(await log_of(opened, sandbox_id)) == "one\ntwo\n"
        await opened.manager.stop(sandbox_id, a_stop())


async def test_a_follower_sees_the_end(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            following = group.create_task(log_of(opened, sandbox_id, follow=True))
            await start(opened, sandbox_id, "echo hello")
            await has_logged(opened, sandbox_id, "hello\n")
            await opened.manager.stop(sandbox_id, a_stop())
        assert [row["kind"] for row in following.result()] == ["stdout", "exit"]
        assert await log_of(opened, sandbox_id, follow=True) == following.result()


async def test_a_silent_follower_is_told_that_it_lives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEEPALIVE_SECONDS", 0.01)
    async with node(world) as opened:
        sandbox_id = await opened.create()
        found = lines(opened.manager.tools.keeper, sandbox_id, after=0, process_id=None, follow=True)
        async with aclosing(found):
            row = json.loads((await anext(found)).split(b" ", 1)[1])
        assert (row["kind"], row["text"]) == ("keepalive", "")
        assert row["at"]


async def test_bytes_that_are_no_text_and_positions_inside_a_row(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.host_world.guests[sandbox_id].files.put("/x", b"\xbf\xbfabc\xe2\x82")
        await start(opened, sandbox_id, "cat /x")
        await opened.manager.stop(sandbox_id, a_stop())
        rows = await log_of(opened, sandbox_id)
        assert [row.get("text", row.get("base64")) for row in rows[:3]] == ["v78=", "abc", "4oI="]
        for index in range(3):
            rest = await log_of(opened, sandbox_id, after=rows[index]["position"])
            assert rest == rows[index + 1 :]


async def test_only_one_process(world: World) -> None:
    other = "prc" + "b" * 20
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo one")
        await start(opened, sandbox_id, "echo two", other)
        await opened.manager.stop(sandbox_id, a_stop())
        assert text(await log_of(opened, sandbox_id, process_id=other)) == "two\n"


async def test_a_guest_that_lies_or_falls_silent_costs_its_own_log_alone(world: World) -> None:
    async with node(world) as opened:
        liar, honest = await opened.create(), await opened.create()
        guest = world.host_world.guests[liar]
        guest.fail("feed", GuestUnreachableError("silent"), times=2)
        guest.fail("feed", GuestError("a lie"))
        for each in (liar, honest):
            await start(opened, each, "echo hello; sleep 10000")
        await has_logged(opened, honest, "hello\n")
        await has_logged(opened, liar, "hello\n")
        assert opened.life(liar).guest_misbehaved
        assert not opened.life(honest).guest_misbehaved
        guest.hang("feed")
        async with asyncio.timeout(20):
            await opened.manager.stop(liar, a_stop())
        assert not opened.manager.tools.keeper.is_live(liar)
    assert [each for each in world.residue() if liar in each] == []


async def test_an_idle_sandbox_is_asked_nothing(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        guest = world.host_world.guests[sandbox_id]
        await start(opened, sandbox_id, "echo hello")
        await has_logged(opened, sandbox_id, "hello\n")
        keeper = opened.manager.tools.keeper
        await until(lambda: (kept := keeper._live[sandbox_id]) is not None and kept.complete)
        asked = guest.calls["feed"]
        await opened.manager.stop(sandbox_id, a_stop())
        assert guest.calls["feed"] == asked


async def test_without_logs_nothing_is_kept(world: World) -> None:
    world.settings["sandbox_log_mib"] = 0
    async with node(world) as opened:
        sandbox_id = await opened.create()
        await start(opened, sandbox_id, "echo hello")
        await opened.manager.stop(sandbox_id, a_stop())
        assert world.host_world.sandboxes == {}
        assert not world.config.sandbox_logs_dir.exists()


# --- samples


async def samples(opened: FakeNode, sandbox_id: str, step_seconds: int = 5) -> SampleList:
    live = opened.manager.sampled_one(sandbox_id)
    now_ms = int(opened.world.clock.now().timestamp() * 1000)
    sampler = opened.manager.tools.sampler
    return await sampler.samples(sandbox_id, 0, now_ms, step_seconds, live)


def use(world: World, sandbox_id: str, cpu: float, memory: int = 1 << 24) -> None:
    sandbox = world.host_world.sandboxes[sandbox_id]
    sandbox.usage = replace(sandbox.usage, cpu_used_seconds=cpu, memory_used_bytes=memory)


async def rounds(opened: FakeNode, count: int, cpu_each: float, sandbox_id: str) -> None:
    for _ in range(count):
        used = opened.world.host_world.sandboxes[sandbox_id].usage.cpu_used_seconds
        use(opened.world, sandbox_id, used + cpu_each)
        opened.manager.tools.sampler.once(opened.manager.sampled())
        await opened.world.clock.pass_by(5)


async def test_a_busy_sandbox_is_sampled_each_time_and_an_idle_one_seldom(world: World) -> None:
    async with node(world) as opened:
        busy, idle = await opened.create(timeout_seconds=None), await opened.create(timeout_seconds=None)
        await rounds(opened, 25, 2.5, busy)
        found = (await samples(opened, busy)).items
        assert len(found) == 26
        assert found[3].cpu_used_percent == pytest.approx(50)
        assert [row.cpu_used_seconds for row in found] == sorted(row.cpu_used_seconds for row in found)
        assert found[0].cpus == 1
        assert found[0].disk_limit_bytes == 8192 << 20
        assert len((await samples(opened, idle)).items) in {3, 4}
        assert len((await samples(opened, busy, 60)).items) in {3, 4}


async def test_samples_grow_coarser_with_age(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=None)
        await rounds(opened, 1500, 1, sandbox_id)
        found = (await samples(opened, sandbox_id)).items
        now = world.clock.now()
        old = [row for row in found if (now - row.at).total_seconds() > 3660]
        new = [row for row in found if (now - row.at).total_seconds() < 3500]
        assert len(new) >= 690
        assert 55 < len(old) < 75
        assert old[5].cpu_used_percent == pytest.approx(20, rel=0.1)


async def test_samples_outlive_sandbox_and_agent(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=None)
        await rounds(opened, 4, 1, sandbox_id)
        use(world, sandbox_id, 100.0)
        await opened.manager.stop(sandbox_id, a_stop())
        before = await samples(opened, sandbox_id)
        assert before.items[-1].cpu_used_seconds == 100
    async with node(world) as later:
        assert await samples(later, sandbox_id) == before


async def test_a_slot_used_before_counts_from_the_start(world: World) -> None:
    async with node(world) as opened:
        opened.network.bytes["sbx0"] = (5000, 700)
        sampler = opened.manager.tools.sampler
        sampler.once([])
        meters: Any = sampler._meters
        meters._read_at = 0
        sampler.once([])
        sandbox_id = await opened.create(timeout_seconds=None)
        opened.network.bytes["sbx0"] = (5100, 730)
        meters._read_at = 0
        sampler.once(opened.manager.sampled())
        [row] = (await samples(opened, sandbox_id)).items[:1]
        assert (row.egress_bytes, row.ingress_bytes) == (100, 30)


async def test_a_file_that_is_damaged_is_made_anew(world: World) -> None:
    world.config.history_dir.mkdir(parents=True)
    world.config.metrics_path.write_bytes(b"not a database at all, not at all" * 1000)
    async with node(world) as opened:
        sandbox_id = await opened.create(timeout_seconds=None)
        await rounds(opened, 2, 1, sandbox_id)
        assert len((await samples(opened, sandbox_id)).items) >= 2
