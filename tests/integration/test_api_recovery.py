"""What the api makes of nodes that fall silent, come back or forget, and of its own restarts."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from api.services import reports
from api_stand import Stand, api, make_settings, until
from fake_node import fake_node
from sandboxd.contract.messages import NodeReport
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def test_a_silent_node_loses_its_sandboxes_and_may_bring_them_back(stand: Stand) -> None:
    sandbox = await stand.root.create()
    epoch = (await stand.node.send_report()).epoch
    stand.clock.ahead_seconds += 1000
    lost = await stand.root.reach(sandbox["id"], "lost")
    assert lost["reason"] is None
    problem = (await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/run", {"argv": ["true"]})).expect(503)
    assert problem["code"] == "sandbox_lost"
    problem = (await stand.root.call("POST", "/v1/sandboxes", {})).expect(503)
    assert problem["code"] == "no_capacity"
    assert (await stand.node.send_report()).epoch == epoch + 1
    assert (await stand.root.get(sandbox["id"]))["state"] == "running"


async def test_a_node_that_stays_away_fails_them_and_must_bury_them(stand: Stand) -> None:
    sandbox = await stand.root.create()
    await stand.node.send_report()
    stand.clock.ahead_seconds += 1000
    await stand.root.reach(sandbox["id"], "lost")
    stand.clock.ahead_seconds += 601
    failed = await stand.root.reach(sandbox["id"], "failed")
    assert failed["reason"] == "node_lost"
    assert (await stand.node.send_report()).bury == [sandbox["id"]]
    assert (await stand.root.get(sandbox["id"]))["reason"] == "node_lost"


async def test_a_sandbox_that_ended_while_its_node_was_away(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stand.clock.ahead_seconds += 1000
    await stand.root.reach(sandbox["id"], "lost")
    stand.node.end(sandbox["id"], SandboxReason.WALL_TIMEOUT, SandboxState.STOPPED)
    assert (await stand.node.send_report()).acknowledged == [sandbox["id"]]
    ended = await stand.root.get(sandbox["id"])
    assert (ended["state"], ended["reason"]) == ("stopped", "wall_timeout")


async def test_what_two_full_reports_lack_is_gone(stand: Stand) -> None:
    kept, gone = await stand.root.create(), await stand.root.create()
    await stand.node.send_report()
    del stand.node.sandboxes[gone["id"]]
    await stand.node.send_report(stand.node.report(full=False, only=[]))
    await stand.node.send_report()
    assert (await stand.root.get(gone["id"]))["state"] == "running"
    await stand.node.send_report()
    ended = await stand.root.get(gone["id"])
    assert (ended["state"], ended["reason"]) == ("failed", "runtime_failed")
    assert (await stand.root.get(kept["id"]))["state"] == "running"


async def test_a_report_written_before_a_create_ends_nothing(stand: Stand) -> None:
    early = [stand.node.report()]
    sandbox = await stand.root.create()
    for report in early:
        await stand.node.send_report(report)
    for _ in range(3):
        await stand.node.send_report()
    assert (await stand.root.get(sandbox["id"]))["state"] == "running"


async def test_late_and_repeated_reports_change_nothing(stand: Stand) -> None:
    sandbox = await stand.root.create()
    old = stand.node.report()
    stand.node.end(sandbox["id"], SandboxReason.GUEST_FAILED)
    await stand.node.send_report()
    answer = await stand.node.send_report(old)
    assert (answer.acknowledged, answer.bury) == ([], [])
    assert (await stand.root.get(sandbox["id"]))["reason"] == "guest_failed"


async def test_unknown_sandboxes_are_buried(stand: Stand) -> None:
    sandbox = await stand.root.create()
    report = stand.node.report()
    stranger = report.sandboxes[0].model_copy(update={"id": "sbx" + "a" * 20})
    answer = await stand.node.send_report(report.model_copy(update={"sandboxes": [*report.sandboxes, stranger]}))
    assert answer.bury == [stranger.id]
    assert (await stand.root.get(sandbox["id"]))["state"] == "running"


async def test_a_node_cannot_speak_of_anothers_sandboxes(stand: Stand) -> None:
    sandbox = await stand.root.create()
    async with fake_node(stand.platform.settings.run_dir, "second") as second:
        forged = (
            stand.node.report()
            .sandboxes[0]
            .model_copy(update={"state": SandboxState.STOPPED, "reason": SandboxReason.REQUESTED})
        )
        report = second.report().model_copy(update={"sandboxes": [forged]})
        await second.send_report(report)
    assert (await stand.root.get(sandbox["id"]))["state"] == "running"


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with fake_node(settings.run_dir) as node:
        async with api(tmp_path, node=node) as first:
            sandbox = await first.root.create(name="one")
            key = first.root.headers
        async with api(tmp_path, node=node, report=False) as second:
            assert second.root.headers == key
            assert (await second.root.get(sandbox["id"]))["state"] == "running"
            ran = await second.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/run", {"argv": ["true"]})
            assert ran.expect(200)["exit_code"] == 0
            node.incarnation = "another"
            await node.send_report()
            stopped = await second.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")
            assert stopped.expect(200)["state"] == "stopped"


async def test_a_create_cut_by_a_restart_is_repaired_by_the_nodes_report(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with fake_node(settings.run_dir) as node:
        node.switch.hang = asyncio.Event()
        async with api(tmp_path, node=node) as first:
            sandbox = await first.root.create(wait_seconds=0)
            await until(lambda: sandbox["id"] in node.sandboxes)
        async with api(tmp_path, node=node, report=False) as second:
            assert (await second.root.get(sandbox["id"]))["state"] == "pending"
            await node.send_report()
            assert (await second.root.get(sandbox["id"]))["state"] == "running"


async def test_a_create_that_never_reached_its_node_fails_after_its_deadline(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with fake_node(settings.run_dir) as node:
        node.switch.before = asyncio.Event()
        async with api(tmp_path, node=node) as first:
            sandbox = await first.root.create(wait_seconds=0, env={"A": "b"})
        async with api(tmp_path, node=node) as second:
            for _ in range(3):
                await node.send_report()
            assert (await second.root.get(sandbox["id"]))["state"] == "pending"
            second.clock.ahead_seconds += 150
            ended = await second.root.reach(sandbox["id"], "failed")
            assert ended["reason"] == "start_failed"


async def test_a_repeated_create_after_a_restart_finishes_the_first(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    headers = {"Idempotency-Key": "k"}
    body = {"env": {"A": "b"}, "wait_seconds": 30}
    async with fake_node(settings.run_dir) as node:
        node.switch.before = asyncio.Event()
        async with api(tmp_path, node=node) as first:
            asking = asyncio.ensure_future(first.root.call("POST", "/v1/sandboxes", body, headers=headers))
            await until(lambda: bool(node.ensures))
            asking.cancel()
        node.switch.before = None
        async with api(tmp_path, node=node) as second:
            answer = await second.root.call("POST", "/v1/sandboxes", body, headers=headers)
            sandbox = answer.expect(201)
            assert (sandbox["id"], sandbox["state"]) == (node.ensures[0], "running")
            assert answer.headers["Idempotency-Replayed"] == "true"
            assert node.sandboxes[sandbox["id"]].ensure.spec.env == {"A": "b"}
            assert len((await second.root.call("GET", "/v1/sandboxes")).body["items"]) == 1


async def test_a_run_cut_by_a_restart_is_stopped(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with fake_node(settings.run_dir) as node:
        node.switch.run_hangs = asyncio.Event()
        node.switch.deaf_stops = 1
        async with api(tmp_path, node=node) as first:
            asking = asyncio.ensure_future(first.root.call("POST", "/v1/run", {"command": {"argv": ["true"]}}))
            await until(lambda: any(request.path.endswith("/run") for request in node.requests))
            [sandbox_id] = node.sandboxes
            asking.cancel()
        async with api(tmp_path, node=node) as second:
            assert (await second.root.reach(sandbox_id, "stopped"))["reason"] == "requested"


async def test_an_unanswered_stop_is_told_again(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stand.node.switch.deaf_stops = 3
    await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}?wait_seconds=0")
    report = stand.node.report()
    assert report.sandboxes[0].state == SandboxState.RUNNING
    await stand.node.send_report(report)
    assert (await stand.root.get(sandbox["id"]))["state"] == "stopping"
    for _ in range(3):
        await until(lambda: sandbox["id"] not in stand.platform.stopping)
        stand.clock.ahead_seconds += 6
    assert (await stand.root.reach(sandbox["id"], "stopped"))["reason"] == "requested"


async def test_a_steady_report_writes_nothing(stand: Stand) -> None:
    for _ in range(5):
        await stand.root.create()
    await stand.node.send_report()
    before = {key: dict(member.applied) for key, member in stand.platform.fleet.members.items()}
    on_the_wire = NodeReport.model_validate_json(stand.node.report().model_dump_json())
    applied = await reports.apply(stand.platform, stand.node.id, on_the_wire.sandboxes)
    assert {row.verdict for row in applied} == {"same"}
    await stand.node.send_report()
    assert {key: dict(member.applied) for key, member in stand.platform.fleet.members.items()} == before


async def test_reports_that_make_no_sense_are_refused(stand: Stand) -> None:
    connector = aiohttp.UnixConnector(str(stand.node.api_socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        for body, status in ((b"{", 400), (b"{}", 422)):
            async with session.post("http://api/internal/v1/node-reports", data=body) as answer:
                assert answer.status == status
        async with session.get("http://api/v1/sandboxes") as answer:
            assert answer.status == 404
        async with session.get("http://api/metrics") as answer:
            assert "sandlot_node_reports_total" in await answer.text()
