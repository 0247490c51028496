"""Decisions about a sandbox's traffic as callers see them, and as a node tells them."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api
from fake_node import FakeLog
from node_kit import World, a_stop, node


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


@pytest.fixture
async def sandbox_id(stand: Stand) -> str:
    found = (await stand.root.create())["id"]
    log = stand.node.decisions[found] = FakeLog()
    for number in range(5):
        row = {"verdict": "allow" if number % 2 else "deny", "name": f"n{number}.test", "count": 1}
        log.lines.append((100 * number + 100, json.dumps(row, separators=(",", ":"))))
    return found


def path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{sandbox_id}/egress/decisions"


async def page(stand: Stand, sandbox_id: str, **query: str) -> dict[str, Any]:
    return (await stand.root.call("GET", path(sandbox_id), params=query)).expect(200)


async def test_they_are_listed_page_by_page(stand: Stand, sandbox_id: str) -> None:
    first = await page(stand, sandbox_id, limit="3")
    assert [row["name"] for row in first["items"]] == ["n0.test", "n1.test", "n2.test"]
    assert first["next_cursor"] == first["items"][-1]["cursor"]
    rest = await page(stand, sandbox_id, limit="3", after=first["next_cursor"])
    assert [row["name"] for row in rest["items"]] == ["n3.test", "n4.test"]
    assert rest["next_cursor"] is None
    assert (await page(stand, sandbox_id, after=rest["items"][-1]["cursor"]))["items"] == []
    denied = await page(stand, sandbox_id, verdict="deny")
    assert [row["name"] for row in denied["items"]] == ["n0.test", "n2.test", "n4.test"]
    # a cursor is of one list with one filter
    wrong = await stand.root.call("GET", path(sandbox_id), params={"after": denied["items"][0]["cursor"]})
    assert wrong.expect(400)["code"] == "invalid_cursor"


async def test_they_are_followed_as_lines_and_as_events(stand: Stand, sandbox_id: str) -> None:
    lines = await stand.root.call("GET", path(sandbox_id), headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["name"] for line in lines.raw.splitlines()] == [f"n{number}.test" for number in range(5)]
    headers = {"Accept": "text/event-stream"}
    answer = await stand.root.call("GET", path(sandbox_id), headers=headers)
    events = answer.raw.decode().split("\n\n")
    assert [event.splitlines()[0] for event in events[1:-1]] == ["event: decision"] * 5 + ["event: end"]
    second = events[2].splitlines()[1].removeprefix("id: ")
    last = events[-2].splitlines()[1].removeprefix("id: ")
    again = await stand.root.call("GET", path(sandbox_id), headers=headers | {"Last-Event-ID": second})
    assert again.raw.decode().count("event: decision") == 3
    over = await stand.root.call("GET", path(sandbox_id), headers=headers | {"Last-Event-ID": last})
    assert over.status == 204


@pytest.mark.parametrize("query", [{"verdict": "maybe"}, {"limit": "0"}, {"since": "now"}, {"follow": "true"}])
async def test_strict_queries(stand: Stand, sandbox_id: str, query: dict[str, str]) -> None:
    assert (await stand.root.call("GET", path(sandbox_id), params=query)).expect(422)["code"] == "invalid_request"
    refused = await stand.root.call("GET", path(sandbox_id), headers={"Accept": "image/png"})
    assert refused.expect(406)["code"] == "not_acceptable"


async def test_a_node_tells_what_its_programs_decided(tmp_path: Path) -> None:
    async with node(World(tmp_path)) as opened:
        sandbox_id = await opened.create()
        book = opened.manager.tools.decisions
        address = opened.manager.runners[sandbox_id].life.parts.slot.address  # type: ignore[union-attr]
        row = {"sandbox": address, "count": 1, "verdict": "deny", "source": "policy", "name": "evil.test"}
        book.take("resolver", [row, row | {"sandbox": "10.9.9.9", "name": "nobody.test"}])
        rows = await book.after(sandbox_id, 0, 0, None, 10)
        assert [one.what.name for one in rows] == ["evil.test"]
        assert book.is_live(sandbox_id)
        async with opened.manager.use(sandbox_id) as live:
            now = opened.world.clock.now()
            assert [one["name"] for one in live.denied(now, now)] == ["evil.test"]
        await opened.manager.stop(sandbox_id, a_stop())
        assert not book.is_live(sandbox_id)
        assert len(await book.after(sandbox_id, 0, 0, None, 10)) == 1
