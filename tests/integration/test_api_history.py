"""Logs, metrics and ports as callers see them: cursors, filters, following, and what is answered after the end."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api_stand import Answer, Stand, api, until
from fake_node import FakeLog
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState

PROCESS = "prc" + "b" * 20
DAY = 86_400.0


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


@pytest.fixture
async def sandbox_id(stand: Stand) -> str:
    return (await stand.root.create())["id"]


@pytest.fixture
def log(stand: Stand, sandbox_id: str) -> FakeLog:
    log = FakeLog(over=True)
    for text in ("one\n", "two\n", "three\n"):
        log.add(text)
    stand.node.logs[sandbox_id] = log
    return log


def path_of(sandbox_id: str, name: str = "logs") -> str:
    return f"/v1/sandboxes/{sandbox_id}/{name}"


async def rows(stand: Stand, sandbox_id: str, **query: str) -> list[dict[str, Any]]:
    answer = await stand.root.call("GET", path_of(sandbox_id), params=query)
    answer.expect(200)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.raw.splitlines()]


async def end(stand: Stand, sandbox_id: str) -> None:
    stand.node.end(sandbox_id, SandboxReason.OUT_OF_MEMORY, SandboxState.FAILED)
    await stand.node.send_report()


async def test_a_log_is_read_and_gone_on_with(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    found = await rows(stand, sandbox_id)
    assert [row["text"] for row in found] == ["one\n", "two\n", "three\n"]
    assert set(found[0]) == {"cursor", "at", "process_id", "kind", "text"}
    later = await rows(stand, sandbox_id, after=found[0]["cursor"])
    assert [row["text"] for row in later] == ["two\n", "three\n"]
    assert await rows(stand, sandbox_id, after=found[-1]["cursor"]) == []


async def test_a_cursor_fits_its_own_log_alone(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    cursor = (await rows(stand, sandbox_id))[0]["cursor"]
    other = (await stand.root.create())["id"]
    refused = [
        (other, {"after": cursor}),
        (sandbox_id, {"after": cursor, "process_id": PROCESS}),
        (sandbox_id, {"after": "100"}),
        (sandbox_id, {"after": "A" * 80}),
    ]
    for target, query in refused:
        answer = await stand.root.call("GET", path_of(target), params=query)
        assert answer.expect(400)["code"] == "invalid_cursor"
    stand.clock.ahead_seconds = DAY + 1
    answer = await stand.root.call("GET", path_of(sandbox_id), params={"after": cursor})
    assert answer.expect(400)["code"] == "invalid_cursor"


async def test_a_log_is_followed_until_the_sandbox_has_ended(stand: Stand, sandbox_id: str) -> None:
    log = stand.node.logs[sandbox_id] = FakeLog()
    log.add("first\n")
    url = stand.url + path_of(sandbox_id) + "?follow=true"
    async with stand.session.get(url, headers=stand.root.headers) as answer:
        assert json.loads(await answer.content.readline())["text"] == "first\n"
        log.add("second\n")
        assert json.loads(await answer.content.readline())["text"] == "second\n"
        log.over = True
        log.changed.set()
        assert await answer.content.read() == b""


async def test_a_reader_that_leaves_is_let_go(stand: Stand, sandbox_id: str) -> None:
    stand.node.logs[sandbox_id] = FakeLog()
    url = stand.url + path_of(sandbox_id) + "?follow=true"
    async with asyncio.timeout(20), stand.session.get(url, headers=stand.root.headers):
        pass
    await until(lambda: sandbox_id in stand.node.cancelled)


async def test_server_sent_events(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    log.add("data: x\n\nevent: y\n")
    headers = {"Accept": "text/event-stream"}
    answer = await stand.root.call("GET", path_of(sandbox_id), params={"follow": "true"}, headers=headers)
    events = answer.raw.decode().split("\n\n")
    assert events[0] == "retry: 1000\ndata:"
    assert [event.splitlines()[0] for event in events[1:-1]] == ["event: stdout"] * 4 + ["event: end"]
    injected = events[4].splitlines()
    assert len(injected) == 3
    assert json.loads(injected[2].removeprefix("data: "))["text"] == "data: x\n\nevent: y\n"
    first = events[1].splitlines()[1].removeprefix("id: ")
    last = events[5].splitlines()[1].removeprefix("id: ")
    again = await stand.root.call("GET", path_of(sandbox_id), headers=headers | {"Last-Event-ID": first})
    assert again.raw.decode().count("event: stdout") == 3
    over = await stand.root.call("GET", path_of(sandbox_id), headers=headers | {"Last-Event-ID": last})
    assert over.status == 204


async def test_a_broken_node_is_a_broken_answer(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    log.broken = True
    with pytest.raises(aiohttp.ClientError):
        await stand.root.call("GET", path_of(sandbox_id))


async def test_lines_that_are_none_are_a_broken_answer(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    log.lines.append((999, "x" * (2 * 1024 * 1024)))
    with pytest.raises(aiohttp.ClientError):
        await stand.root.call("GET", path_of(sandbox_id))


@pytest.mark.parametrize(
    "query", [{"follow": "yes"}, {"process_id": "prc"}, {"after": "a b"}, {"limit": "3"}, {"tail_bytes": "5"}]
)
async def test_strict_queries(stand: Stand, sandbox_id: str, query: dict[str, str]) -> None:
    answer = await stand.root.call("GET", path_of(sandbox_id), params=query)
    assert answer.expect(422)["code"] == "invalid_request"
    refused = await stand.root.call("GET", path_of(sandbox_id), headers={"Accept": "image/png"})
    assert refused.expect(406)["code"] == "not_acceptable"


# --- after the end


async def everything_else(stand: Stand, sandbox_id: str) -> dict[str, Answer]:
    process = f"processes/{PROCESS}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", "ports", None),
        ("POST", "run", {"argv": ["true"]}),
        ("POST", "processes", {"argv": ["true"]}),
        ("GET", "processes", None),
        ("GET", process, None),
        ("GET", process + "/result", None),
        ("GET", process + "/output", None),
        ("POST", process + "/stdin", None),
        ("POST", process + "/signal", {"signal": "SIGTERM"}),
        ("POST", process + "/resize", {"rows": 1, "cols": 1}),
        ("POST", "extend", {"timeout_seconds": 5}),
        ("PATCH", "", {"timeout_seconds": 5}),
    ]
    return {
        f"{method} {name}": await stand.root.call(method, path_of(sandbox_id, name).rstrip("/"), body)
        for method, name, body in calls
    }


async def test_after_the_end_records_logs_and_metrics_answer_and_nothing_else(
    stand: Stand, sandbox_id: str, log: FakeLog
) -> None:
    await end(stand, sandbox_id)
    assert (await stand.root.get(sandbox_id))["reason"] == "out_of_memory"
    assert len(await rows(stand, sandbox_id, follow="true")) == 3
    (await stand.root.call("GET", path_of(sandbox_id, "metrics"))).expect(200)
    (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox_id}")).expect(200)
    for name, answer in (await everything_else(stand, sandbox_id)).items():
        problem = answer.expect(410)
        assert (problem["code"], problem["reason"]) == ("sandbox_ended", "out_of_memory"), name


async def test_a_log_is_gone_after_seven_days(stand: Stand, sandbox_id: str, log: FakeLog) -> None:
    await end(stand, sandbox_id)
    stand.clock.ahead_seconds = 7 * DAY - 60
    assert len(await rows(stand, sandbox_id)) == 3
    stand.clock.ahead_seconds = 7 * DAY + 60
    problem = (await stand.root.call("GET", path_of(sandbox_id))).expect(410)
    assert (problem["code"], problem["reason"]) == ("sandbox_ended", "out_of_memory")
    assert "7 days" in problem["hint"]


async def test_a_node_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    async with api(tmp_path, node_interval_seconds=0.05) as stand:
        ended = (await stand.root.create())["id"]
        await end(stand, ended)
        lives = (await stand.root.create())["id"]
        await stand.root.reach(lives, "lost")
        for name in ("logs", "metrics"):
            problem = (await stand.root.call("GET", path_of(ended, name))).expect(503)
            assert (problem["code"], problem["retryable"]) == ("node_unreachable", True)
            problem = (await stand.root.call("GET", path_of(lives, name))).expect(503)
            assert problem["code"] == "sandbox_lost"


async def test_a_node_that_dies_under_the_call(stand: Stand, sandbox_id: str) -> None:
    await stand.node.stop()
    for name in ("logs", "metrics"):
        problem = (await stand.root.call("GET", path_of(sandbox_id, name))).expect(503)
        assert problem["code"] == "node_unreachable"


# --- metrics


async def asked(stand: Stand, sandbox_id: str, **query: str) -> dict[str, str]:
    return (await stand.root.call("GET", path_of(sandbox_id, "metrics"), params=query)).expect(200)["asked"]


async def test_the_span_of_samples(stand: Stand, sandbox_id: str) -> None:
    now_ms = stand.clock.now_us() // 1000
    default = await asked(stand, sandbox_id)
    assert abs(int(default["start_ms"]) - (now_ms - 300_000)) < 30_000
    assert default["step_seconds"] == "5"
    given = await asked(stand, sandbox_id, start="2026-11-22T11:00:00Z", end="2026-11-22T12:00:00Z", step_seconds="60")
    assert int(given["end_ms"]) - int(given["start_ms"]) == 3_600_000
    assert given["step_seconds"] == "60"


async def test_of_an_ended_sandbox_its_last_minutes_are_told(stand: Stand, sandbox_id: str) -> None:
    await end(stand, sandbox_id)
    stand.clock.ahead_seconds = 3 * DAY
    default = await asked(stand, sandbox_id)
    now_ms = stand.clock.now_us() // 1000
    assert now_ms - int(default["end_ms"]) > 2.9 * DAY * 1000


@pytest.mark.parametrize(
    "query",
    [
        {"step_seconds": "4"},
        {"step_seconds": "3601"},
        {"start": "yesterday"},
        {"start": "2026-11-22T12:00:00Z", "end": "2026-11-22T11:00:00Z"},
        {"limit": "1"},
    ],
)
async def test_what_is_no_span(stand: Stand, sandbox_id: str, query: dict[str, str]) -> None:
    answer = await stand.root.call("GET", path_of(sandbox_id, "metrics"), params=query)
    assert answer.expect(422)["code"] == "invalid_request"


# --- ports, scopes


async def test_ports_are_the_nodes_answer(stand: Stand, sandbox_id: str) -> None:
    answer = await stand.root.call("GET", path_of(sandbox_id, "ports"), params={"port": "80", "wait_seconds": "1"})
    assert answer.expect(200)["items"] == [{"port": 80, "protocol": "tcp", "address": "0.0.0.0", "pid": 7}]  # noqa: S104 - an answer


@pytest.mark.parametrize(("name", "scope"), [("logs", "processes"), ("ports", "processes"), ("metrics", "sandboxes")])
async def test_each_needs_its_scope(stand: Stand, sandbox_id: str, name: str, scope: str) -> None:
    project = (await stand.root.get(sandbox_id))["project_id"]
    fits = stand.with_key(await stand.new_key(f"{scope}:read", project=project))
    (await fits.call("GET", path_of(sandbox_id, name))).expect(200)
    for other in {"sandboxes", "processes", "files"} - {scope}:
        key = await stand.new_key(other, project=project)
        problem = (await stand.with_key(key).call("GET", path_of(sandbox_id, name))).expect(403)
        assert (problem["code"], problem["required_scope"]) == ("scope_required", f"{scope}:read")
