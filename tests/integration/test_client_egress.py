"""What a sandbox may reach, by the client and by the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_kit import sandlot
from sandlot import ApiError, Client, RetryPolicy, Sandbox
from stub_api import Fault, StubApi, running


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def client(api: StubApi) -> Iterator[Client]:
    with Client(api.url, api.key, retries=RetryPolicy(attempts=3, first_seconds=0)) as client:
        yield client


def test_get_set_and_explain(api: StubApi, client: Client) -> None:
    with Sandbox.create(egress="open", client=client) as sandbox:
        before = sandbox.egress.get()
        assert (before.mode, before.state, before.generation, before.closed_connections) == ("open", "applied", 1, None)
        assert sandbox.egress.explain("example.com:443").allowed
        after = sandbox.egress.set(allow=["example.com", "*.cdn.test"], deny=["bad.cdn.test"], if_generation=1)
        assert (after.mode, after.allow, after.deny) == ("allowlist", ("example.com", "*.cdn.test"), ("bad.cdn.test",))
        assert (after.generation, after.closed_connections) == (2, 2)
        with pytest.raises(ApiError) as refused:
            sandbox.egress.set("open", if_generation=1)
        assert refused.value.code == "generation_mismatch"
        denied = sandbox.egress.explain("example.com:443")
        assert (denied.allowed, denied.reason) == (False, "not_allowed")
        assert sandbox.egress.explain("example.com:443", policy="open").allowed
        whole = {"mode": "open", "limits": {"connections": 5}}
        assert sandbox.egress.set(whole).policy["limits"] == {"connections": 5}
    assert api.seen(f"PUT /v1/sandboxes/{sandbox.id}/egress")[0].json == {
        "mode": "allowlist",
        "allow": ["example.com", "*.cdn.test"],
        "deny": ["bad.cdn.test"],
    }


def test_a_lost_answer_is_asked_for_again(api: StubApi, client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        api.faults.append(Fault("/egress", drop="after"))
        assert sandbox.egress.set("blocked").mode == "blocked"


def test_the_command_line(api: StubApi, tmp_path: Path) -> None:
    sandbox = api.add_sandbox(name="box")
    assert sandlot(api, "egress", "get", "box").stdout.splitlines()[0] == b"mode    open"
    done = sandlot(
        api, "egress", "set", "box", "--allow", "packages.example.com", "--allow", "*.test", "--deny", "1.2.3.4"
    )
    assert done.stdout.decode().splitlines() == [
        "mode    allowlist",
        "allow   packages.example.com",
        "allow   *.test",
        "deny    1.2.3.4",
        "state   applied, generation 2",
        "closed  2 connections",
    ]
    assert json.loads(sandlot(api, "egress", "get", "box", "--json").stdout)["generation"] == 2
    denied = sandlot(api, "egress", "explain", "box", "example.com:443")
    assert (denied.returncode, denied.stdout) == (1, b"deny: policy (not_allowed)\n")
    assert sandlot(api, "egress", "set", sandbox["id"], "open").returncode == 0
    assert sandlot(api, "egress", "explain", "box", "example.com:443").returncode == 0
    sandlot(api, "egress", "set", "box", "--deny", "evil.test")
    policy = tmp_path / "policy.json"
    policy.write_text('{"mode": "blocked"}')
    assert sandlot(api, "egress", "set", "box", "--file", str(policy)).returncode == 0
    sent = [request.json for request in api.seen(f"PUT /v1/sandboxes/{sandbox['id']}/egress")]
    assert sent[1:] == [{"mode": "open"}, {"mode": "open", "deny": ["evil.test"]}, {"mode": "blocked"}]
    policy.write_text("[]")
    for wrong in ((), ("open", "--file", str(policy)), ("--file", str(policy)), ("--file", str(tmp_path / "none"))):
        done = sandlot(api, "egress", "set", "box", *wrong)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
