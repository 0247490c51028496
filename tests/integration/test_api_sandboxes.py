"""Sandboxes through the api: create, read, list, change, delete."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api, until
from fake_node import IMAGE, fake_node
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def test_a_create_answers_the_running_sandbox(stand: Stand) -> None:
    answer = await stand.root.call("POST", "/v1/sandboxes", {"name": "one", "metadata": {"a": "1"}, "env": {"K": "v"}})
    sandbox = answer.expect(201)
    assert sandbox["state"] == "running"
    assert sandbox["image"]["id"] == IMAGE
    assert sandbox["metadata"] == {"a": "1"}
    assert "env" not in sandbox
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Sandlot-Request-Id"].startswith("req")
    assert stand.node.sandboxes[sandbox["id"]].ensure.spec.env == {"K": "v"}
    assert sandbox.pop("access")["token"]
    got = await stand.root.get(sandbox["id"])
    assert got | {"remaining_seconds": 0} == sandbox | {"remaining_seconds": 0}


async def test_env_is_in_no_file_of_the_api(stand: Stand, tmp_path: Path) -> None:
    await stand.root.create(env={"TOKEN": "a-very-secret-value"})
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or b"a-very-secret-value" not in path.read_bytes()


async def test_a_hundred_creates_at_once_each_run(stand: Stand) -> None:
    made = await asyncio.gather(*(stand.root.create() for _ in range(100)))
    assert len({sandbox["id"] for sandbox in made}) == 100
    assert {sandbox["state"] for sandbox in made} == {"running"}
    assert len(stand.node.ensures) == 100


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"egres": {"mode": "open"}}, "/egres"),
        ({"timeout_seconds": "60"}, "/timeout_seconds"),
        ({"timeout_seconds": 0}, "/timeout_seconds"),
        ({"resources": {"cpus": 0.01}}, "/resources/cpus"),
        ({"resources": {"cpu": 1}}, "/resources/cpu"),
        ({"name": "Bad_Name"}, "/name"),
        ({"metadata": {"a b": "x"}}, "/metadata/a b"),
        ({"metadata": {"a": "x" * 1025}}, "/metadata"),
        ({"metadata": {"a": "\0"}}, "/metadata/a"),
        ({"env": {"A=B": "x"}}, "/env/A=B"),
        ({"env": {"A": "x\0y"}}, "/env/A"),
        ({"cwd": "/a\0b"}, "/cwd"),
        ({"wait_seconds": 301}, "/wait_seconds"),
        ({"egress": {"mode": "opne"}}, "/egress/mode"),
        ({"image": ""}, "/image"),
    ],
)
async def test_bad_input_names_its_place(stand: Stand, body: dict[str, Any], path: str) -> None:
    problem = (await stand.root.call("POST", "/v1/sandboxes", body)).expect(422)
    assert problem["code"] == "invalid_request"
    assert [error["path"] for error in problem["errors"]] == [path]
    assert stand.node.ensures == []


async def test_a_compressed_body_is_refused(stand: Stand) -> None:
    sent = await stand.root.call("POST", "/v1/sandboxes", {}, headers={"Content-Encoding": "gzip"})
    assert sent.expect(415)["code"] == "unsupported_media_type"
    assert stand.node.ensures == []


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        ({"on_timeout": "pause"}, "on_timeout.pause"),
        ({"on_idle": "pause"}, "on_idle.pause"),
        ({"auto_resume": True}, "auto_resume"),
        ({"resources": {"gpu": {"model": "x"}}}, "gpu"),
        ({"snapshot": "snp"}, "snapshot"),
    ],
)
async def test_what_comes_later_is_refused_by_name(stand: Stand, body: dict[str, Any], feature: str) -> None:
    problem = (await stand.root.call("POST", "/v1/sandboxes", body)).expect(501)
    assert (problem["code"], problem["reason"]) == ("not_implemented", feature)


async def test_unknown_image_and_impossible_resources_are_told_apart(tmp_path: Path) -> None:
    async with api(tmp_path, report=False) as stand:
        stand.node.capacity.cpus = 4
        problem = (await stand.root.call("POST", "/v1/sandboxes", {})).expect(503)
        assert problem["code"] == "no_capacity"
        await stand.node.send_report()
        problem = (await stand.root.call("POST", "/v1/sandboxes", {"image": "nope"})).expect(404)
        assert problem["code"] == "image_not_found"
        problem = (await stand.root.call("POST", "/v1/sandboxes", {"resources": {"cpus": 5}})).expect(422)
        assert problem["code"] == "impossible_resources"
        assert problem["limit"] == {"cpus": 4.0}
        listed = (await stand.root.call("GET", "/v1/sandboxes")).expect(200)
        assert listed["items"] == []


async def test_a_name_is_unique_among_the_living(stand: Stand) -> None:
    first = await stand.root.create(name="one")
    problem = (await stand.root.call("POST", "/v1/sandboxes", {"name": "one"})).expect(409)
    assert (problem["code"], problem["sandbox_id"]) == ("name_taken", first["id"])
    found = (await stand.root.call("POST", "/v1/sandboxes", {"name": "one", "if_exists": "return"})).expect(200)
    assert found["id"] == first["id"]
    await stand.root.call("DELETE", f"/v1/sandboxes/{first['id']}")
    assert (await stand.root.create(name="one"))["id"] != first["id"]


async def test_only_one_of_many_gets_the_name(stand: Stand) -> None:
    answers = await asyncio.gather(
        *(stand.root.call("POST", "/v1/sandboxes", {"name": "one"}) for _ in range(20)),
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19


async def test_a_delete_stops_and_again_says_the_same(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}"
    first, second = await asyncio.gather(stand.root.call("DELETE", path), stand.root.call("DELETE", path))
    third = await stand.root.call("DELETE", path)
    for answer in (first, second, third):
        body = answer.expect(200)
        assert (body["state"], body["reason"], body["desired_state"]) == ("stopped", "requested", "stopped")
        assert body["generation"] == 2
    assert first.body["ended_at"] == third.body["ended_at"]


async def test_a_delete_that_does_not_wait_is_carried_out(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stand.node.switch.deaf_stops = 1
    answer = await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}?wait_seconds=0")
    assert answer.expect(200)["state"] == "stopping"
    stand.clock.ahead_seconds += 10
    assert (await stand.root.reach(sandbox["id"], "stopped"))["reason"] == "requested"


async def test_a_delete_during_a_start_leaves_nothing(stand: Stand) -> None:
    stand.node.switch.before = asyncio.Event()
    creating = asyncio.ensure_future(stand.root.call("POST", "/v1/sandboxes", {"name": "one"}))
    await until(lambda: bool(stand.node.ensures))
    [sandbox_id] = stand.node.ensures
    deleted = await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox_id}?wait_seconds=0")
    assert deleted.expect(200)["state"] == "stopping"
    stand.node.switch.before.set()
    problem = (await creating).expect(410)
    assert (problem["code"], problem["sandbox_id"]) == ("sandbox_ended", sandbox_id)
    assert (await stand.root.reach(sandbox_id, "stopped"))["reason"] == "requested"
    assert all(held.report.state == SandboxState.STOPPED for held in stand.node.sandboxes.values())


async def test_patch_merges_and_tells_the_node_of_deadlines(stand: Stand) -> None:
    sandbox = await stand.root.create(name="one", metadata={"a": "1", "b": "2"})
    path = f"/v1/sandboxes/{sandbox['id']}"
    body = {"metadata": {"a": None, "c": "3"}, "name": None, "timeout_seconds": 60, "idle_timeout_seconds": 30}
    changed = (await stand.root.call("PATCH", path, body)).expect(200)
    assert changed["metadata"] == {"b": "2", "c": "3"}
    assert changed["name"] is None
    assert (changed["timeout_seconds"], changed["idle_timeout_seconds"], changed["generation"]) == (60, 30, 2)
    assert 50 < changed["remaining_seconds"] <= 61
    endless = (await stand.root.call("PATCH", path, {"timeout_seconds": None})).expect(200)
    assert (endless["timeout_seconds"], endless["expires_at"]) == (None, None)


async def test_extend_only_moves_the_deadline_away(stand: Stand) -> None:
    sandbox = await stand.root.create(timeout_seconds=3600)
    path = f"/v1/sandboxes/{sandbox['id']}/extend"
    same = (await stand.root.call("POST", path, {"timeout_seconds": 10})).expect(200)
    assert same["expires_at"] == sandbox["expires_at"]
    later = (await stand.root.call("POST", path, {"timeout_seconds": 7200})).expect(200)
    assert later["remaining_seconds"] > 7000


async def test_if_match_guards_changes(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}"
    changed = await stand.root.call("PATCH", path, {"metadata": {"a": "1"}}, headers={"If-Match": '"1"'})
    assert changed.headers["ETag"] == '"2"'
    for method in ("PATCH", "DELETE"):
        problem = (await stand.root.call(method, path, {}, headers={"If-Match": '"1"'})).expect(412)
        assert (problem["code"], problem["generation"]) == ("generation_mismatch", 2)
    (await stand.root.call("DELETE", path, headers={"If-Match": '"1", "2"'})).expect(200)


async def test_ended_sandboxes_say_why(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stand.node.end(sandbox["id"], SandboxReason.OUT_OF_MEMORY)
    answer = await stand.node.send_report()
    assert answer.acknowledged == [sandbox["id"]]
    ended = await stand.root.get(sandbox["id"])
    assert (ended["state"], ended["reason"]) == ("failed", "out_of_memory")
    for method, path, body in (("PATCH", "", {}), ("POST", "/extend", {"timeout_seconds": 5}), ("POST", "/run", {})):
        problem = (await stand.root.call(method, f"/v1/sandboxes/{sandbox['id']}{path}", body)).expect(410)
        assert (problem["reason"], problem["state"]) == ("out_of_memory", "failed")
        assert problem["ended_at"] == ended["ended_at"]
    (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")).expect(200)


async def test_lists_filter(stand: Stand) -> None:
    one = await stand.root.create(name="one", metadata={"team": "x", "k.e-y": "v"})
    two = await stand.root.create(name="two", metadata={"team": "x"})
    await stand.root.call("DELETE", f"/v1/sandboxes/{two['id']}")

    async def ids(query: str) -> list[str]:
        listed = (await stand.root.call("GET", f"/v1/sandboxes?{query}")).expect(200)
        return [item["id"] for item in listed["items"]]

    assert await ids("") == [one["id"]]
    assert await ids("metadata.team=x&metadata.k.e-y=v") == [one["id"]]
    assert await ids("metadata.team=y") == []
    assert await ids("state=stopped") == [two["id"]]
    assert await ids("state=stopped&state=running&order=asc") == [one["id"], two["id"]]
    assert await ids("name=two") == []
    assert await ids(f"image_id={IMAGE}&key_id={one['key_id']}") == [one["id"]]
    assert await ids("created_after=2100-01-01T00:00:00Z") == []
    assert await ids("created_before=2100-01-01T00:00:00%2B01:00") == [one["id"]]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=1e2", "limit=%201", "limt=1", "limit=1&limit=2", "state=alive",
        "order=up", "created_after=yesterday", "metadata.a%20b=1", "image_id=x", "name=A", "name=%ff",
    ],
)  # fmt: skip
async def test_strict_queries(stand: Stand, query: str) -> None:
    problem = (await stand.root.call("GET", f"/v1/sandboxes?{query}")).expect(422)
    assert problem["errors"][0]["path"].startswith("query:")


async def test_a_walk_meets_each_that_was_there_once_whatever_comes_and_goes(stand: Stand) -> None:
    there = [(await stand.root.create())["id"] for _ in range(23)]
    for order in ("desc", "asc"):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = f"&cursor={cursor}" if cursor else ""
            listed = (await stand.root.call("GET", f"/v1/sandboxes?limit=5&order={order}{page}")).expect(200)
            seen += [item["id"] for item in listed["items"]]
            cursor = listed["next_cursor"]
            if cursor is None or len(seen) > 500:
                break
            if len(seen) < 20:
                await stand.root.create()
        assert len(seen) == len(set(seen))
        assert [one for one in seen if one in there] == (there if order == "asc" else there[::-1])


async def test_cursors_are_bound_to_their_list(stand: Stand) -> None:
    for _ in range(2):
        await stand.root.create()
    cursor = (await stand.root.call("GET", "/v1/sandboxes?limit=1")).expect(200)["next_cursor"]
    for query in (f"cursor={cursor}&state=running", f"cursor={cursor}&order=asc", "cursor=abc", f"cursor={cursor}x"):
        problem = (await stand.root.call("GET", f"/v1/sandboxes?{query}")).expect(400)
        assert problem["code"] == "invalid_cursor"
    stand.clock.ahead_seconds += 25 * 3600
    (await stand.root.call("GET", f"/v1/sandboxes?cursor={cursor}")).expect(400)


async def test_a_wait_ends_when_the_state_comes(stand: Stand) -> None:
    sandbox = await stand.root.create()
    waiting = asyncio.ensure_future(stand.root.reach(sandbox["id"], "failed", "stopped"))
    stand.node.end(sandbox["id"], SandboxReason.WALL_TIMEOUT)
    await stand.node.send_report(stand.node.report(full=False, only=[sandbox["id"]]))
    assert (await waiting)["reason"] == "wall_timeout"
    problem = (await stand.root.call("GET", f"/v1/sandboxes/{sandbox['id']}?wait_for=dead")).expect(422)
    assert problem["errors"][0]["path"] == "query:wait_for"


async def test_a_start_that_takes_longer_than_the_wait_is_a_promise(stand: Stand) -> None:
    stand.node.switch.before = asyncio.Event()
    sandbox = await stand.root.create(wait_seconds=0.05)
    assert sandbox["state"] == "pending"
    assert sandbox["message"]
    stand.node.switch.before.set()
    assert (await stand.root.reach(sandbox["id"], "running"))["user"] == "user"


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("start_failed", 503, "start_failed"),
        ("image_unavailable", 503, "image_unavailable"),
        ("cwd_not_found", 422, "start_failed"),
    ],
)
async def test_a_failed_start_is_an_error_and_a_record(stand: Stand, code: str, status: int, reason: str) -> None:
    stand.node.switch.refuse = code
    problem = (await stand.root.call("POST", "/v1/sandboxes", {"name": "one"})).expect(status)
    assert problem["code"] == code
    record = await stand.root.get(problem["sandbox_id"])
    assert (record["state"], record["reason"], record["message"]) == ("failed", reason, "As told.")


async def test_a_full_node_leaves_no_record(stand: Stand) -> None:
    stand.node.switch.refuse = "no_capacity"
    problem = (await stand.root.call("POST", "/v1/sandboxes", {})).expect(503)
    assert (problem["code"], problem["retryable"]) == ("no_capacity", True)
    listed = (await stand.root.call("GET", "/v1/sandboxes?state=failed&state=pending")).expect(200)
    assert listed["items"] == []


async def test_a_refusal_goes_to_the_next_node(stand: Stand) -> None:
    async with fake_node(stand.platform.settings.run_dir, "second") as second:
        await second.send_report()
        stand.node.switch.refuse = "no_capacity"
        for _ in range(8):
            sandbox = await stand.root.create()
            assert sandbox["node_id"] == second.id
        second.switch.refuse = "no_capacity"
        (await stand.root.call("POST", "/v1/sandboxes", {})).expect(503)


async def test_an_unknown_outcome_asks_the_same_node_again(stand: Stand) -> None:
    async with fake_node(stand.platform.settings.run_dir, "second") as second:
        second.capacity.cpus = 2
        await second.send_report()
        stand.node.switch.die = 3
        sandbox = await stand.root.create()
        assert sandbox["state"] == "running"
        assert stand.node.ensures == [sandbox["id"]] * 4
        assert second.ensures == []
