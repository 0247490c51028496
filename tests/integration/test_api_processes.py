"""Data-plane calls through the api, and runs in a sandbox of their own."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from api_stand import Stand, api, until
from sandboxd.contract.ids import new_id


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


@pytest.fixture
async def sandbox(stand: Stand) -> str:
    return (await stand.root.create())["id"]


@pytest.fixture
async def process(stand: Stand, sandbox: str) -> str:
    answer = await stand.root.call("POST", f"/v1/sandboxes/{sandbox}/processes", {"argv": ["cat"]})
    return f"/v1/sandboxes/{sandbox}/processes/{answer.expect(201)['id']}"


async def test_calls_pass_unchanged(stand: Stand, sandbox: str) -> None:
    process_id = new_id("prc", os.urandom)
    path = f"/v1/sandboxes/{sandbox}/processes"
    body = {"argv": ["a", "b"], "id": process_id, "tag": "t"}
    assert (await stand.root.call("POST", path, body)).expect(201)["argv"] == ["a", "b"]
    assert (await stand.root.call("POST", path, body)).expect(200)["id"] == process_id
    assert [item["id"] for item in (await stand.root.call("GET", path + "?tag=t")).expect(200)["items"]] == [process_id]
    assert (await stand.root.call("GET", f"{path}/{process_id}")).expect(200)["id"] == process_id
    result = await stand.root.call("GET", f"{path}/{process_id}/result?keep=tail&wait_seconds=1.5")
    assert result.expect(200)["stdout"] == "hello\n"
    last = stand.node.requests[-1]
    assert (
        last.raw_path
        if hasattr(last, "raw_path")
        else str(last.rel_url) == f"{path}/{process_id}/result?keep=tail&wait_seconds=1.5"
    )
    assert last.query["keep"] == "tail"
    (await stand.root.call("POST", f"{path}/{process_id}/signal", {"signal": "SIGTERM"})).expect(204)
    (await stand.root.call("POST", f"{path}/{process_id}/resize", {"rows": 1, "cols": 2})).expect(204)


async def test_headers_pass_but_not_credentials(stand: Stand, sandbox: str) -> None:
    headers = {
        "Idempotency-Key": "k",
        "Accept": "application/x-ndjson",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "Sandlot-Request-Id": "req" + "a" * 20,
        "Cookie": "a=b",
    }
    answer = await stand.root.call("POST", f"/v1/sandboxes/{sandbox}/run", {"argv": ["true"]}, headers=headers)
    answer.expect(200)
    seen = stand.node.requests[-1].headers
    assert [seen[name] for name in ("Idempotency-Key", "Accept", "traceparent")] == list(headers.values())[:3]
    assert "Authorization" not in seen
    assert "Cookie" not in seen
    assert seen["Sandlot-Request-Id"] == answer.headers["Sandlot-Request-Id"] != headers["Sandlot-Request-Id"]


async def test_the_nodes_problems_pass_unchanged(stand: Stand, sandbox: str) -> None:
    answer = await stand.root.call("POST", f"/v1/sandboxes/{sandbox}/run", {"argv": ["a"], "shell": "b"})
    problem = answer.expect(422)
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert problem["request_id"] == answer.headers["Sandlot-Request-Id"]
    assert (await stand.root.call("GET", f"/v1/sandboxes/{sandbox}/processes/{new_id('prc', os.urandom)}")).expect(404)
    assert (await stand.root.call("GET", f"/v1/sandboxes/{sandbox}/processes/..%2Fx/output")).status == 404


async def test_fifty_megabytes_stream_in(stand: Stand, process: str) -> None:
    block = os.urandom(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield block

    answer = await stand.root.call("POST", f"{process}/stdin?offset=0&close=true", data=body())
    assert answer.expect(200) == {"offset": 50 << 20, "closed": True}
    [held] = stand.node.sandboxes.values()
    assert held.stdin == block * 50


async def test_output_streams_out(stand: Stand, process: str) -> None:
    answer = await stand.root.call("GET", f"{process}/output?lines=20000")
    lines = answer.raw.splitlines()
    assert len(lines) == 20000
    assert lines[-1] == b'{"kind": "stdout", "seq": 19999}'
    assert answer.headers["Content-Type"] == "application/x-ndjson"


async def test_a_client_that_vanishes_ends_its_call_on_the_node(stand: Stand, process: str) -> None:
    async with stand.session.get(f"{stand.url}{process}/output?follow=true", headers=stand.root.headers) as answer:
        assert await answer.content.readline() == b'{"kind": "stdout", "seq": 0}\n'
        answer.close()
    await until(lambda: stand.node.cancelled == [process.rpartition("/")[2]])


async def test_a_broken_stream_breaks_and_does_not_end(stand: Stand, process: str) -> None:
    stand.node.switch.broken_output = True
    with pytest.raises(aiohttp.ClientPayloadError):
        await stand.root.call("GET", f"{process}/output")


async def test_a_client_that_vanishes_in_its_upload_ends_it(stand: Stand, process: str) -> None:
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await never.wait()

    sending = asyncio.ensure_future(stand.root.call("POST", f"{process}/stdin", data=body()))
    [held] = stand.node.sandboxes.values()
    await until(lambda: len(held.stdin) == 1000)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_a_node_that_does_not_answer_is_said_so(stand: Stand, sandbox: str) -> None:
    await stand.node.stop()
    problem = (await stand.root.call("POST", f"/v1/sandboxes/{sandbox}/run", {"argv": ["true"]})).expect(503)
    assert (problem["code"], problem["retryable"]) == ("node_unreachable", True)
    problem = (await stand.root.call("PATCH", f"/v1/sandboxes/{sandbox}", {"timeout_seconds": 5})).expect(503)
    assert problem["code"] == "node_unreachable"


async def test_a_node_that_has_forgotten_is_not_believed(stand: Stand, sandbox: str) -> None:
    stand.node.sandboxes.clear()
    problem = (await stand.root.call("POST", f"/v1/sandboxes/{sandbox}/run", {"argv": ["true"]})).expect(503)
    assert problem["code"] == "node_unreachable"


async def test_calls_wait_for_a_pending_sandbox(stand: Stand) -> None:
    stand.node.switch.before = asyncio.Event()
    sandbox = await stand.root.create(wait_seconds=0)
    running = asyncio.ensure_future(
        stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/run", {"argv": ["true"]}),
    )
    await until(lambda: bool(stand.node.ensures))
    stand.node.switch.before.set()
    (await running).expect(200)


async def test_a_run_leaves_no_sandbox(stand: Stand) -> None:
    body = {
        "command": {"argv": ["cat", "a"]},
        "files": [{"path": "a", "text": "ä"}, {"path": "/b/c", "base64": "AAE="}],
        "env": {"A": "b"},
    }
    result = (await stand.root.call("POST", "/v1/run", body)).expect(200)
    assert (result["stdout"], result["exit_code"], result["sandbox_reason"]) == ("cat a\n", 0, "requested")
    [held] = stand.node.sandboxes.values()
    assert dict(held.guest.files) == {"/home/user/a": "ä".encode(), "/b/c": b"\0\1"}
    assert (await stand.root.get(result["sandbox_id"]))["state"] == "stopped"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "/command"),
        ({"command": {"argv": ["a"]}, "name": "a"}, "/name"),
        ({"command": {"argv": ["a"], "wait_seconds": 1}}, "/command"),
        ({"command": {"argv": ["a"]}, "files": [{"path": "a"}]}, "/files/0"),
        ({"command": {"argv": ["a"]}, "files": [{"path": "a", "base64": "?"}]}, "/files/0/base64"),
    ],
)
async def test_bad_runs(stand: Stand, body: dict[str, object], path: str) -> None:
    problem = (await stand.root.call("POST", "/v1/run", body)).expect(422)
    assert problem["errors"][0]["path"] == path
    assert stand.node.ensures == []


async def test_a_run_that_fails_leaves_no_sandbox(stand: Stand) -> None:
    body = {"command": {"shell": "x", "cwd": "/nope"}}
    stand.node.switch.refuse = "start_failed"
    problem = (await stand.root.call("POST", "/v1/run", body)).expect(503)
    assert (await stand.root.get(problem["sandbox_id"]))["state"] == "failed"


async def test_a_run_whose_caller_vanishes_is_removed(stand: Stand) -> None:
    stand.node.switch.run_hangs = asyncio.Event()
    asking = asyncio.ensure_future(stand.root.call("POST", "/v1/run", {"command": {"argv": ["true"]}}))
    await until(lambda: any(request.path.endswith("/run") for request in stand.node.requests))
    [sandbox_id] = stand.node.sandboxes
    asking.cancel()
    assert (await stand.root.reach(sandbox_id, "stopped"))["reason"] == "requested"
    assert stand.node.cancelled == [sandbox_id]


async def test_a_run_with_a_key_goes_on_and_is_answered_once(stand: Stand) -> None:
    stand.node.switch.run_hangs = asyncio.Event()
    body, headers = {"command": {"argv": ["echo", "x"]}}, {"Idempotency-Key": "k"}
    asking = asyncio.ensure_future(stand.root.call("POST", "/v1/run", body, headers=headers))
    await until(lambda: any(request.path.endswith("/run") for request in stand.node.requests))
    asking.cancel()
    problem = (await stand.root.call("POST", "/v1/run", body, headers=headers)).expect(409)
    assert problem["code"] == "idempotency_in_flight"
    [sandbox_id] = stand.node.sandboxes
    stand.node.switch.run_hangs.set()
    await stand.root.reach(sandbox_id, "stopped")
    answers = [await stand.root.call("POST", "/v1/run", body, headers=headers)]
    while answers[-1].status == 409:
        answers.append(await stand.root.call("POST", "/v1/run", body, headers=headers))
    assert answers[-1].expect(200)["stdout"] == "echo x\n"
    assert answers[-1].headers["Idempotency-Replayed"] == "true"
    assert len(stand.node.ensures) == 1
