"""The direct way to a node: taken where it is offered, left where it fails, and never with the API key."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandlot import Client, RetryPolicy, Sandbox, ServerError, UnreachableError
from sandlot._access import NodeAccess
from sandlot.errors import from_problem
from stub_api import Fault, StubApi, running

_FAST = RetryPolicy(attempts=5, first_seconds=0, longest_seconds=0)


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def node(api: StubApi) -> Iterator[StubApi]:
    """A second server that knows the same sandboxes, by a token of theirs."""
    with running() as node:
        node.key = "node-token"
        node.sandboxes, node.processes, node.files = api.sandboxes, api.processes, api.files
        api.access = {
            "url": node.url,
            "token": "node-token",
            "expires_at": "2999-01-01T00:00:00Z",
            "scopes": ["processes", "files"],
        }
        yield node


@pytest.fixture
def client(api: StubApi) -> Iterator[Client]:
    with Client(api.url, api.key, retries=_FAST) as client:
        yield client


def _everything(sandbox: Sandbox, tmp_path: Path) -> None:
    assert sandbox.run(["echo", "hi"]).stdout == "hi\n"
    process = sandbox.start(["shout"], tty=(24, 80))
    with process.attach() as terminal:
        terminal.write("a\nexit 0\n")
        assert b"".join(frame.data for frame in terminal) == b"A\r\n"
    assert b"".join(frame.data for frame in process.output()) == b"A\r\n"
    sandbox.files.write("/f", b"x" * 1000)
    assert sandbox.files.read("/f") == b"x" * 1000
    sandbox.files.download("/", tmp_path / "tree")


def test_the_data_plane_goes_to_the_node_and_the_rest_to_the_api(
    api: StubApi, node: StubApi, client: Client, tmp_path: Path
) -> None:
    with Sandbox.create(client=client) as sandbox:
        _everything(sandbox, tmp_path)
        sandbox.refresh()
    assert [one.method for one in api.requests] == ["POST", "GET", "DELETE"]
    assert {one.headers["authorization"] for one in node.requests} == {"Bearer node-token"}
    assert node.seen("/attach")
    assert node.seen("/archive")


@pytest.mark.parametrize("status", [401, 421])
def test_a_node_that_refuses_is_gone_round(
    api: StubApi, node: StubApi, client: Client, tmp_path: Path, status: int
) -> None:
    codes = {401: "unauthenticated", 421: "moved"}
    with Sandbox.create(client=client) as sandbox:
        node.faults += [Fault("", status, {"code": codes[status]}) for _ in range(50)]
        _everything(sandbox, tmp_path)
    assert api.seen("/attach")
    assert len(node.requests) == 1


def test_a_node_that_cannot_be_reached_is_gone_round(api: StubApi, client: Client, tmp_path: Path) -> None:
    api.access = {"url": "http://127.0.0.1:1", "token": "t", "expires_at": "2999-01-01T00:00:00Z", "scopes": []}
    with Sandbox.create(client=client) as sandbox:
        _everything(sandbox, tmp_path)


def test_a_node_that_breaks_in_the_middle_is_gone_round(
    api: StubApi, node: StubApi, client: Client, tmp_path: Path
) -> None:
    data = os.urandom(100_000)
    with Sandbox.create(client=client) as sandbox:
        sandbox.files.write("/big", data)
        node.cuts = [10_000]
        assert sandbox.files.read("/big") == data
        assert len(api.seen("/files")) == 1
    with Sandbox.create(client=client) as sandbox:
        node.faults += [Fault("/run", drop="after")]
        assert sandbox.run(["echo", "once"]).stdout == "once\n"


def test_what_could_happen_twice_is_not_sent_to_the_api_after_the_node(
    api: StubApi, node: StubApi, client: Client
) -> None:
    with Sandbox.create(client=client) as sandbox:
        node.faults += [Fault("/files", drop="after")]
        with pytest.raises(UnreachableError):
            sandbox.files.write("/log", "x", append=True)
        assert api.seen("/files") == []


def test_an_old_token_is_renewed(api: StubApi, node: StubApi, client: Client) -> None:
    assert api.access is not None
    api.access["expires_at"] = "2020-01-01T00:00:00Z"
    api.tokens = ["node-token"]
    with Sandbox.create(client=client) as sandbox:
        for _ in range(3):
            sandbox.run(["echo"])
        assert len(api.seen("/tokens")) == 1
        assert api.seen("/tokens")[0].json == {"scopes": ["processes", "files"]}
        assert len(node.seen("/run")) == 3


def test_a_refused_token_is_renewed_once(api: StubApi, node: StubApi, client: Client) -> None:
    api.tokens = ["new-token"]
    with Sandbox.create(client=client) as sandbox:
        node.faults += [Fault("/run", 401, {"code": "unauthenticated", "reason": "expired"})]
        node.key = "new-token"
        sandbox.run(["echo"])
        sandbox.run(["echo"])
        assert len(api.seen("/tokens")) == 1
        assert len(node.seen("/run")) == 3


def test_other_errors_of_the_node_are_the_answer(api: StubApi, node: StubApi, client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        node.faults += [Fault("/run", 502, {"code": "guest_failed"})]
        with pytest.raises(ServerError):
            sandbox.run(["echo"])
        assert api.seen("/run") == []


def test_no_way_with_less_protection_is_taken() -> None:
    offered: dict[str, Any] = {"id": "sbx", "access": {"url": "http://node", "token": "t", "scopes": []}}
    assert NodeAccess.parse(offered, "https://api") is None
    assert NodeAccess.parse(offered, "http://api") is not None
    assert NodeAccess.parse({"access": {"url": None, "token": "t"}}, "http://api") is None
    assert NodeAccess.parse({"access": {"url": "file:///etc", "token": "t"}}, "http://api") is None


def test_a_node_left_alone_is_tried_again_later() -> None:
    access = NodeAccess("sbx", "http://node", "t", [], None)
    assert access.turns_back(UnreachableError("gone"), 100)
    assert not access.is_open(129)
    assert access.is_open(131)
    assert not access.turns_back(from_problem(410, {"code": "sandbox_ended"}), 131)
    access.turns_back(from_problem(421, {"code": "moved"}), 131)
    assert not access.is_open(1e9)


def test_decisions_are_listed_and_followed(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.decisions = [
        {"first_at": "2026-11-22T10:59:01.123Z", "last_at": "2026-11-22T10:59:01.123Z", "count": 1, "via": "proxy",
         "verdict": "deny" if number % 2 else "allow", "source": "policy", "name": f"n{number}.test", "port": 443,
         "cursor": f"c{number}"}
        for number in range(5)
    ]  # fmt: skip
    assert [one.name for one in sandbox.egress.decisions()] == [f"n{number}.test" for number in range(5)]
    assert [one.name for one in sandbox.egress.decisions(verdict="deny", after="c1")] == ["n3.test"]
    api.cuts = [300, 450]
    assert [one.cursor for one in sandbox.egress.decisions(follow=True)] == [f"c{number}" for number in range(5)]


def test_logs_go_on_at_their_cursor_and_metrics_are_samples(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.logs = [
        {"at": "2026-11-22T10:59:01.123Z", "process_id": "prc1", "kind": "stdout", "text": f"{n}\n", "cursor": f"c{n}"}
        for n in range(5)
    ] + [{"at": None, "process_id": "prc2", "kind": "stderr", "base64": "/w==", "cursor": "c5"}]
    api.cuts = [150, 260]
    lines = list(sandbox.logs(follow=True))
    assert b"".join(line.data for line in lines) == b"0\n1\n2\n3\n4\n\xff"
    assert [line.text for line in sandbox.logs(process_id="prc1", after="c3")] == ["4\n"]
    start = datetime(2026, 11, 22, tzinfo=UTC)
    samples = sandbox.metrics(start=start, step_seconds=60)
    assert [one.cpu_used_percent for one in samples] == [12.5, 12.5]
    assert api.seen("/metrics")[0].value("start") == "2026-11-22T00:00:00.000Z"


def test_a_sandbox_is_found_by_its_name(api: StubApi, client: Client) -> None:
    mine = Sandbox.create(name="mine", client=client)
    with Sandbox.create(name="mine", if_exists="return", client=client) as same, Sandbox.connect("mine", client=client):
        assert same.id == mine.id
    assert api.sandboxes[mine.id]["state"] == "running"
    assert Sandbox.connect(mine.id, client=client).id == mine.id
    assert mine.patch(metadata={"a": "b"}).metadata == {"a": "b"}
    assert mine.wait("running").state == "running"


def test_output_is_passed_on_while_it_comes(api: StubApi, client: Client) -> None:
    said: list[str] = []
    api.on_start = lambda process: (process.write("stdout", b"\xc3"), process.write("stdout", b"\xbc"), process.end(0))[
        0
    ]
    api.cuts = [25, 30]
    with Sandbox.create(client=client) as sandbox:
        result = sandbox.run(["say"], on_stdout=said.append)
    assert said == ["ü"]
    assert result.stdout == "ü"


def test_a_run_that_goes_on_can_be_waited_for(api: StubApi, client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        result = sandbox.run(["long"], wait_seconds=0)
        assert result.running
        api.process_started().write("stdout", b"done")
        api.process_started().end(0)
        assert result.wait().stdout == "done"
        assert result.process.id == result.process_id


def test_a_deadline_ends_the_retries(api: StubApi) -> None:
    now = [0.0]
    policy = RetryPolicy(deadline_seconds=10, first_seconds=0, clock=lambda: now[0], attempts=10**6)

    class Late(list[Fault]):
        def remove(self, value: Fault) -> None:  # noqa: ARG002 - it stays
            now[0] += 1

    api.faults = Late([Fault("/me", 503)])
    with Client(api.url, api.key, retries=policy) as client, pytest.raises(ServerError):
        client.me()
    assert len(api.seen("/me")) == 10


def test_input_that_fits_into_no_request_is_written_in_pieces(api: StubApi, client: Client) -> None:
    data = bytes(range(256)) * 20_000
    api.faults += [Fault("/stdin", drop="after"), Fault("/stdin", drop="before")]
    with Sandbox.create(client=client) as sandbox:
        result = sandbox.run(["cat"], input=data, timeout_seconds=None)
        assert result.exit_code == 0
        assert bytes(api.process_started().stdin) == data
        assert api.seen("/processes")[0].json["timeout_seconds"] is None
        assert sandbox.run(["exit", "3"], input=data).exit_code == 3
        assert api.seen("/processes")[1].json["timeout_seconds"] == 300
