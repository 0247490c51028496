"""`Idempotency-Key` on the control plane."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from api_stand import Stand, api, until


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


KEY = {"Idempotency-Key": "the key"}


async def test_the_same_request_again_answers_the_resource_as_it_is_now(stand: Stand) -> None:
    first = (await stand.root.call("POST", "/v1/sandboxes", {"metadata": {"b": "1", "a": "2"}}, headers=KEY)).expect(
        201
    )
    await stand.root.call("PATCH", f"/v1/sandboxes/{first['id']}", {"metadata": {"c": "3"}})
    again = await stand.root.call("POST", "/v1/sandboxes", {"metadata": {"a": "2", "b": "1"}}, headers=KEY)
    assert again.expect(201)["id"] == first["id"]
    assert again.body["metadata"]["c"] == "3"
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(stand.node.ensures) == 1


async def test_another_body_is_refused(stand: Stand) -> None:
    await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)
    problem = (await stand.root.call("POST", "/v1/sandboxes", {"name": "a"}, headers=KEY)).expect(422)
    assert problem["code"] == "idempotency_mismatch"


async def test_keys_belong_to_a_project(stand: Stand) -> None:
    first = (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)
    other = stand.with_key(await stand.new_key())
    second = (await other.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)
    assert first["id"] != second["id"]


async def test_while_the_first_still_runs_a_second_is_told_so(stand: Stand) -> None:
    stand.node.switch.before = asyncio.Event()
    first = asyncio.ensure_future(stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY))
    await until(lambda: bool(stand.node.ensures))
    problem = (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(409)
    assert (problem["code"], problem["retryable"]) == ("idempotency_in_flight", True)
    stand.node.switch.before.set()
    made = (await first).expect(201)
    again = (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)
    assert again["id"] == made["id"]


async def test_of_many_at_once_one_creates(stand: Stand) -> None:
    answers = await asyncio.gather(
        *(stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY) for _ in range(30)),
    )
    made = {answer.body["id"] for answer in answers if answer.status == 201}
    assert len(made) == 1
    assert {answer.status for answer in answers} <= {201, 409}
    assert len(stand.node.ensures) == 1


async def test_a_promise_answers_its_key(stand: Stand) -> None:
    stand.node.switch.before = asyncio.Event()
    body = {"wait_seconds": 0}
    first = (await stand.root.call("POST", "/v1/sandboxes", body, headers=KEY)).expect(201)
    again = await stand.root.call("POST", "/v1/sandboxes", body, headers=KEY)
    assert (again.expect(201)["id"], again.body["state"]) == (first["id"], "pending")
    stand.node.switch.before.set()
    await stand.root.reach(first["id"], "running")


@pytest.mark.parametrize("code", ["no_capacity", "start_failed"])
async def test_an_error_releases_the_key(stand: Stand, code: str) -> None:
    stand.node.switch.refuse = code
    (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(503)
    stand.node.switch.refuse = None
    answer = await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)
    assert answer.expect(201)["state"] == "running"
    assert "Idempotency-Replayed" not in answer.headers


async def test_refused_input_leaves_the_key_free(stand: Stand) -> None:
    (await stand.root.call("POST", "/v1/sandboxes", {"image": "nope"}, headers=KEY)).expect(404)
    (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)


async def test_a_taken_name_leaves_the_key_free(stand: Stand) -> None:
    first = await stand.root.create(name="one")
    (await stand.root.call("POST", "/v1/sandboxes", {"name": "one"}, headers=KEY)).expect(409)
    await stand.root.call("DELETE", f"/v1/sandboxes/{first['id']}")
    (await stand.root.call("POST", "/v1/sandboxes", {"name": "one"}, headers=KEY)).expect(201)


async def test_keys_are_forgotten_after_a_day(stand: Stand) -> None:
    first = (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)
    stand.clock.ahead_seconds += 24 * 3600 + 1
    await stand.node.send_report()
    second = (await stand.root.call("POST", "/v1/sandboxes", {}, headers=KEY)).expect(201)
    assert second["id"] != first["id"]


async def test_extend_is_carried_out_once(stand: Stand) -> None:
    sandbox = await stand.root.create(timeout_seconds=10)
    path = f"/v1/sandboxes/{sandbox['id']}/extend"
    first = (await stand.root.call("POST", path, {"timeout_seconds": 100}, headers=KEY)).expect(200)
    again = await stand.root.call("POST", path, {"timeout_seconds": 100}, headers=KEY)
    assert (again.expect(200)["generation"], again.headers["Idempotency-Replayed"]) == (first["generation"], "true")
    (await stand.root.call("POST", path, {"timeout_seconds": 101}, headers=KEY)).expect(422)


async def test_a_found_name_answers_its_key(stand: Stand) -> None:
    there = await stand.root.create(name="one")
    body = {"name": "one", "if_exists": "return"}
    for _ in range(2):
        assert (await stand.root.call("POST", "/v1/sandboxes", body, headers=KEY)).expect(200)["id"] == there["id"]


@pytest.mark.parametrize("key", ["", "a" * 256, "caf\u00e9", " x"])
async def test_unusable_keys(stand: Stand, key: str) -> None:
    answer = await stand.root.call("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": key})
    if key.strip() == "x":  # white space around a header's value is not part of it
        answer.expect(201)
    else:
        assert answer.expect(422)["errors"][0]["path"] == "header:Idempotency-Key"


async def test_no_body_is_in_the_database(stand: Stand, tmp_path: Path) -> None:
    await stand.root.call("POST", "/v1/sandboxes", {"env": {"A": "very-secret-thing"}}, headers=KEY)
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or b"very-secret-thing" not in path.read_bytes()
