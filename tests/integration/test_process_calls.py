"""The calls of clients on processes, over HTTP and a fake guest: what is accepted, refused, streamed and resumed."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
import pytest

from live_stand import BASE, SANDBOX_ID, StandSandbox, init_of, serving
from sandboxd.app import call as call_of
from sandboxd.contract.frames import MEDIA_TYPE, Decoder, FrameKind
from sandboxd.contract.ids import process_id_from_key
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.processes import calls

PROCESS = "prc" + "b" * 20


class Node:
    """A client of one stand."""

    def __init__(self, url: str, session: aiohttp.ClientSession, sandbox: StandSandbox, guest: FakeGuest) -> None:
        self.url, self.session, self.sandbox, self.guest = url, session, sandbox, guest

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        if "json" in options:
            options["data"] = io.BytesIO(json.dumps(options.pop("json")).encode())
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        async with self.session.request(method, self.url + path, **options) as response:
            data = await response.read()
            return response.status, json.loads(data) if "json" in response.content_type else data

    async def lines(self, method: str, path: str, **options: Any) -> list[dict[str, Any]]:
        async with self.session.request(method, self.url + path, **options) as response:
            assert response.status == 200
            return [json.loads(line) async for line in response.content]

    async def refused(self, method: str, path: str, **options: Any) -> tuple[int, str, list[dict[str, str]]]:
        status, body = await self.call(method, path, **options)
        assert body["type"] == f"/errors/{body['code']}"
        assert body["status"] == status
        assert body["request_id"].startswith("req")
        return status, body["code"], body.get("errors", [])


@pytest.fixture
async def node() -> AsyncGenerator[Node]:
    guest = FakeGuest()
    await guest.init(init_of())
    sandbox = StandSandbox(guest)
    async with serving(sandbox) as url, aiohttp.ClientSession() as session:
        yield Node(url, session, sandbox, guest)


async def test_run_answers_with_everything(node: Node) -> None:
    status, result = await node.call("POST", "/run", json={"shell": "echo out; echo err >&2; exit 3"})
    assert status == 200
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 3)
    assert (result["reason"], result["running"], result["truncated"], result["next_seq"]) == ("exited", False, False, 8)
    assert result["started_at"].endswith("Z")
    assert node.guest.calls["start"] == 1
    assert node.guest.calls["process"] == 0


async def test_a_command_that_fails_is_a_result(node: Node) -> None:
    status, result = await node.call("POST", "/run", json={"argv": ["no-such-command"]})
    assert (status, result["exit_code"], result["reason"]) == (200, 127, "not_started")
    assert result["start_error"]["code"] == "command_not_found"


async def test_input_comes_as_text_or_bytes(node: Node) -> None:
    assert (await node.call("POST", "/run", json={"argv": ["cat"], "input": "grün"}))[1]["stdout"] == "grün"
    status, result = await node.call(
        "POST", "/run", json={"argv": ["cat"], "input_base64": "AP8=", "output_encoding": "base64"}
    )
    assert (status, result["stdout"]) == (200, "AP8=")
    assert (await node.refused("POST", "/run", json={"argv": ["cat"], "input_base64": "?"}))[1] == "invalid_request"


async def test_run_as_lines_ends_with_its_result(node: Node) -> None:
    rows = await node.lines(
        "POST", "/run", json={"shell": "echo hello; exit 2"}, headers={"Accept": "application/x-ndjson"}
    )
    assert [row["kind"] for row in rows] == ["stdout", "exit", "result"]
    assert (rows[0]["text"], rows[0]["seq"], rows[0]["next"]) == ("hello\n", 0, 6)
    assert (rows[1]["seq"], rows[1]["exit_code"]) == (6, 2)
    assert (rows[2]["exit_code"], rows[2]["stdout_bytes"], rows[2]["truncated"]) == (2, 6, False)
    assert "stdout" not in rows[2]


async def test_run_may_answer_before_the_end(node: Node) -> None:
    body = {"id": PROCESS, "shell": "echo early; sleep 60", "wait_seconds": 0.3}
    status, result = await node.call("POST", "/run", json=body)
    assert (status, result["running"], result["exit_code"], result["stdout"]) == (200, True, None, "early\n")
    assert result["hint"] == f"GET {BASE}/processes/{PROCESS}/result?wait_seconds=60"
    rows = await node.lines("POST", "/run", json=body, headers={"Accept": "application/x-ndjson"})
    assert rows[-1]["kind"] == "result"
    assert rows[-1]["running"]
    await node.call("POST", f"/processes/{PROCESS}/signal", json={"signal": "SIGKILL"})
    status, result = await node.call("GET", f"/processes/{PROCESS}/result?wait_seconds=60")
    assert (result["running"], result["exit_code"], result["reason"]) == (False, 137, "killed")
    assert result["stdout"] == "early\n"


async def test_a_long_wait_sends_spaces(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(calls, "KEEPALIVE_SECONDS", 0.05)
    async with node.session.post(node.url + "/run", json={"shell": "echo a; sleep 0.2; echo b"}) as response:
        text = await response.text()
    assert text.startswith(" ")
    assert json.loads(text)["stdout"] == "a\nb\n"
    _, started = await node.call("POST", "/processes", json={"argv": ["sleep", "0.3"]})
    async with node.session.get(f"{node.url}/processes/{started['id']}/result?wait_seconds=30") as response:
        text = await response.text()
    assert text.startswith(" ")
    assert json.loads(text)["exit_code"] == 0


async def test_starts_join_by_id_and_by_key(node: Node) -> None:
    body = {"argv": ["sleep", "60"], "tag": "t"}
    headers = {"Idempotency-Key": "my key"}
    status, first = await node.call("POST", "/processes", json=body, headers=headers)
    assert (status, first["id"]) == (201, process_id_from_key(SANDBOX_ID, "my key"))
    assert (first["sandbox_id"], first["tag"], first["state"]) == (SANDBOX_ID, "t", "running")
    status, again = await node.call("POST", "/processes", json=body, headers=headers)
    assert (status, again["id"]) == (200, first["id"])
    assert (await node.refused("POST", "/processes", json={"argv": ["true"]}, headers=headers))[:2] == (
        422, "idempotency_mismatch",
    )  # fmt: skip
    status, code, errors = await node.refused("POST", "/processes", json=body | {"id": PROCESS}, headers=headers)
    assert (status, code, errors[0]["path"]) == (422, "invalid_request", "header:Idempotency-Key")
    for bad in ("", "x" * 256, "é"):
        answer = await node.refused("POST", "/processes", json=body, headers={"Idempotency-Key": bad})
        assert answer[:2] == (422, "invalid_request")


async def test_a_late_joiner_of_a_run_gets_head_and_tail(node: Node) -> None:
    body = {"id": PROCESS, "argv": ["yes"], "timeout_seconds": 1, "wait_seconds": 0}
    await node.call("POST", "/run", json=body)
    while (await node.guest.process(PROCESS))["first_seq"] == 0:  # noqa: ASYNC110 - the fake's own clock
        await asyncio.sleep(0.01)
    _, result = await node.call("POST", "/run", json=body | {"wait_seconds": None, "max_output_bytes": 1000})
    assert (result["running"], result["exit_code"], result["truncated"]) == (False, 124, True)
    assert result["stdout"].startswith("y\ny\n")
    assert result["stdout"].endswith("y\ny\n")
    record = await node.guest.process(PROCESS)
    assert result["stdout_bytes"] == record["stdout_bytes"] == result["next_seq"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, ""),
        ({"argv": ["a"], "shell": "a"}, ""),
        ({"argv": []}, "/argv"),
        ({"argv": "true"}, "/argv"),
        ({"argv": ["a\0b"]}, "/argv/0"),
        ({"shell": "a", "timeout_seconds": 0}, "/timeout_seconds"),
        ({"shell": "a", "timeout_seconds": "1"}, "/timeout_seconds"),
        ({"shell": "a", "timeout_seconds": 1e300}, "/timeout_seconds"),
        ({"shell": "a", "env": {"A=B": ""}}, "/env"),
        ({"shell": "a", "env": {"A": "\0"}}, "/env"),
        ({"shell": "a", "egres": {}}, "/egres"),
        ({"shell": "a", "id": "prc1"}, "/id"),
        ({"shell": "a", "keep": "middle"}, "/keep"),
        ({"shell": "a", "max_output_bytes": 9_000_000}, "/max_output_bytes"),
        ({"shell": "a", "tty": {}}, "/tty"),
        ({"shell": "a", "input": "", "input_base64": ""}, ""),
        ({"shell": "a", "user": "a/b"}, "/user"),
        ([], ""),
    ],
)
async def test_nothing_is_ignored_and_nothing_clamped(node: Node, body: Any, path: str) -> None:
    status, code, errors = await node.refused("POST", "/run", json=body)
    assert (status, code) == (422, "invalid_request")
    assert [row["path"] for row in errors] == [path]
    assert set(errors[0]) == {"path", "code", "message"}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"shell":"\xff"}', b'{"shell":"\\ud800"}', b"[" * 100_000, b'{"shell":"a"}x']
)
async def test_what_is_no_json_cannot_be_read(node: Node, data: bytes) -> None:
    answer = await node.refused("POST", "/run", data=data, headers={"Content-Type": "application/json"})
    assert answer[:2] == (400, "malformed_request")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1"])
async def test_numbers_are_numbers(node: Node, value: str) -> None:
    data = b'{"shell":"a","kill_grace_seconds":' + value.encode() + b"}"
    status, *_ = await node.refused("POST", "/run", data=data, headers={"Content-Type": "application/json"})
    assert status in {400, 422}


async def test_bodies_have_a_type_and_a_size(node: Node) -> None:
    plain = {"Content-Type": "text/plain"}
    assert (await node.refused("POST", "/run", data=b"{}", headers=plain))[:2] == (415, "unsupported_media_type")
    packed = {"Content-Type": "application/json", "Content-Encoding": "br"}
    assert (await node.refused("POST", "/run", data=b"{}", headers=packed))[:2] == (415, "unsupported_media_type")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 65_536

    try:
        answer = await node.refused("POST", "/run", data=endless(), headers={"Content-Type": "application/json"})
    except aiohttp.ClientError:
        return  # the answer came before the body was through
    assert answer[:2] == (413, "body_too_large")


async def test_arguments_have_a_length(node: Node) -> None:
    for body in (
        {"argv": ["echo", "x" * 131_072]},
        {"argv": ["echo", *["x" * 100_000] * 25]},
        {"shell": "x" * 131_072},
        {"shell": "a", "env": {"A": "x" * 131_072}},
    ):
        assert (await node.refused("POST", "/run", json=body))[:2] == (422, "argument_too_long")
    assert (await node.call("POST", "/run", json={"argv": ["echo", "x" * 131_071]}))[0] == 200


async def test_queries_are_strict(node: Node) -> None:
    await node.call("POST", "/processes", json={"id": PROCESS, "argv": ["true"]})
    for query in ("folow=true", "follow=1", "after=-1", "after=x", "after=1&after=2", "after=1&tail_bytes=1",
                  "keepalive_seconds=4", "after=1.5", "tail_bytes="):  # fmt: skip
        status, code, errors = await node.refused("GET", f"/processes/{PROCESS}/output?{query}")
        assert (status, code) == (422, "invalid_request"), query
        assert errors[0]["path"].startswith("query:")
    assert (await node.refused("POST", "/run?x=1", json={"shell": "a"}))[0] == 422
    assert (await node.refused("GET", f"/processes/{PROCESS}?wait_seconds=nan"))[0] == 422


async def test_types_that_are_not_there_are_not_acceptable(node: Node) -> None:
    assert (await node.refused("POST", "/run", json={"shell": "a"}, headers={"Accept": "text/html"}))[:2] == (
        406, "not_acceptable",
    )  # fmt: skip


async def test_output_in_every_form_resumes(node: Node) -> None:
    await node.call("POST", "/run", json={"id": PROCESS, "shell": "echo hello; exit 4"})
    path = f"/processes/{PROCESS}/output"
    rows = await node.lines("GET", f"{path}?after=2&follow=true")
    assert [(row["kind"], row["seq"]) for row in rows] == [("stdout", 2), ("exit", 6)]
    assert rows[0]["text"] == "llo\n"
    _, data = await node.call("GET", path, headers={"Accept": MEDIA_TYPE})
    frames = list(Decoder().feed(data))
    assert [frame.kind for frame in frames] == [FrameKind.STDOUT, FrameKind.EXIT]
    assert frames[1].json()["exit_code"] == 4
    events = {"Accept": "text/event-stream"}
    _, data = await node.call("GET", path, headers=events | {"Last-Event-ID": "3"})
    text = data.decode()
    assert text.startswith("retry: 1000\nid: 3\ndata:\n\nevent: stdout\nid: 6\ndata: {")
    assert "\nid: 6:end\n" in text
    status, _ = await node.call("GET", path, headers=events | {"Last-Event-ID": "6:end"})
    assert status == 204
    assert (await node.refused("GET", path, headers=events | {"Last-Event-ID": "x"}))[0] == 422
    status, body = await node.call("GET", f"{path}?after=7")
    assert (status, body["code"], body["next_seq"]) == (416, "seq_out_of_range", 6)


async def test_a_follower_sees_what_comes_and_keepalives(node: Node) -> None:
    await node.call("POST", "/processes", json={"id": PROCESS, "argv": ["cat"], "stdin": True})
    async with node.session.get(f"{node.url}/processes/{PROCESS}/output?follow=true") as response:
        status, answer = await node.call("POST", f"/processes/{PROCESS}/stdin?offset=0", data=b"one")
        assert (status, answer) == (200, {"offset": 3, "closed": False})
        first = json.loads(await response.content.readline())
        assert first["text"] == "one"
        assert (await node.call("POST", f"/processes/{PROCESS}/stdin?offset=0", data=b"one"))[1]["offset"] == 3
        assert (await node.refused("POST", f"/processes/{PROCESS}/stdin?offset=9", data=b"x"))[1] == "stdin_gap"
        await node.call("POST", f"/processes/{PROCESS}/stdin?close=true", data=b"")
        assert json.loads(await response.content.readline())["kind"] == "exit"
        assert await response.content.read() == b""
    assert (await node.refused("POST", f"/processes/{PROCESS}/stdin", data=b"x"))[:2] == (409, "process_ended")


async def test_lists_are_paged(node: Node) -> None:
    ids = [(await node.call("POST", "/processes", json={"argv": ["true"]}))[1]["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        _, page = await node.call("GET", f"/processes?limit=2{cursor}")
        seen += [row["id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(seen) == sorted(ids)
    assert (await node.refused("GET", f"/processes?state=ended{cursor}"))[:2] == (400, "invalid_cursor")
    for bad in ("x", "e30", "!!"):
        assert (await node.refused("GET", f"/processes?cursor={bad}"))[:2] == (400, "invalid_cursor")


async def test_a_process_can_be_waited_for(node: Node) -> None:
    await node.call("POST", "/processes", json={"id": PROCESS, "argv": ["sleep", "0.1"]})
    status, found = await node.call("GET", f"/processes/{PROCESS}?wait_seconds=30&wait_for=ended")
    assert (status, found["state"], found["exit_code"]) == (200, "ended", 0)


async def test_what_is_not_there_is_not_found(node: Node) -> None:
    for path in (
        f"/processes/{PROCESS}",
        "/processes/x",
        f"/processes/{PROCESS}/result",
        f"/processes/{PROCESS}/output",
    ):
        assert (await node.refused("GET", path))[:2] == (404, "process_not_found")
    elsewhere = node.url.replace(SANDBOX_ID, "sbx" + "z" * 20)
    async with node.session.get(elsewhere + "/processes") as response:
        assert response.status == 421
    async with node.session.get(node.url.replace(SANDBOX_ID, "sbxshort") + "/processes") as response:
        assert response.status == 404
    assert (await node.refused("DELETE", "/processes"))[:2] == (405, "method_not_allowed")
    assert (await node.refused("GET", "/nothing"))[:2] == (404, "route_not_found")
    assert (await node.refused("GET", f"/processes/{PROCESS}/attach"))[:2] == (400, "malformed_request")


async def test_files_for_a_run_are_written(node: Node) -> None:
    status, info = await node.call("PUT", "/files", params={"path": "/data/a b", "mode": "0600"}, data=b"content")
    assert (status, info["size_bytes"]) == (201, 7)
    assert (await node.call("POST", "/run", json={"argv": ["cat", "/data/a b"]}))[1]["stdout"] == "content"
    for path in ("", "/" + "x" * 256, "/" + "x/" * 3000, "/a\0b"):
        assert (await node.refused("PUT", "/files", params={"path": path}, data=b""))[:2] == (400, "invalid_path")


async def test_a_dead_guest_is_the_guests_fault_until_the_sandbox_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxd.processes.live.VERDICT_SECONDS", 0.1)
    node.guest.die()
    assert (await node.refused("POST", "/run", json={"argv": ["true"]}))[:2] == (502, "guest_failed")
    assert node.sandbox.reports
    node.sandbox.ended.set()
    assert (await node.refused("POST", "/run", json={"argv": ["true"]}))[:2] == (410, "sandbox_ended")


async def test_a_call_does_not_outlive_the_sandbox(node: Node) -> None:
    node.guest.hang("process")
    async with asyncio.TaskGroup() as group:

        async def end_soon() -> None:
            while not node.guest.calls["process"]:  # noqa: ASYNC110 - a counter of the fake
                await asyncio.sleep(0.01)
            node.sandbox.ended.set()

        group.create_task(end_soon())
        status, code, _ = await node.refused("GET", f"/processes/{PROCESS}")
    assert (status, code) == (410, "sandbox_ended")


async def test_a_client_that_vanishes_leaves_the_process_and_nothing_else(node: Node) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(node.call("POST", "/run", json={"id": PROCESS, "argv": ["sleep", "60"]}))
        while not node.guest.calls["start"]:  # noqa: ASYNC110 - a counter of the fake
            await asyncio.sleep(0.01)
        assert node.sandbox.users == 1
        task.cancel()
    async with asyncio.timeout(30):
        while node.sandbox.users:  # noqa: ASYNC110 - a counter of the stand
            await asyncio.sleep(0.01)
    assert (await node.call("GET", f"/processes/{PROCESS}"))[1]["state"] == "running"


async def test_a_body_that_stops_is_given_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_of, "BODY_IDLE_SECONDS", 0.1)
    await node.call("POST", "/processes", json={"id": PROCESS, "argv": ["cat"], "stdin": True})

    async def stops() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    status, code, _ = await node.refused("POST", f"/processes/{PROCESS}/stdin", data=stops())
    assert (status, code) == (504, "deadline_exceeded")
